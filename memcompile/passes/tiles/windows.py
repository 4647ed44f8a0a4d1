"""Convolutions and pooling on a rectangle of pixels: windows that slide over their source, padding where the image ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from memcompile.passes.tiles.planes import NotLocalError, Plane, Planes, Reads, Span, hull, shape_of, window
from memcompile.passes.tiles.rules import Rule, TileView, averaged, integers, plain_image, source_of_image, widened
from memcompile.solvers.tiling.problem import Reach
from memcompile.step.fxutil import op_name

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Windows:
    """One axis of a convolution or of pooling; ``reach``: indices from the first to behind the last that a window reads."""

    size: int
    stride: int
    padding: int
    dilation: int

    @property
    def reach(self) -> int:
        return (self.size - 1) * self.dilation + 1


class Transposed(Windows):
    """One axis of a transposed convolution: index i of the source adds to ``i * stride - padding`` and what follows."""

    def reads(self, extent: int) -> Reach:
        """What index i of the result gets something from."""
        index = np.arange(extent) + self.padding
        return np.stack([-(-(index - self.reach + 1) // self.stride), index // self.stride + 1], axis=1)


def _argument(node: fx.Node, position: int, default: object) -> object:
    return node.args[position] if len(node.args) > position else default


def is_transposed(node: fx.Node) -> bool:
    """Whether a convolution is a transposed one."""
    return bool(_argument(node, 6, False))


def _convolution_axes(node: fx.Node) -> tuple[Windows, Windows]:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    sizes = shape_of(weight)[2:]
    stride, padding, dilation = (integers(node.args[position], 2) for position in (3, 4, 5))
    kind = Transposed if is_transposed(node) else Windows
    rows, columns = (kind(sizes[i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    return rows, columns


def _pool_axes(node: fx.Node) -> tuple[Windows, Windows]:
    sizes = integers(node.args[1], 2)
    stride = integers(_argument(node, 2, None) or sizes, 2)
    padding = integers(_argument(node, 3, 0), 2)
    dilation = integers(_argument(node, 4, 1), 2) if "max" in op_name(node) else (1, 1)
    rows, columns = (Windows(sizes[i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    return rows, columns


def _reads(node: fx.Node, axes: Sequence[Windows]) -> tuple[Reach, Reach]:
    found = []
    for axis, windows in enumerate(axes):
        extent = shape_of(node)[2 + axis]
        if isinstance(windows, Transposed):
            found.append(windows.reads(extent))
        else:
            found.append(window(extent, windows.stride, windows.padding, windows.reach))
    return found[0], found[1]


def _convolution_plane(node: fx.Node, planes: Planes) -> Plane:
    if any(operand in planes for operand in node.all_input_nodes[1:]):
        raise NotLocalError("the weight is an image")
    return plain_image(node, planes)


def _convolution_reads(node: fx.Node, planes: Planes) -> Reads:
    found: Reads = dict.fromkeys(node.all_input_nodes, (None, None))
    found[source_of_image(node, planes)] = _reads(node, _convolution_axes(node))
    return found


def _pool_reads(node: fx.Node, planes: Planes) -> Reads:
    return {source_of_image(node, planes): _reads(node, _pool_axes(node))}


def _padding(reach: Reach, span: Span, read: Span) -> tuple[int, int]:
    """How many indices before and behind those that are read a range of windows takes; less than none: it takes fewer."""
    return read[0] - int(reach[span[0], 0]), int(reach[span[1] - 1, 1]) - read[1]


def _padded(node: fx.Node, tile: TileView, reads: tuple[Reach, Reach], fill: float) -> tuple[Any, list[int]]:
    """The pixels that a rectangle reads, padded where the image ends, and the padding that is left to the operator.

    An axis with as much padding on both sides, as in a tile as wide as the image, leaves it to the operator.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    extents, spans = shape_of(source)[2:], tile.span(node)
    read = [hull(reads[axis], spans[axis], extents[axis]) for axis in (0, 1)]
    sides = [_padding(reads[axis], spans[axis], read[axis]) for axis in (0, 1)]
    value = tile.read(source, *read)
    left = [before if before == behind >= 0 else 0 for before, behind in sides]
    pads: list[int] = []
    for axis, (before, behind) in enumerate(sides):
        if min(before, behind) < 0:  # only padding is read
            value = tile.call(aten.slice.Tensor, value, 2 + axis, 0, 0)
            before, behind = before + 1 + behind, 0
        pads = [*((0, 0) if before == behind else (before, behind)), *pads]
    return tile.call(aten.constant_pad_nd.default, value, pads, fill) if any(pads) else value, left


def _convolution_emit(node: fx.Node, tile: TileView) -> Any:
    source, weight, bias = node.args[:3]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    axes = _convolution_axes(node)
    reads = _reads(node, axes)
    parameters = (tile.whole(weight), tile.whole(bias) if isinstance(bias, fx.Node) else None)
    stride, dilation, groups = node.args[3], node.args[5], node.args[8]
    if is_transposed(node):
        return _transposed(node, tile, reads, parameters)
    value, padding = _padded(node, tile, reads, 0.0)
    return tile.call(aten.convolution.default, value, *parameters, stride, padding, dilation, False, [0, 0], groups)


def _transposed(node: fx.Node, tile: TileView, reads: tuple[Reach, Reach], parameters: tuple[Any, Any]) -> Any:
    """All that the pixels read add to, without the part outside of the rectangle."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes, spans = _convolution_axes(node), tile.span(node)
    extents = shape_of(source)[2:]
    read = [hull(reads[axis], spans[axis], extents[axis]) for axis in (0, 1)]
    begins, more = [], []
    for axis, windows in enumerate(axes):
        begins.append(spans[axis][0] - (read[axis][0] * windows.stride - windows.padding))
        full = (read[axis][1] - read[axis][0] - 1) * windows.stride + windows.reach
        more.append(max(0, begins[axis] + spans[axis][1] - spans[axis][0] - full))
    if any(extra >= max(windows.stride, windows.dilation) for extra, windows in zip(more, axes, strict=True)):
        raise NotLocalError("a transposed convolution with gaps")
    value = tile.call(
        aten.convolution.default,
        tile.read(source, *read),
        *parameters,
        node.args[3],
        [0, 0],
        node.args[5],
        True,
        more,
        node.args[8],
    )
    for axis, begin in enumerate(begins):
        value = tile.call(aten.slice.Tensor, value, 2 + axis, begin, begin + spans[axis][1] - spans[axis][0])
    return value


def _max_pool_emit(node: fx.Node, tile: TileView) -> Any:
    """Explicit padding: rows that a rounded-up size adds lie behind it."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    lowest = -math.inf if value.dtype.is_floating_point else torch.iinfo(value.dtype).min
    rows, columns = _pool_axes(node)
    taken, padding = _padded(node, tile, _reads(node, (rows, columns)), lowest)
    if any(2 * left > windows.size for left, windows in zip(padding, (rows, columns), strict=True)):
        raise NotLocalError("a window that lies in the padding")
    return tile.call(
        node.target,
        taken,
        [rows.size, columns.size],
        [rows.stride, columns.stride],
        padding,
        [rows.dilation, columns.dilation],
        False,
    )


def _average_emit(node: fx.Node, tile: TileView) -> Any:
    """The sum of each window over the number of pixels that the whole image has there."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes, spans = _pool_axes(node), tile.span(node)
    taken, padding = _padded(node, tile, _reads(node, axes), 0.0)
    sizes, strides = [axis.size for axis in axes], [axis.stride for axis in axes]
    counted, fixed = bool(_argument(node, 5, True)), _argument(node, 6, None)
    counts = [_counts(axis, spans[i], shape_of(source)[2 + i], counted) for i, axis in enumerate(axes)]
    if fixed is not None or all((count == axis.size).all() for count, axis in zip(counts, axes, strict=True)):
        return tile.call(aten.avg_pool2d.default, taken, sizes, strides, padding, False, True, fixed)
    total = tile.call(aten.avg_pool2d.default, widened(tile, taken, node), sizes, strides, padding, False, True, 1)
    return averaged(tile, total, counts[0], counts[1], node)


def _counts(axis: Windows, span: Span, extent: int, counted: bool) -> Any:
    """Pixels along an axis that each window's average is over: with the padding (``counted``), or without."""
    begin = np.arange(*span) * axis.stride - axis.padding
    end = np.minimum(begin + axis.size, extent + axis.padding)
    return end - begin if counted else np.minimum(end, extent) - np.maximum(begin, 0)


_MAX_POOL = Rule(plain_image, _pool_reads, _max_pool_emit)
RULES: dict[str, Rule] = {
    "convolution": Rule(_convolution_plane, _convolution_reads, _convolution_emit),
    "_low_memory_max_pool_with_offsets": _MAX_POOL,
    "max_pool2d_with_indices": _MAX_POOL,
    "avg_pool2d": Rule(plain_image, _pool_reads, _average_emit),
}
