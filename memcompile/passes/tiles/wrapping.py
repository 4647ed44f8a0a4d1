"""Circular padding and other copies of parts of an image around it, as one gather.

``F.pad(mode="circular")`` and ``nn.Conv2d(padding_mode="circular")`` reach the compiler as a chain of ``slice``, ``copy`` and
``slice_scatter`` on an empty tensor, each link as large as the image and none of them an operator that runs on pixels. What the
chain does is read off by running it on the indices of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from memcompile.passes.tiles.bodies import add_call
from memcompile.passes.tiles.planes import NotLocalError, shape_of
from memcompile.passes.tiles.resampling import slice_of
from memcompile.step.fxutil import op_name

aten = torch.ops.aten
_EMPTY = frozenset({"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"})
UNWRITTEN = -1


@dataclass(frozen=True, slots=True)
class _Moved:
    """Which pixel of ``source`` each pixel of an image is: ``[rows, columns]``, row after row; ``UNWRITTEN``: none."""

    source: fx.Node | None
    pixels: NDArray[np.int64]


def gather_copies(graph: fx.Graph) -> bool:
    """Rewrite such chains in place; whether there was one."""
    ends = [n for n in graph.nodes if op_name(n) == "slice_scatter" and any(op_name(user) not in _LINKS for user in n.users)]
    found = [(node, tables) for node in ends if (tables := _tables(node)) is not None]
    for node, (source, rows, columns) in found:
        _replace(node, source, rows, columns)
    if found:
        graph.eliminate_dead_code()
    return bool(found)


_LINKS = frozenset({"slice_scatter", "slice", "copy"})


def _tables(node: fx.Node) -> tuple[fx.Node, NDArray[np.int64], NDArray[np.int64]] | None:
    """The image that a chain copies from, and the row and the column of it that each row and column is; None: it is more than
    that."""
    try:
        moved = _moved(node, {})
    except NotLocalError:
        return None
    source, pixels = moved.source, moved.pixels
    if source is None or (pixels == UNWRITTEN).any() or shape_of(source)[:2] != shape_of(node)[:2]:
        return None
    rows, columns = np.divmod(pixels, shape_of(source)[3])
    if (rows != rows[:, :1]).any() or (columns != columns[:1]).any():
        return None
    height, width = shape_of(source)[2:]
    tables = rows[:, 0], columns[0]
    wraps = all(_wraps(table, extent) for table, extent in zip(tables, (height, width), strict=True))
    return (source, *tables) if wraps else None


def _wraps(table: NDArray[np.int64], extent: int) -> bool:
    """Whether each index reads the one after that of the index before, the first after the last."""
    return bool((table == (table[0] + np.arange(len(table))) % extent).all())


def _moved(node: fx.Node, known: dict[fx.Node, _Moved]) -> _Moved:
    """What a link of a chain holds. Raises NotLocalError where it is of more than one image, or of none."""
    if node not in known:
        known[node] = _link(node, known)
    return known[node]


def _link(node: fx.Node, known: dict[fx.Node, _Moved]) -> _Moved:
    shape = shape_of(node)
    if len(shape) != 4:
        raise NotLocalError(f"{node.name} is no image")
    given = [argument for argument in node.args if isinstance(argument, fx.Node)]
    name = op_name(node)
    if name in _EMPTY:
        return _Moved(None, np.full(shape[2:], UNWRITTEN))
    if name == "slice" and slice_of(node)[0] > 1:
        moved = _moved(given[0], known)
        return _Moved(moved.source, moved.pixels[_cut(node, shape)])
    if name == "copy" and len(given) == 2 and shape_of(given[1]) == shape and _dtype(given[1]) is _dtype(node):
        return _moved(given[1], known)
    if name == "slice_scatter" and _dtype(given[1]) is _dtype(node):
        return _scattered(node, _moved(given[0], known), _moved(given[1], known), shape_of(given[1]))
    return _Moved(node, np.arange(shape[2] * shape[3]).reshape(shape[2:]))


def _scattered(node: fx.Node, base: _Moved, part: _Moved, shape: tuple[int, ...]) -> _Moved:
    """``base`` with ``part`` written over a slice of it."""
    given = list(node.args[2:])
    axis, start, end, step = cast("list[Any]", given + [0, None, None, 1][len(given) :])
    sources = {moved.source for moved in (base, part)} - {None}
    if axis % 4 < 2 or len(sources) > 1 or shape[:2] != shape_of(node)[:2] or node.kwargs:
        raise NotLocalError(f"{node.name} is of several images")
    pixels = base.pixels.copy()
    pixels[_sliced(axis % 4, start, end, step)] = part.pixels
    return _Moved(next(iter(sources), None), pixels)


def _cut(node: fx.Node, shape: tuple[int, ...]) -> tuple[slice, ...]:
    axis, start, step = slice_of(node)
    return _sliced(axis, start, start + step * shape[axis], step)


def _sliced(axis: int, start: Any, end: Any, step: Any) -> tuple[slice, ...]:
    """Of rows (axis 2) or columns."""
    return (slice(None),) * (axis - 2) + (slice(start, end, step),)


def _dtype(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def _replace(node: fx.Node, source: fx.Node, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
    value = node.meta["val"]

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return add_call(node.graph, value.fake_mode, target, args, kwargs, node)

    def table(indices: NDArray[np.int64], extent: int) -> fx.Node:
        iota = torch.ops.prims.iota.default
        settings = {"step": 1, "dtype": torch.int64, "device": value.device, "requires_grad": False}
        return call(aten.remainder.Scalar, call(iota, len(indices), start=int(indices[0]), **settings), extent)

    with node.graph.inserting_before(node):
        height, width = shape_of(source)[2:]
        down = call(aten.unsqueeze.default, table(rows, height), -1)
        gathered = call(aten._unsafe_index.Tensor, source, [None, None, down, table(columns, width)])
    if gathered.meta["val"].stride() == value.stride():
        node.replace_all_uses_with(gathered)
