"""Where the rows and columns of an image lie in a tensor, and which pixels of a source a range of pixels reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from memcompile.solvers.tiling.problem import Reach
from memcompile.step.fxutil import tensors_of

Shape = tuple[int, ...]
Span = tuple[int, int]
"""Indices from the first up to the second one."""


class NotLocalError(Exception):
    """The operator cannot run on a rectangle of pixels; the message says why."""


@dataclass(frozen=True, slots=True)
class Plane:
    """The axes of rows and of columns; None: the tensor has none (a vector along the columns has no rows).

    The same axis twice: rows and columns as one axis, row after row.
    """

    rows: int | None
    columns: int | None

    @property
    def is_merged(self) -> bool:
        """Whether one axis holds the pixels of all rows."""
        return self.rows is not None and self.rows == self.columns

    def shifted(self, by: int) -> Plane:
        """The same axes in a tensor with ``by`` more axes before them."""
        return Plane(None if self.rows is None else self.rows + by, None if self.columns is None else self.columns + by)


Planes = dict[fx.Node, Plane]
Reads = dict[fx.Node, tuple[Reach | None, Reach | None]]
"""For each tensor that an operator reads: which rows and columns; None: all of them at once (or it has none)."""


def shape_of(node: fx.Node) -> Shape:
    """Of the (first) tensor that a node yields. Raises NotLocalError for symbolic sizes and for what is no tensor."""
    tensors = tensors_of(node)
    if not tensors:
        raise NotLocalError(f"{node.name} is not a tensor")
    if not all(isinstance(length, int) for length in tensors[0].shape):
        raise NotLocalError("dynamic shapes")
    return tuple(tensors[0].shape)


def rank_of(node: fx.Node) -> int:
    """Axes of the (first) tensor that a node yields."""
    return len(shape_of(node))


def extents(shape: Sequence[int], plane: Plane) -> tuple[int, int]:
    """Rows and columns of a tensor; 1 where it has none. Merged axes count as one row."""
    rows = 1 if plane.rows is None or plane.is_merged else shape[plane.rows]
    return rows, 1 if plane.columns is None else shape[plane.columns]


def is_image(node: fx.Node) -> bool:
    """Whether a tensor is a batch of images, [batch, channels, rows, columns], of more than one row and column."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[2] > 1 and value.shape[3] > 1


def identity(extent: int) -> Reach:
    """Each index reads the same one."""
    index = np.arange(extent)
    return np.stack([index, index + 1], axis=1)


def window(extent: int, stride: int, padding: int, reach: int) -> Reach:
    """Index i reads ``reach`` indices from ``i * stride - padding`` on."""
    begin = np.arange(extent) * stride - padding
    return np.stack([begin, begin + reach], axis=1)


def indexed(indices: Sequence[int] | NDArray[np.int64]) -> Reach:
    """Index i reads ``indices[i]``; what is no hull of such a table in order is widened to one."""
    table = np.asarray(indices, dtype=np.int64)
    begin = np.minimum.accumulate(table[::-1])[::-1]
    return np.stack([begin, np.maximum.accumulate(table) + 1], axis=1)


def composed(outer: Reach | None, inner: Reach | None, extent: int) -> Reach | None:
    """What is read through a tensor of ``extent`` indices that is not stored: padding in between reads nothing."""
    if outer is None or inner is None:
        return None
    begin, end = np.clip(outer[:, 0], 0, extent - 1), np.clip(outer[:, 1], 1, extent)
    return np.stack([inner[begin, 0], inner[end - 1, 1]], axis=1)


def joined(one: Reach | None, other: Reach | None) -> Reach | None:
    """What two reads of the same tensor read together."""
    if one is None or other is None:
        return None
    return np.stack([np.minimum(one[:, 0], other[:, 0]), np.maximum(one[:, 1], other[:, 1])], axis=1)


def hull(reach: Reach | None, span: Span, extent: int) -> Span:
    """The indices of a source of ``extent`` that a range reads, padding left out; never empty."""
    if reach is None:
        return 0, extent
    begin = min(max(0, int(reach[span[0], 0])), extent - 1)
    return begin, max(min(extent, int(reach[span[1] - 1, 1])), begin + 1)
