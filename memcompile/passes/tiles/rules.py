"""How an ATen operator of an inference graph runs on a rectangle of pixels.

Each rule says where rows and columns of the result lie (``plane``), which pixels of the operands it reads (``reads``), and how
it is called for a rectangle (``emit``). Graphs are those that Inductor lowers: normalisations, resizing and activations are
taken apart there already, so that few rules do for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import getitem
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import fx

from memcompile.passes.tiles.planes import NotLocalError, Plane, Planes, Reads, Span, identity, rank_of, shape_of
from memcompile.step.fxutil import op_name


class TileView(Protocol):
    """What a rule calls to run its operator on one rectangle."""

    planes: Planes

    def span(self, node: fx.Node) -> tuple[Span, Span]:
        """Rows and columns of ``node`` that are made."""

    def read(self, node: fx.Node, rows: Span, columns: Span) -> Any:
        """Just those pixels of a tensor (along an axis that it lacks, or that has length 1, everything)."""

    def whole(self, node: fx.Node) -> Any:
        """All of a tensor."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """An operator called on such values."""

    def constant(self, values: NDArray[Any], like: fx.Node) -> Any:
        """A small table of numbers, on the device of ``like``."""


@dataclass(frozen=True, slots=True)
class Rule:
    plane: Callable[[fx.Node, Planes], Plane]
    reads: Callable[[fx.Node, Planes], Reads]
    emit: Callable[[fx.Node, TileView], Any]


def sources(node: fx.Node, planes: Planes) -> list[fx.Node]:
    """Operands that have rows or columns."""
    return [source for source in node.all_input_nodes if source in planes]


def source_of_image(node: fx.Node, planes: Planes) -> fx.Node:
    """The first operand, an image. Raises NotLocalError when it is none."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or planes.get(source) is None:
        raise NotLocalError(f"{op_name(node)} reads no image")
    return source


def plain_image(node: fx.Node, planes: Planes) -> Plane:
    """The plane of an operator on images [batch, channels, rows, columns]."""
    if planes[source_of_image(node, planes)] != Plane(2, 3) or rank_of(node) != 4:
        raise NotLocalError(f"{op_name(node)} of another layout than batch, channels, rows, columns")
    return Plane(2, 3)


def aligned(operand: fx.Node, node: fx.Node, plane: Plane) -> Plane | None:
    """The plane of a pointwise operator's operand: the axes of its result, counted from the last; None: it has no such axis."""
    shape, missing = shape_of(operand), rank_of(node) - rank_of(operand)

    def own(axis: int | None) -> int | None:
        return None if axis is None or axis < missing or shape[axis - missing] == 1 else axis - missing

    found = Plane(own(plane.rows), own(plane.columns))
    return None if found == Plane(None, None) else found


def _pointwise_plane(node: fx.Node, planes: Planes) -> Plane:
    found: set[Plane] = set()
    for source in sources(node, planes):
        plane = planes[source].shifted(rank_of(node) - rank_of(source))
        if shape_of(source) and plane.rows is not None and plane.columns is not None:
            found.add(plane)
    if len(found) != 1:
        raise NotLocalError(f"{op_name(node)} reads no image" if not found else f"{op_name(node)} reads images of two layouts")
    (plane,) = found
    for operand in node.all_input_nodes:
        wanted = aligned(operand, node, plane)
        if wanted is not None and planes.setdefault(operand, wanted) != wanted:
            raise NotLocalError(f"{operand.name} is read in two ways")
    return plane


def _pointwise_reads(node: fx.Node, planes: Planes) -> Reads:
    plane, shape = planes[node], shape_of(node)
    found: Reads = {}
    for operand in node.all_input_nodes:
        own = aligned(operand, node, plane)
        rows = own is not None and own.rows is not None
        columns = own is not None and own.columns is not None
        if plane.is_merged:
            found[operand] = (None, None)
            continue
        found[operand] = (
            identity(shape[plane.rows]) if rows and plane.rows is not None else None,
            identity(shape[plane.columns]) if columns and plane.columns is not None else None,
        )
    return found


def _pointwise_emit(node: fx.Node, tile: TileView) -> Any:
    rows, columns = tile.span(node)
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda operand: tile.read(operand, rows, columns))
    return tile.call(node.target, *args, **kwargs)


def _getitem_plane(node: fx.Node, planes: Planes) -> Plane:
    return planes[source_of_image(node, planes)]


def _getitem_reads(node: fx.Node, planes: Planes) -> Reads:
    source = source_of_image(node, planes)
    shape, plane = shape_of(node), planes[source]
    if plane.is_merged or plane.rows is None or plane.columns is None:
        raise NotLocalError("a part of something that is no image")
    return {source: (identity(shape[plane.rows]), identity(shape[plane.columns]))}


def _getitem_emit(node: fx.Node, tile: TileView) -> Any:
    source, index = node.args
    assert isinstance(source, fx.Node)
    rows, columns = tile.span(node)
    return tile.call(getitem, tile.read(source, rows, columns), index)


def _along_plane(position: int, default: int = 0) -> Callable[[fx.Node, Planes], Plane]:
    """Operators that work along axes other than rows and columns, named by an argument."""

    def plane_of(node: fx.Node, planes: Planes) -> Plane:
        found = {planes[source] for source in sources(node, planes)}
        if len(found) != 1 or any(operand not in planes for operand in node.all_input_nodes):
            raise NotLocalError(f"{op_name(node)} joins images with something else")
        (plane,) = found
        axes = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
        rank = rank_of(node.all_input_nodes[0])
        if any(axis % rank in (plane.rows, plane.columns) for axis in integers(axes, 1)):
            raise NotLocalError(f"{op_name(node)} works along rows or columns")
        return plane

    return plane_of


def _along_reads(node: fx.Node, planes: Planes) -> Reads:
    plane = planes[node]
    if plane.is_merged or plane.rows is None or plane.columns is None:
        raise NotLocalError(f"{op_name(node)} of something that is no image")
    found: Reads = {}
    for source in node.all_input_nodes:
        shape = shape_of(source)
        found[source] = identity(shape[plane.rows]), identity(shape[plane.columns])
    return found


def _reduction_plane(node: fx.Node, planes: Planes) -> Plane:
    """A reduction over other axes than rows and columns."""
    source = source_of_image(node, planes)
    plane, rank = planes[source], rank_of(source)
    gone = reduced_axes(node)
    if plane.is_merged or plane.rows in gone or plane.columns in gone:
        raise NotLocalError(f"{op_name(node)} over rows or columns")
    if rank_of(node) == rank:
        return plane
    return Plane(
        None if plane.rows is None else plane.rows - sum(axis < plane.rows for axis in gone),
        None if plane.columns is None else plane.columns - sum(axis < plane.columns for axis in gone),
    )


def reduced_axes(node: fx.Node) -> set[int]:
    """Axes that a reduction sums over."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank = rank_of(source)
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if axes is None or axes == []:
        return set(range(rank))
    return {axis % rank for axis in integers(axes, 1)}


def _reduction_reads(node: fx.Node, planes: Planes) -> Reads:
    source = source_of_image(node, planes)
    shape, plane = shape_of(source), planes[source]
    assert plane.rows is not None and plane.columns is not None
    return {source: (identity(shape[plane.rows]), identity(shape[plane.columns]))}


POINTWISE = Rule(_pointwise_plane, _pointwise_reads, _pointwise_emit)
GETITEM = Rule(_getitem_plane, _getitem_reads, _getitem_emit)
REDUCTIONS = frozenset({"sum", "mean", "amax", "amin", "var_mean", "var", "prod", "any", "all"})
RULES: dict[str, Rule] = {
    **dict.fromkeys(("clone", "convert_element_type", "_to_copy", "alias", "detach"), POINTWISE),
    "cat": Rule(_along_plane(1), _along_reads, _pointwise_emit),
    **dict.fromkeys(("_softmax", "_log_softmax"), Rule(_along_plane(1), _along_reads, _pointwise_emit)),
    **dict.fromkeys(("split", "split_with_sizes"), Rule(_along_plane(2), _along_reads, _pointwise_emit)),
    **dict.fromkeys(REDUCTIONS, Rule(_reduction_plane, _reduction_reads, _pointwise_emit)),
}


def integers(values: object, count: int) -> tuple[int, ...]:
    """A list of ``count`` integers, one number standing for all."""
    listed = list(values) if isinstance(values, list | tuple) else [values]
    numbers = [value for value in listed if isinstance(value, int)]
    if len(numbers) != len(listed):
        raise NotLocalError("dynamic shapes")
    return tuple(numbers * count) if len(numbers) == 1 else tuple(numbers)


def widened(tile: TileView, value: Any, node: fx.Node) -> Any:
    """Pixels of a result's type as sums of them are kept: in single precision at least."""
    dtype = node.meta["val"].dtype
    wide = torch.promote_types(dtype, torch.float32)
    return value if dtype is wide else tile.call(torch.ops.prims.convert_element_type.default, value, wide)


def averaged(tile: TileView, total: Any, rows: NDArray[Any], columns: NDArray[Any], node: fx.Node) -> Any:
    """Sums, as `widened`, over windows of so many rows and columns -> means of the result's type. The counts are whole numbers
    of the sums' type: nothing is rounded before the division."""
    dtype, convert = node.meta["val"].dtype, torch.ops.prims.convert_element_type.default
    wide = torch.promote_types(dtype, torch.float32)
    counts = tile.call(convert, tile.constant(rows[:, None] * columns[None, :], node), wide)
    means = tile.call(torch.ops.aten.div.Tensor, total, counts)
    return means if dtype is wide else tile.call(convert, means, dtype)
