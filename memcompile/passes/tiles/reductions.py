"""Reductions over all pixels, tile by tile: every tile leaves its part, the parts are merged after the last one.

Mean and variance are merged as in Chan, Golub, LeVeque 1979: counts, means and sums of squared differences of the parts.
"""

from __future__ import annotations

import math
from operator import getitem
from typing import Any

import torch
from torch import fx

from memcompile.passes.tiles.planes import shape_of
from memcompile.passes.tiles.rules import TileView, reduced_axes
from memcompile.step.fxutil import op_name

aten = torch.ops.aten


def kept_shape(node: fx.Node) -> list[int]:
    """Shape of one part: the source's, of length 1 along the axes that are gone."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    gone = reduced_axes(node)
    return [1 if axis in gone else length for axis, length in enumerate(shape_of(source))]


def parts_of(node: fx.Node) -> list[tuple[list[int], torch.dtype]]:
    """Shape and type of what a tile leaves: a sum or an extremum; or count, mean and sum of squared differences."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    given = source.meta["val"].dtype
    dtype = torch.promote_types(given, torch.float32) if given.is_floating_point else given
    if op_name(node) == "var_mean":
        shape = kept_shape(node)
        return [([1] * len(shape), dtype), (shape, dtype), (shape, dtype)]
    return [(kept_shape(node), given if op_name(node) in ("amax", "amin") else dtype)]


def emit_parts(node: fx.Node, tile: TileView) -> list[Any]:
    """The parts of one tile."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes = sorted(reduced_axes(node))
    rows, columns = tile.span(source)
    value = tile.read(source, rows, columns)
    if op_name(node) in ("amax", "amin"):
        return [tile.call(node.target, value, axes, True)]
    wide = parts_of(node)[-1][1]
    if wide is not source.meta["val"].dtype:
        value = tile.call(torch.ops.prims.convert_element_type.default, value, wide)
    total = tile.call(aten.sum.dim_IntList, value, axes, True)
    if op_name(node) != "var_mean":
        return [total]
    shape = shape_of(source)
    plane = tile.planes[source]
    inner = math.prod(shape[axis] for axis in axes if axis not in (plane.rows, plane.columns))
    count = inner * (rows[1] - rows[0]) * (columns[1] - columns[0])
    mean = tile.call(aten.div.Tensor, total, count)
    apart = tile.call(aten.sub.Tensor, value, mean)
    squares = tile.call(aten.sum.dim_IntList, tile.call(aten.mul.Tensor, apart, apart), axes, True)
    device = source.meta["val"].device
    counted = tile.call(aten.full.default, [1] * len(shape), float(count), dtype=wide, device=device)
    return [counted, mean, squares]


def merge(graph: fx.Graph, node: fx.Node, parts: list[fx.Node]) -> None:
    """Put the merged parts in the node's place. ``parts``: [tiles, *part], in graph order before the insertion point."""

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        made = graph.call_function(target, args, kwargs)
        values, keywords = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with parts[0].meta["val"].fake_mode:
            made.meta["val"] = target(*values, **keywords)
        return made

    def finished(value: fx.Node, like: torch.Tensor) -> fx.Node:
        if value.meta["val"].dtype is not like.dtype:
            value = call(torch.ops.prims.convert_element_type.default, value, like.dtype)
        return call(aten.reshape.default, value, list(like.shape))

    value = node.meta["val"]
    if op_name(node) != "var_mean":
        if op_name(node) in ("amax", "amin"):
            merged = call(node.target, parts[0], [0])
        else:
            merged = call(aten.sum.dim_IntList, parts[0], [0])
        if op_name(node) == "mean":
            merged = call(aten.div.Tensor, merged, _count(node))
        node.replace_all_uses_with(finished(merged, value))
        return
    counts, means, squares = parts
    total = _count(node)
    mean = call(aten.div.Tensor, call(aten.sum.dim_IntList, call(aten.mul.Tensor, counts, means), [0]), total)
    apart = call(aten.sub.Tensor, means, mean)
    spread = call(aten.mul.Tensor, call(aten.mul.Tensor, apart, apart), counts)
    sums = call(aten.sum.dim_IntList, call(aten.add.Tensor, squares, spread), [0])
    variance = call(aten.div.Tensor, sums, max(total - _correction(node), 0.0))
    for user in list(node.users):
        assert user.target is getitem
        merged = variance if user.args[1] == 0 else mean
        user.replace_all_uses_with(finished(merged, user.meta["val"]))


def _count(node: fx.Node) -> int:
    """Elements that one value of the result is over."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return math.prod(shape_of(source)[axis] for axis in reduced_axes(node))


def _correction(node: fx.Node) -> float:
    given = node.kwargs.get("correction", 1)
    return float(1 if given is None else given)  # type: ignore[arg-type]
