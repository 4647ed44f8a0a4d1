"""What an inverted residual is: its convolutions, its sizes, and what it reads."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from memcompile.codegen.kernel.pointwise import dtype_of, shape_of

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Convolution:
    """A 2-d convolution of images [N, C, H, W]; pairs are (vertical, horizontal)."""

    node: fx.Node
    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def kernel(self) -> Pair:
        """Taps, down and across."""
        down, across = shape_of(self.weight)[2:]
        return down, across

    @property
    def channels(self) -> Pair:
        """Channels that it reads and yields."""
        return shape_of(self.input)[1], shape_of(self.node)[1]

    @property
    def is_product(self) -> bool:
        """Whether each pixel of the result is a matrix times the same pixel of the input."""
        plain = self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)
        return plain and self.groups == 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel of the result is made of the same channel of the input."""
        return self.groups == self.channels[0] == self.channels[1] > 1


@dataclass(frozen=True, slots=True)
class InvertedResidual:
    """``expand`` -> pointwise -> ``depthwise`` -> pointwise -> ``project`` -> pointwise, with the block's input among the last.

    ``expand`` is None where the depthwise convolution reads the input itself. ``input``: [N, C, H, W]. ``result``: the last
    node. ``nodes``: all that images pass through, in the order of the graph; nobody outside reads them, but for the result.
    ``parameters``: the tensors beside ``input`` that the block reads (weights, vectors with one value a channel, scalars).
    """

    expand: Convolution | None
    depthwise: Convolution
    project: Convolution
    input: fx.Node
    result: fx.Node
    nodes: tuple[fx.Node, ...]
    parameters: tuple[fx.Node, ...]

    @property
    def operands(self) -> tuple[fx.Node, ...]:
        """What the kernel reads."""
        return (self.input, *self.parameters)

    @property
    def channels(self) -> tuple[int, int, int]:
        """Of the input, of the expanded tensor, of the result."""
        return (shape_of(self.input)[1], *self.project.channels)

    @property
    def images(self) -> int:
        """N of the graph; a kernel takes any."""
        return shape_of(self.input)[0]

    @property
    def size(self) -> Pair:
        """Height and width of the input."""
        height, width = shape_of(self.input)[2:]
        return height, width

    @property
    def result_size(self) -> Pair:
        """Height and width of the result."""
        height, width = shape_of(self.result)[2:]
        return height, width

    @property
    def pixels(self) -> int:
        """Pixels of all results."""
        return self.images * math.prod(self.result_size)

    @property
    def taps(self) -> int:
        """Pixels of the expanded tensor that a pixel of the result is made of."""
        return math.prod(self.depthwise.kernel)

    def lines_read(self, lines: int) -> dict[int, list[Pair]]:
        """What ``lines`` pixels of the result below each other read, by the line of the input, counted from their first one:
        (which of them, which tap down)."""
        (step, _), (skip, _) = self.depthwise.stride, self.depthwise.dilation
        found: dict[int, list[Pair]] = {}
        for line, tap in itertools.product(range(lines), range(self.depthwise.kernel[0])):
            found.setdefault(line * step + tap * skip, []).append((line, tap))
        return dict(sorted(found.items()))

    def expansions(self, lines: int) -> float:
        """How often a pixel is expanded for each pixel of the result, ``lines`` of them sharing what they read."""
        height = self.result_size[0]
        return len(self.lines_read(lines)) * self.depthwise.kernel[1] * -(-height // lines) / height

    @property
    def adds_input(self) -> bool:
        """Whether the input is read for the result once more: a residual."""
        first = (self.expand or self.depthwise).node
        return any(self.input in node.all_input_nodes for node in self.nodes if node is not first)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products' operands."""
        return dtype_of(self.project.input)

    def __str__(self) -> str:
        wide = " -> ".join(map(str, self.channels))
        (height, width), (down, across) = self.size, self.depthwise.kernel
        step = "x".join(map(str, dict.fromkeys(self.depthwise.stride)))
        return f"{wide} channels, {height} x {width} pixels, {down} x {across} taps, stride {step}"


def convolution_of(node: fx.Node) -> Convolution | None:
    """The 2-d convolution that a node is, None for others and for transposed ones."""
    if node.target is not torch.ops.aten.convolution.default:
        return None
    image, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
    if transposed or len(shape_of(node)) != 4:
        return None
    steps = _pair(stride), _pair(padding), _pair(dilation)
    return Convolution(node, image, weight, bias, *steps, groups)  # type: ignore[arg-type]


def _pair(value: Any) -> Pair:
    first, *others = value
    return first, others[0] if others else first
