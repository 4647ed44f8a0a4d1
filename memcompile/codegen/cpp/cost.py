"""What a chain of inverted residuals takes as one kernel, and a block as library calls: seconds and bytes, by a roofline."""

from __future__ import annotations

import math

from memcompile.codegen.cpp.chain import LANES, extent, first_row
from memcompile.codegen.cpp.kernel import RowsKernel
from memcompile.codegen.inverted_residual.block import Convolution, InvertedResidual
from memcompile.codegen.kernel.pointwise import shape_of
from memcompile.step.cost import CostModel
from memcompile.step.fxutil import node_bytes

DENSE_SHARE, DEPTHWISE_SHARE = 0.9, 0.3
"""FLOP/s in rows.h as shares of a large library convolution's; measured on MobileNetV2 at 224, an EPYC with AVX-512."""
LIBRARY_DENSE_SHARE, LIBRARY_DEPTHWISE_SHARE = 0.45, 0.5
"""The same of the library's convolutions of such blocks."""
PACK_SHARE = 0.5
"""Weights that are packed, read and written: bytes per second as a share of a large copy's."""
CALLS = 6
"""What a kernel or a library convolution takes beside, in calls on next to no data."""


def rows_seconds(kernel: RowsKernel, model: CostModel, threads: int) -> float:
    """One kernel on ``threads`` threads: weights are packed, and rows that two threads read are made twice."""
    chain, device = kernel.chain, model.device
    rate = device.flops(chain.blocks[0].dtype) * device.convolution_speed
    moved = sum(map(node_bytes, (*chain.operands, chain.result))) + 2 * kernel.shared_bytes / PACK_SHARE
    seconds = CALLS * device.launch_overhead_s + moved / device.bandwidth_bytes_per_s
    end = begin = chain.blocks[-1].result_size[0] // 2  # rows before ``end`` are one thread's, from ``begin`` on the next one's
    for block in reversed(chain.blocks):
        for convolution in (block.project, block.depthwise, block.expand):
            if convolution is None:
                continue
            _, _, height, _ = shape_of(convolution.node)
            again = (threads - 1) * max(0, end - begin) / height
            share = DEPTHWISE_SHARE if convolution.is_depthwise else DENSE_SHARE
            seconds += _flops(convolution, LANES) * (1 + again) / (rate * share)
            if convolution is not block.project:
                end = min(shape_of(convolution.input)[2], _end_row(convolution, end))
                begin = first_row(convolution, begin)
    return seconds


def library_seconds(block: InvertedResidual, model: CostModel) -> float:
    """Library convolutions, each followed by one pointwise kernel."""
    device, seconds = model.device, 0.0
    rate = device.flops(block.dtype) * device.convolution_speed
    for convolution in (block.expand, block.depthwise, block.project):
        if convolution is not None:
            share = LIBRARY_DEPTHWISE_SHARE if convolution.is_depthwise else LIBRARY_DENSE_SHARE
            moved = sum(map(node_bytes, (convolution.input, convolution.weight, convolution.node)))
            arithmetic = _flops(convolution, 1) / (rate * share)
            seconds += max(arithmetic, moved / device.bandwidth_bytes_per_s) + CALLS * device.launch_overhead_s
            seconds += model.kernel_seconds(2 * node_bytes(convolution.node))
    return seconds


def rows_bytes(kernel: RowsKernel, threads: int) -> int:
    """Input, result and workspace. An input of the graph is alive anyway."""
    chain = kernel.chain
    return _image_bytes(chain.blocks[0]) + node_bytes(chain.result) + kernel.workspace_bytes(threads)


def library_bytes(block: InvertedResidual) -> int:
    """The most that is alive around a block's library calls."""
    image, wide = _image_bytes(block), node_bytes(block.depthwise.node)
    expanded = node_bytes(block.expand.node) if block.expand is not None else 0
    kept = image if block.adds_input or block.expand is None else 0
    return max(image + expanded, kept + expanded + wide, kept + wide + node_bytes(block.result))


def _image_bytes(block: InvertedResidual) -> int:
    return 0 if block.input.op == "placeholder" else node_bytes(block.input)


def _flops(convolution: Convolution, lanes: int) -> int:
    """With channels of the result in whole vectors of ``lanes``."""
    count, made, height, width = shape_of(convolution.node)
    read = 1 if convolution.is_depthwise else convolution.channels[0]
    return 2 * count * height * width * math.prod(convolution.kernel) * read * (-(-made // lanes) * lanes)


def _end_row(convolution: Convolution, row: int) -> int:
    """Behind the last row that rows up to ``row`` of the result read."""
    return (row - 1) * convolution.stride[0] - convolution.padding[0] + extent(convolution)
