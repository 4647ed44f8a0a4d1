"""What a chain of inverted residuals takes as one kernel, and a block as library calls: seconds and bytes, by a roofline."""

from __future__ import annotations

import math

from memcompile.codegen.cpp.chain import LANES, RowChain, extent, first_row
from memcompile.codegen.cpp.kernel import RowsKernel
from memcompile.codegen.triton.inverted.block import Convolution, InvertedResidual
from memcompile.codegen.triton.pointwise import shape_of
from memcompile.cost import CostModel
from memcompile.fxutil import node_bytes

DENSE_SHARE = 0.5
"""FLOP/s of products in rows.h as a share of a large convolution's of the library."""
DEPTHWISE_SHARE = 0.15
"""The same of depthwise convolutions, which read as much as they multiply."""
LIBRARY_SHARE = 0.2
"""FLOP/s of a library convolution of 1 x 1, or dense, in a block, as that share; DEPTHWISE_SHARE for depthwise ones."""
CALLS = 6
"""What one library convolution takes beside arithmetic, in calls on next to no data: it lays its weights out for each call."""


def rows_seconds(chain: RowChain, model: CostModel, threads: int) -> float:
    """One kernel on ``threads`` threads; rows that two threads read are made twice."""
    rate = model.device.flops(chain.blocks[0].dtype) * model.device.convolution_speed
    seconds, moved = CALLS * model.device.launch_overhead_s, sum(map(node_bytes, (*chain.operands, chain.result)))
    height = chain.blocks[-1].result_size[0]
    boundary, begin = height // 2, height // 2  # rows below ``boundary`` are one thread's, rows from ``begin`` on the other's
    for block in reversed(chain.blocks):
        for convolution in (block.project, block.depthwise, block.expand):
            if convolution is None:
                continue
            rows = shape_of(convolution.node)[2]
            again = (threads - 1) * max(0, boundary - begin) / rows
            share = DEPTHWISE_SHARE if convolution.is_depthwise else DENSE_SHARE
            seconds += _flops(convolution, LANES) * (1 + again) / (rate * share)
            if convolution is not block.project:
                boundary = min(shape_of(convolution.input)[2], _last_row(convolution, boundary))
                begin = first_row(convolution, begin)
    return seconds + moved / model.device.bandwidth_bytes_per_s


def library_seconds(block: InvertedResidual, model: CostModel) -> float:
    """Library convolutions, each followed by one pointwise kernel."""
    rate = model.device.flops(block.dtype) * model.device.convolution_speed
    seconds = 0.0
    for convolution in (block.expand, block.depthwise, block.project):
        if convolution is not None:
            share = DEPTHWISE_SHARE if convolution.is_depthwise else LIBRARY_SHARE
            moved = sum(map(node_bytes, (convolution.input, convolution.weight, convolution.node)))
            arithmetic = _flops(convolution, 1) / (rate * share)
            seconds += max(arithmetic, moved / model.device.bandwidth_bytes_per_s) + CALLS * model.device.launch_overhead_s
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


def _last_row(convolution: Convolution, row: int) -> int:
    """Behind the last row that rows up to ``row`` of the result read."""
    return (row - 1) * convolution.stride[0] - convolution.padding[0] + extent(convolution)
