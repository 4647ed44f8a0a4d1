"""Views and permutations on a rectangle of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from memcompile.passes.tiles.planes import NotLocalError, Plane, Planes, Reads, Shape, Span, identity, rank_of, shape_of
from memcompile.passes.tiles.rules import Rule, TileView, integers, source_of_image
from memcompile.solvers.tiling.problem import Reach
from memcompile.step.fxutil import op_name

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Reshaped:
    """How one axis of pixels passes through a view: ``factor`` 2 doubles its length (an inner axis of 2 is merged into it),
    -2 halves it (an inner axis of 2 is split off)."""

    axis: int
    factor: int = 1

    def reads(self, extent: int) -> Reach:
        if self.factor > 1:
            begin = np.arange(extent) // self.factor
            return np.stack([begin, begin + 1], axis=1)
        begin = np.arange(extent) * -self.factor if self.factor < 0 else np.arange(extent)
        return np.stack([begin, begin + max(1, -self.factor)], axis=1)

    def needed(self, span: Span) -> Span:
        """What a range of the result reads."""
        if self.factor > 1:
            return span[0] // self.factor, -(-span[1] // self.factor)
        return (span[0] * -self.factor, span[1] * -self.factor) if self.factor < 0 else span


def _groups(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of both shapes in the smallest groups of equal size, axes of length 1 left out."""
    left = [axis for axis, length in enumerate(source) if length != 1]
    right = [axis for axis, length in enumerate(target) if length != 1]
    found = []
    while left or right:
        a, b = [left.pop(0)] if left else [], [right.pop(0)] if right else []
        while (m := math.prod(source[i] for i in a)) != (n := math.prod(target[i] for i in b)):
            if (m < n and not left) or (m > n and not right):
                raise NotLocalError("a view that changes the number of elements")
            (a if m < n else b).append((left if m < n else right).pop(0))
        found.append((a, b))
    return found


def _reshaped(source: Shape, target: Shape, plane: Plane) -> tuple[Reshaped, Reshaped]:
    """Rows and columns through a view. Raises NotLocalError."""
    groups = _groups(source, target)
    if plane.is_merged or plane.rows is None or plane.columns is None:
        raise NotLocalError("a view of something that is no image")
    pair = next((g for g in groups if plane.rows in g[0] and plane.columns in g[0]), None)
    if pair is not None and pair[0] == [plane.rows, plane.columns] and len(pair[1]) == 1:
        return Reshaped(pair[1][0]), Reshaped(pair[1][0])
    return _through(source, target, groups, plane.rows), _through(source, target, groups, plane.columns)


def _through(source: Shape, target: Shape, groups: list[tuple[list[int], list[int]]], axis: int) -> Reshaped:
    if source[axis] == 1:
        raise NotLocalError("a view of an image of one row or column")
    before, behind = next(group for group in groups if axis in group[0])
    if len(before) == len(behind) == 1:
        return Reshaped(behind[0])
    if len(before) == 2 and len(behind) == 1 and before[0] == axis:
        return Reshaped(behind[0], source[before[1]])
    if len(before) == 1 and len(behind) == 2:
        return Reshaped(behind[0], -target[behind[1]])
    raise NotLocalError("a view that mixes rows or columns with other axes")


def _view_axes(node: fx.Node, planes: Planes) -> tuple[Reshaped, Reshaped]:
    source = source_of_image(node, planes)
    return _reshaped(shape_of(source), shape_of(node), planes[source])


def _view_plane(node: fx.Node, planes: Planes) -> Plane:
    rows, columns = _view_axes(node, planes)
    return Plane(rows.axis, columns.axis)


def _view_reads(node: fx.Node, planes: Planes) -> Reads:
    source, (rows, columns) = source_of_image(node, planes), _view_axes(node, planes)
    if rows.axis == columns.axis:
        return {source: (None, None)}
    shape = shape_of(node)
    return {source: (rows.reads(shape[rows.axis]), columns.reads(shape[columns.axis]))}


def _view_emit(node: fx.Node, tile: TileView) -> Any:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes, spans = _view_axes(node, tile.planes), tile.span(node)
    shape = list(shape_of(node))
    if axes[0].axis == axes[1].axis:
        (rows, columns) = tile.span(source)
        shape[axes[0].axis] = (rows[1] - rows[0]) * (columns[1] - columns[0])
        return tile.call(aten.reshape.default, tile.read(source, rows, columns), shape)
    read = [axis.needed(span) for axis, span in zip(axes, spans, strict=True)]
    for axis, taken in zip(axes, read, strict=True):
        length = taken[1] - taken[0]
        shape[axis.axis] = length * axis.factor if axis.factor > 0 else length // -axis.factor
    value = tile.call(aten.reshape.default, tile.read(source, read[0], read[1]), shape)
    for axis, span, taken in zip(axes, spans, read, strict=True):
        begin = span[0] - taken[0] * axis.factor if axis.factor > 1 else 0
        if axis.factor > 1 and (begin or span[1] - span[0] != shape[axis.axis]):
            value = tile.call(aten.slice.Tensor, value, axis.axis, begin, begin + span[1] - span[0])
    return value


def _order(node: fx.Node) -> list[int]:
    """The source's axis that each axis of the result is."""
    source = node.all_input_nodes[0]
    rank = rank_of(source)
    if op_name(node) == "permute":
        return [axis % rank for axis in integers(node.args[1], rank)]
    first, second = (int(node.args[i]) % rank for i in (1, 2))  # type: ignore[arg-type]
    order = list(range(rank))
    order[first], order[second] = second, first
    return order


def _permute_plane(node: fx.Node, planes: Planes) -> Plane:
    plane, order = planes[source_of_image(node, planes)], _order(node)
    if plane.rows is None or plane.columns is None:
        raise NotLocalError("a permutation of something that is no image")
    return Plane(order.index(plane.rows), order.index(plane.columns))


def _permute_reads(node: fx.Node, planes: Planes) -> Reads:
    plane, shape = planes[node], shape_of(node)
    if plane.is_merged or plane.rows is None or plane.columns is None:
        return {source_of_image(node, planes): (None, None)}
    return {source_of_image(node, planes): (identity(shape[plane.rows]), identity(shape[plane.columns]))}


def _permute_emit(node: fx.Node, tile: TileView) -> Any:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rows, columns = tile.span(node)
    return tile.call(node.target, tile.read(source, rows, columns), *node.args[1:])


_VIEW = Rule(_view_plane, _view_reads, _view_emit)
RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"), _VIEW),
    **dict.fromkeys(("permute", "transpose"), Rule(_permute_plane, _permute_reads, _permute_emit)),
}
