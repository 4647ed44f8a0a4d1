"""What an inverted residual costs as one kernel, and as kernels of their own: a roofline for whoever chooses.

One kernel reads the input and writes the result, and no more; the price is that an expanded pixel is computed again for most of
the taps that read it. It wins where memory is what kernels of their own wait for: narrow inputs with many pixels (the early
blocks of a network, where its peak lies too), strides, kernels of 3 x 3. It loses where products are (160 channels in, 7 x 7
pixels), and where there are fewer programs than processors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.flatten import flatten
from memcompile.codegen.inverted_residual.writer import padded
from memcompile.codegen.kernel.chain import Chain
from memcompile.codegen.triton.configs import Config
from memcompile.machine.device import DeviceModel
from memcompile.step.cost import CostModel
from memcompile.step.fxutil import node_bytes

PRODUCT_SPEED = 0.4
"""Rate of products between tiles of this size, as a share of a large product's. An assumption, not a measurement."""
STEP_S = 2.5e-7
"""From the load of a tap to the sum that it is added to, where no other program fills the time. An assumption as well."""
RESIDENT_WARPS = 16
"""Warps of all programs that run on one processor at a time, with about 128 registers a thread."""


@dataclass(frozen=True, slots=True)
class InvertedCost:
    """``fused``: seconds of the one kernel; ``apart``: of kernels of their own, each pointwise part fused into one.

    ``extra_flops``: what expanding once a tap adds. ``saved_bytes``: what need not be held beside the input and the result.
    """

    fused: float
    apart: float
    extra_flops: int
    saved_bytes: int

    @property
    def wins(self) -> bool:
        """Whether the one kernel is expected to be the faster one."""
        return self.fused < self.apart


def inverted_cost(
    block: InvertedResidual, lines: int, device: DeviceModel, config: Config, processors: int = 132
) -> InvertedCost:
    """Estimate both ways for the graph's number of images. ``lines``, ``config``: those of the kernel; ``processors``: of the
    GPU."""
    fused = _fused_seconds(block, lines, device, config, processors)
    return InvertedCost(fused, _seconds_apart(block, device), extra_flops(block, lines), saved_bytes(block))


def inverted_flops(block: InvertedResidual, lines: int) -> int:
    """Floating point operations of the kernel, without padding."""
    narrow, wide, result = block.channels
    expand = narrow * block.expansions(lines) if block.expand is not None else 0
    return round(2 * block.pixels * wide * (expand + block.taps + result))


def extra_flops(block: InvertedResidual, lines: int) -> int:
    """What the kernel computes more than the three convolutions."""
    if block.expand is None:
        return 0
    narrow, wide, _ = block.channels
    expanded = block.pixels * block.expansions(lines) - block.images * math.prod(block.size)
    return round(2 * narrow * wide * expanded)


def saved_bytes(block: InvertedResidual) -> int:
    """The expanded tensor and the depthwise convolution's result, which are alive together with kernels of their own."""
    expanded = node_bytes(block.depthwise.input) if block.expand is not None else 0
    return expanded + node_bytes(block.depthwise.node)


def _fused_seconds(block: InvertedResidual, lines: int, device: DeviceModel, config: Config, processors: int) -> float:
    narrow, wide, result = (padded(columns) for columns in block.channels)
    expansions, (height, width) = block.expansions(lines), block.result_size
    programs = math.ceil(math.ceil(height / lines) * width * block.images / config["BM"])
    turns = math.ceil(programs / processors)
    pixels = turns * processors * config["BM"] * lines
    products = 2 * pixels * wide * ((narrow * expansions if block.expand is not None else 0) + result)
    elements = pixels * wide * (expansions * _operators(flatten(block).before) + block.taps)
    arithmetic = products / (device.flops(block.dtype) * PRODUCT_SPEED) + elements / device.elements_per_second
    steps = math.ceil(wide / config["BH"]) * expansions * lines
    waiting = math.ceil(turns / (RESIDENT_WARPS // config.num_warps)) * steps * STEP_S
    moved = sum(map(node_bytes, block.operands)) + node_bytes(block.result)
    return device.launch_overhead_s + max(arithmetic, waiting, moved / device.bandwidth_bytes_per_s)


def _operators(chain: Chain) -> int:
    """Operators for each expanded element, with the mask."""
    return 1 + len([n for n in chain.row_nodes if n.op == "call_function" and n not in chain.products])


def _seconds_apart(block: InvertedResidual, device: DeviceModel) -> float:
    model = CostModel(device)
    convolutions = [c for c in (block.expand, block.depthwise, block.project) if c is not None]
    ends = [*(c.input for c in convolutions[1:]), block.result]
    seconds = 0.0
    for convolution, end in zip(convolutions, ends, strict=True):
        moved = sum(map(node_bytes, (convolution.input, convolution.weight, convolution.node)))
        seconds += max(model.node_seconds(convolution.node), moved / device.bandwidth_bytes_per_s) + device.launch_overhead_s
        if end is not convolution.node:
            again = node_bytes(block.input) if end is block.result and block.adds_input else 0
            seconds += model.kernel_seconds(node_bytes(convolution.node) + node_bytes(end) + again)
    return seconds
