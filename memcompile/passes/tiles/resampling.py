"""Resizing, padding, cropping and adaptive pooling on a rectangle of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from memcompile.passes.tiles.constants import value_of
from memcompile.passes.tiles.planes import NotLocalError, Plane, Planes, Reads, Span, hull, identity, indexed, shape_of
from memcompile.passes.tiles.rules import Rule, TileView, averaged, integers, plain_image, source_of_image, widened
from memcompile.solvers.tiling.problem import Reach
from memcompile.step.fxutil import op_name

aten = torch.ops.aten
MOST_RUNS = 3
"""Rows or columns in so many pieces are copied piece by piece; more are gathered one by one."""


def _indices(node: fx.Node) -> list[NDArray[np.int64] | None]:
    """Row and column that each row and column of a gather reads. Raises NotLocalError unless they are known tables."""
    given = node.args[1]
    if not isinstance(given, list | tuple) or len(given) not in (3, 4) or given[0] is not None or given[1] is not None:
        raise NotLocalError("a gather that is no resizing")
    found: list[NDArray[np.int64] | None] = []
    shape, source = shape_of(node), node.args[0]
    assert isinstance(source, fx.Node)
    for axis, index in enumerate([*given, None][2:4]):
        if index is None:
            found.append(None)
            continue
        table = value_of(index)
        both = axis == 0 and len(given) == 4 and given[3] is not None
        if table is None or table.dtype == bool or table.shape != (shape[2 + axis], *([1] if both else [])):
            raise NotLocalError("a gather that is no resizing")
        extent = shape_of(source)[2 + axis]
        flat = table.flatten().astype(np.int64)
        found.append(np.where(flat < 0, flat + extent, flat))
    return found


def _gather_plane(node: fx.Node, planes: Planes) -> Plane:
    _indices(node)
    return plain_image(node, planes)


def _gather_reads(node: fx.Node, planes: Planes) -> Reads:
    source = source_of_image(node, planes)
    reads = [
        identity(shape_of(node)[2 + axis]) if table is None else indexed(table) for axis, table in enumerate(_indices(node))
    ]
    return {source: (reads[0], reads[1])}


def _gather_emit(node: fx.Node, tile: TileView) -> Any:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    spans = tile.span(node)
    tables = [None if table is None else table[slice(*span)] for table, span in zip(_indices(node), spans, strict=True)]
    read = [
        span if table is None else (int(table.min()), int(table.max()) + 1) for table, span in zip(tables, spans, strict=True)
    ]
    value = tile.read(source, read[0], read[1])
    own = [None if table is None else table - read[axis][0] for axis, table in enumerate(tables)]
    runs = [None if table is None else _runs(table) for table in own]
    if all(found is None or len(found) <= MOST_RUNS for found in runs):
        return _joined(tile, value, runs)
    repeats = [None if table is None else _repeat(table) for table in own]
    if all(repeats) and _is_enlarged_by_library(node):
        return _enlarged(tile, value, spans, repeats, read)  # type: ignore[arg-type]
    given: list[Any] = [None, None]
    for axis, table in enumerate(own):
        if table is None:
            given.append(None)
        else:
            given.append(tile.constant(table[:, None] if axis == 0 and own[1] is not None else table, node))
    return tile.call(aten._unsafe_index.Tensor, value, given if given[-1] is not None else given[:-1])


def _runs(table: NDArray[np.int64]) -> list[Span]:
    """Indices one after the other, as spans."""
    ends = [*(np.flatnonzero(np.diff(table) != 1) + 1), len(table)]
    begins = [0, *ends[:-1]]
    return [(int(table[begin]), int(table[end - 1]) + 1) for begin, end in zip(begins, ends, strict=True)]


def _joined(tile: TileView, value: Any, runs: Sequence[Sequence[Span] | None]) -> Any:
    """A few spans of rows and of columns: one alone is all that was read."""
    for axis, spans in enumerate(runs):
        if spans is not None and len(spans) > 1:
            parts = [tile.call(aten.slice.Tensor, value, 2 + axis, *span) for span in spans]
            value = tile.call(aten.cat.default, parts, 2 + axis)
    return value


def _repeat(table: NDArray[np.int64]) -> tuple[int, int] | None:
    """(r, b): index i of a table in order is (i + b) // r past its first one, r a power of two; None: it is no such table."""
    runs = np.diff([0, *(np.flatnonzero(np.diff(table)) + 1), len(table)])
    repeat = 1 << int(runs.max() - 1).bit_length()
    begin = repeat - int(runs[0]) if len(runs) > 1 else 0
    same = bool(((np.arange(len(table)) + begin) // repeat == table - table[0]).all())
    return (repeat, begin) if same else None


def _is_enlarged_by_library(node: fx.Node) -> bool:
    """On the CPU a gather takes its pixels one number at a time; the library's enlargement copies all channels at once."""
    value: torch.Tensor = node.meta["val"]
    return value.device.type == "cpu" and value.is_floating_point()


def _enlarged(
    tile: TileView, value: Any, spans: Sequence[Span], repeats: Sequence[tuple[int, int]], read: Sequence[Span]
) -> Any:
    """Each pixel as often as the tables say. Powers of two alone: the library divides by them exactly."""
    sizes = [(end - begin) * repeat for (begin, end), (repeat, _) in zip(read, repeats, strict=True)]
    value = tile.call(aten.upsample_nearest2d.default, value, sizes)
    for axis, (span, size, (_, begin)) in enumerate(zip(spans, sizes, repeats, strict=True)):
        if span[1] - span[0] != size:
            value = tile.call(aten.slice.Tensor, value, 2 + axis, begin, begin + span[1] - span[0])
    return value


def _pads(node: fx.Node) -> list[tuple[int, int]]:
    """Before and behind each axis, from the first on."""
    rank = len(shape_of(node))
    flat = integers(node.args[1], 2)
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    return [*[(0, 0)] * (rank - len(pairs)), *reversed(pairs)]


def _image_plane(node: fx.Node, planes: Planes) -> Plane:
    plane = planes[source_of_image(node, planes)]
    if plane.is_merged or plane.rows is None or plane.columns is None:
        raise NotLocalError(f"{op_name(node)} of something that is no image")
    return plane


def _axes(plane: Plane) -> tuple[int, int]:
    assert plane.rows is not None and plane.columns is not None
    return plane.rows, plane.columns


def _pad_reads(node: fx.Node, planes: Planes) -> Reads:
    pads, shape = _pads(node), shape_of(node)
    rows, columns = (identity(shape[axis]) - pads[axis][0] for axis in _axes(planes[node]))
    return {source_of_image(node, planes): (rows, columns)}


def _pad_emit(node: fx.Node, tile: TileView) -> Any:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    pads, axes, spans = _pads(node), _axes(tile.planes[node]), tile.span(node)
    own, read = list(pads), []
    for axis, span in zip(axes, spans, strict=True):
        extent, before = shape_of(source)[axis], pads[axis][0]
        begin, end = span[0] - before, span[1] - before
        taken = min(max(0, begin), extent - 1), max(min(extent, end), 1)
        taken = (taken[0], max(taken[1], taken[0] + 1))
        own[axis] = (taken[0] - begin, end - taken[1])
        read.append(taken)
    value = tile.read(source, read[0], read[1])
    for axis, taken in zip(axes, read, strict=True):
        before, behind = own[axis]
        if min(before, behind) < 0:  # only padding is read
            value = tile.call(aten.slice.Tensor, value, axis, 0, 0)
            own[axis] = before + taken[1] - taken[0] + behind, 0
    flat = [amount for pair in reversed(own) for amount in pair]
    return tile.call(aten.constant_pad_nd.default, value, flat, *node.args[2:]) if any(flat) else value


def slice_of(node: fx.Node) -> tuple[int, int, int]:
    """Axis, first index and step of a ``slice``. Raises NotLocalError."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = shape_of(source)
    axis = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(shape)  # type: ignore[arg-type]
    start = node.args[2] if len(node.args) > 2 else node.kwargs.get("start")
    step = node.args[4] if len(node.args) > 4 else node.kwargs.get("step", 1)
    if not isinstance(start, int | None) or not isinstance(step, int):
        raise NotLocalError("dynamic shapes")
    return axis, slice(start, None, step).indices(shape[axis])[0], step


def _slice_reads(node: fx.Node, planes: Planes) -> Reads:
    axis, start, step = slice_of(node)
    found = []
    for own in _axes(planes[node]):
        reads = identity(shape_of(node)[own])
        if own == axis:
            begin = start + step * np.arange(shape_of(node)[own])
            reads = np.stack([begin, begin + 1], axis=1)
        found.append(reads)
    return {source_of_image(node, planes): (found[0], found[1])}


def _slice_emit(node: fx.Node, tile: TileView) -> Any:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axis, start, step = slice_of(node)
    read: list[Span] = []
    for own, span in zip(_axes(tile.planes[node]), tile.span(node), strict=True):
        read.append((start + step * span[0], start + step * (span[1] - 1) + 1) if own == axis else span)
    value = tile.read(source, read[0], read[1])
    if axis in _axes(tile.planes[node]):
        return tile.call(aten.slice.Tensor, value, axis, 0, 2**63 - 1, step) if step > 1 else value
    return tile.call(aten.slice.Tensor, value, *node.args[1:], **node.kwargs)


def _bins(extent: int, source: int) -> Reach:
    """What each index of adaptive pooling reads (``torch/_decomp``: floor to ceiling)."""
    index = np.arange(extent)
    return np.stack([index * source // extent, -(-(index + 1) * source // extent)], axis=1)


def _bins_of(node: fx.Node) -> tuple[Reach, Reach]:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    given, made = shape_of(source), shape_of(node)
    return _bins(made[2], given[2]), _bins(made[3], given[3])


def _adaptive_reads(node: fx.Node, planes: Planes) -> Reads:
    return {source_of_image(node, planes): _bins_of(node)}


def _adaptive_emit(node: fx.Node, tile: TileView) -> Any:
    """Bins of equal size are ordinary pooling; others are gathered, the shorter ones masked."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    is_max, spans, extents = "max" in op_name(node), tile.span(node), shape_of(source)[2:]
    bins = [bins[span[0] : span[1]] for bins, span in zip(_bins_of(node), spans, strict=True)]
    read = [(int(part[0, 0]), int(part[-1, 1])) for part in bins]
    value = tile.read(source, *(hull(part, (0, len(part)), extent) for part, extent in zip(bins, extents, strict=True)))
    value = value if is_max else widened(tile, value, node)
    counts = [part[:, 1] - part[:, 0] for part in bins]
    for axis, part in enumerate(bins):
        lengths = counts[axis]
        within = np.arange(lengths.max())[None, :] < lengths[:, None]
        table = part[:, :1] - read[axis][0] + np.minimum(np.arange(lengths.max())[None, :], lengths[:, None] - 1)
        given = [None, None, *([None] if axis else []), tile.constant(table, source)]
        value = tile.call(aten._unsafe_index.Tensor, value, given)
        if is_max:
            value = tile.call(aten.amax.default, value, [3 + axis])
            continue
        if not within.all():
            outside = tile.constant(~(within[:, :, None] if axis == 0 else within), source)
            value = tile.call(aten.masked_fill.Scalar, value, outside, 0)
        value = tile.call(aten.sum.dim_IntList, value, [3 + axis])
    if is_max:
        return value, None
    return averaged(tile, value, counts[0], counts[1], node)


_GATHER = Rule(_gather_plane, _gather_reads, _gather_emit)
_ADAPTIVE = Rule(plain_image, _adaptive_reads, _adaptive_emit)
RULES: dict[str, Rule] = {
    **dict.fromkeys(("_unsafe_index", "index"), _GATHER),
    "constant_pad_nd": Rule(_image_plane, _pad_reads, _pad_emit),
    "slice": Rule(_image_plane, _slice_reads, _slice_emit),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _ADAPTIVE),
}
