"""A chain of inverted residuals as rows: each image between two convolutions is a ring of the rows that are still read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from memcompile.codegen.cpp.stages import Stages, stages_of
from memcompile.codegen.inverted_residual.block import Convolution, InvertedResidual
from memcompile.codegen.inverted_residual.naming import named
from memcompile.codegen.kernel.pointwise import dtype_of, refused, shape_of

LANES = 16
"""Floats of a vector in rows.h, on every processor: rows are padded to it."""


@dataclass(frozen=True, slots=True)
class Image:
    """Rows that one thread keeps: ``rows`` of ``height``, each [left + width + right][step] floats."""

    height: int
    width: int
    channels: int
    step: int
    left: int
    right: int
    rows: int

    @property
    def pixels(self) -> int:
        """Of a row, the zeros on both sides among them."""
        return self.left + self.width + self.right

    @property
    def floats(self) -> int:
        """Of all rows that are kept."""
        return self.rows * self.pixels * self.step


@dataclass(frozen=True, slots=True)
class ChainLink:
    """A block of a graph, the same with plain names in a graph of its own, and what follows its convolutions."""

    block: InvertedResidual
    named: InvertedResidual
    stages: Stages


@dataclass(frozen=True, slots=True)
class RowChain:
    """Inverted residuals of fp32, each the only reader of the one before it."""

    links: tuple[ChainLink, ...]

    @property
    def blocks(self) -> tuple[InvertedResidual, ...]:
        """Those of the graph."""
        return tuple(link.block for link in self.links)

    @property
    def input(self) -> fx.Node:
        """[N, C, H, W]."""
        return self.blocks[0].input

    @property
    def result(self) -> fx.Node:
        """[N, C, H, W]."""
        return self.blocks[-1].result

    @property
    def operands(self) -> tuple[fx.Node, ...]:
        """What the kernel reads: the input, then the parameters of each block."""
        return (self.input, *(node for block in self.blocks for node in block.parameters))

    @property
    def images(self) -> int:
        """N of the graph; a kernel takes any."""
        return self.blocks[0].images

    @property
    def copies_input(self) -> bool:
        """Whether rows of the input are copied, with zeros around them: a window reads it, not single pixels."""
        return not first_of(self.blocks[0]).is_product

    def input_of(self, index: int) -> Image:
        """What block ``index`` reads; without ``copies_input``, the first block reads the input itself."""
        block = self.blocks[index]
        first = first_of(block)
        height, width = block.size
        channels = block.channels[0]
        step = channels if index == 0 and not first.is_depthwise else padded(channels)
        rows = max(extent(first), _rows_to_add(block) if block.adds_input else 0)
        return Image(height, width, channels, step, *sides(first), min(rows, height))

    def expanded(self, index: int) -> Image | None:
        """The expanded tensor of a block; None where the depthwise convolution reads the block's input."""
        block = self.blocks[index]
        if block.expand is None:
            return None
        _, channels, height, width = shape_of(block.expand.node)
        rows = min(extent(block.depthwise), height)
        return Image(height, width, channels, padded(channels), *sides(block.depthwise), rows)


def convolutions_of(block: InvertedResidual) -> list[tuple[str, Convolution]]:
    """A block's convolutions by name, in order."""
    parts = (("expand", block.expand), ("depthwise", block.depthwise), ("project", block.project))
    return [(name, convolution) for name, convolution in parts if convolution is not None]


def first_of(block: InvertedResidual) -> Convolution:
    """The convolution that reads the block's input."""
    return block.expand or block.depthwise


def padded(channels: int) -> int:
    """Channels in whole vectors."""
    return -(-channels // LANES) * LANES


def extent(convolution: Convolution) -> int:
    """Rows from the first to the last that a row of the result reads."""
    return (convolution.kernel[0] - 1) * convolution.dilation[0] + 1


def first_row(convolution: Convolution, row: int) -> int:
    """The first row of the image that a row of the result reads."""
    return max(0, row * convolution.stride[0] - convolution.padding[0])


def sides(convolution: Convolution) -> tuple[int, int]:
    """Zeros to the left and to the right of what a convolution reads. A stride may leave the last columns unread."""
    width, result = shape_of(convolution.input)[3], shape_of(convolution.node)[3]
    left, across = convolution.padding[1], (convolution.kernel[1] - 1) * convolution.dilation[1]
    return left, max(0, (result - 1) * convolution.stride[1] + across + 1 - left - width)


def _rows_to_add(block: InvertedResidual) -> int:
    """Rows of the input from the one that is added to the last one that was read for its row of the result."""
    convolutions = [c for c in (block.expand, block.depthwise) if c is not None]
    if any(c.stride[0] > 1 for c in convolutions):  # of an image of few rows, widely padded
        return block.size[0]
    return 1 + sum(extent(c) - 1 - c.padding[0] for c in convolutions)


def link_of(block: InvertedResidual) -> ChainLink:
    """A block as a link of chains. Raises `KernelRefusedError` for what is not fp32, has symbolic sizes, or has no formula."""
    for node in (*block.operands, block.result):
        if dtype_of(node) != torch.float32:
            raise refused(block.depthwise.node, f"C++ kernels are for float32, and {node.name} is {dtype_of(node)}")
        value = node.meta["val"]
        sizes = (*value.shape, *(() if node is block.input else value.stride()))
        if not all(isinstance(size, int) for size in sizes):
            raise refused(block.depthwise.node, f"{node.name} has sizes that vary from call to call")
    own = named(block)
    return ChainLink(block, own, stages_of(own))


def runs_of(blocks: tuple[InvertedResidual, ...]) -> list[tuple[InvertedResidual, ...]]:
    """The longest chains: each block is read by the next alone."""
    runs: list[tuple[InvertedResidual, ...]] = []
    for block in blocks:
        before = runs[-1][-1] if runs else None
        follows = before is not None and block.input is before.result and set(before.result.users) <= {*block.nodes}
        if follows:
            runs[-1] = (*runs[-1], block)
        else:
            runs.append((block,))
    return runs
