"""How the rows of a tensor pass through an ATen operator.

An operator is *row-local* when each row of its result depends on the same row of its operands alone (and on operands that it
takes whole, such as weights): it can run on a block of rows. ``RowAxes`` says where the rows of a tensor lie. ``demanded`` goes
from a result to the operands, ``carried`` from an operand to the result, ``contracted`` finds operators that sum over the
rows, and ``resized`` gives an operator's arguments for a block. All sizes are plain integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx

from memcompile.step.fxutil import op_name, tensors_of

Shape = tuple[int, ...]


class NotRowLocalError(Exception):
    """The operator cannot run on a block of rows; the message says why."""


@dataclass(frozen=True, slots=True)
class RowAxes:
    """Axes ``first`` to ``last`` hold the rows, the first one outermost; each row takes ``each`` indices next to each other."""

    first: int
    last: int
    each: int = 1

    def shifted(self, by: int) -> RowAxes:
        """The same axes in a tensor with ``by`` more axes before them."""
        return RowAxes(self.first + by, self.last + by, self.each)


Demands = dict[fx.Node, RowAxes | None]
"""For each tensor that an operator reads: where its rows lie; None: it is taken whole."""


def shape_of(node: fx.Node) -> Shape:
    """Of the (first) tensor that a node yields. Raises NotRowLocalError for symbolic sizes and for what is no tensor."""
    tensors = tensors_of(node)
    if not tensors:
        raise NotRowLocalError(f"{node.name} is not a tensor")
    if not all(isinstance(length, int) for length in tensors[0].shape):
        raise NotRowLocalError("dynamic shapes")
    return tuple(tensors[0].shape)


def normal(shape: Sequence[int], first: int, last: int, each: int) -> RowAxes:
    """With all axes of length 1 before the rows, so that equal rows are equal values."""
    while first > 0 and shape[first - 1] == 1:
        first -= 1
    return RowAxes(first, last, each)


def through_view(source: Sequence[int], rows: RowAxes, target: Sequence[int]) -> RowAxes:
    """Where the rows of a contiguous tensor lie after a view."""
    before = math.prod(source[: rows.first])
    total = math.prod(source[rows.first : rows.last + 1]) // rows.each
    first, size = 0, 1
    while size < before and first < len(target):
        size *= target[first]
        first += 1
    if size != before:
        raise NotRowLocalError("a view merges other axes with the rows")
    last, size = first, 1
    while last < len(target):
        size *= target[last]
        if size >= total:
            break
        last += 1
    if last == len(target) or size % total:
        raise NotRowLocalError("a view splits the rows in another way")
    return normal(target, first, last, size // total)


def demanded(node: fx.Node, out: RowAxes) -> Demands:
    """Where the rows of a node's operands lie, given those of its result. Raises NotRowLocalError."""
    return _rule(node).demand(node, out)


def carried(node: fx.Node, source: fx.Node, rows: RowAxes, total: int) -> RowAxes:
    """Where the rows of a node's result lie, given those of one operand. Raises NotRowLocalError."""
    shape = shape_of(node)
    for first in range(len(shape)):
        size = 1
        for last in range(first, len(shape)):
            size *= shape[last]
            if size % total:
                continue
            candidate = normal(shape, first, last, size // total)
            try:
                if demanded(node, candidate).get(source) == rows:
                    return candidate
            except NotRowLocalError:
                pass
            break
    raise NotRowLocalError(f"{op_name(node)} mixes rows")


def contracted(node: fx.Node, source: fx.Node, rows: RowAxes) -> Demands:
    """For an operator that sums over the rows of ``source``: the rows of all its operands. Raises NotRowLocalError."""
    name = op_name(node)
    if name == "mm":
        left, right = node.args
        wanted: Demands = {left: RowAxes(1, 1, rows.each), right: RowAxes(0, 0, rows.each)}  # type: ignore[dict-item]
        if left is not right and wanted.get(source) == rows:
            return wanted
    if name == "sum" and isinstance(node.args[0], fx.Node):
        dims = node.args[1] if len(node.args) > 1 else None
        axes = _axes(dims, len(shape_of(source)))
        if set(range(rows.first, rows.last + 1)) <= axes:
            return {source: rows}
    raise NotRowLocalError(f"{name} mixes rows")


def resized(node: fx.Node, rows: RowAxes, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of a node for ``count`` rows."""
    return _rule(node).resize(node, rows, count)


def block_shape(shape: Sequence[int], rows: RowAxes, count: int) -> Shape:
    """The shape of a block of ``count`` rows."""
    block = list(shape)
    block[rows.first : rows.last] = [1] * (rows.last - rows.first)
    block[rows.last] = count * rows.each
    return tuple(block)


@dataclass(frozen=True, slots=True)
class _Rule:
    demand: Callable[[fx.Node, RowAxes], Demands]
    resize: Callable[[fx.Node, RowAxes, int], tuple[tuple[Any, ...], dict[str, Any]]] = lambda node, _rows, _count: (
        node.args,
        dict(node.kwargs),
    )


def _rule(node: fx.Node) -> _Rule:
    if node.op != "call_function":
        raise NotRowLocalError(f"{node.name} is an input")
    if node.target is getitem:
        return _Rule(_getitem)
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        raise NotRowLocalError(f"{op_name(node)} is not an operator that runs on rows")
    if torch.Tag.nondeterministic_seeded in node.target.tags and op_name(node) not in _ATTENTION:
        raise NotRowLocalError(f"{op_name(node)} draws random numbers")
    rule = _RULES.get(op_name(node))
    if rule is None and torch.Tag.pointwise in node.target.tags:
        rule = _POINTWISE
    if rule is None:
        raise NotRowLocalError(f"{op_name(node)} is not known to run on rows")
    return rule


def _operands(node: fx.Node) -> list[fx.Node]:
    return [operand for operand in node.all_input_nodes if tensors_of(operand)]


def _aligned(operand: fx.Node, out: RowAxes, out_shape: Shape) -> RowAxes | None:
    """The rows of an operand that broadcasts to a result."""
    shape = shape_of(operand)
    missing = len(out_shape) - len(shape)
    axes = range(out.first, out.last + 1)
    lengths = [shape[axis - missing] if axis >= missing else 1 for axis in axes]
    if all(length == out_shape[axis] for length, axis in zip(lengths, axes, strict=True)):
        return normal(shape, max(0, out.first - missing), out.last - missing, out.each)
    if all(length == 1 for length in lengths):
        return None
    raise NotRowLocalError(f"{operand.name} is the same for some of the rows only")


def _pointwise(node: fx.Node, out: RowAxes) -> Demands:
    shape = shape_of(node)
    return {operand: _aligned(operand, out, shape) for operand in _operands(node)}


def _getitem(node: fx.Node, out: RowAxes) -> Demands:
    source, index = node.args
    assert isinstance(source, fx.Node)
    if op_name(source) in _ATTENTION and index not in (0, 1):
        raise NotRowLocalError("random state of an attention")
    return {source: out}


def _view(node: fx.Node, out: RowAxes) -> Demands:
    (source,) = _operands(node)
    if len(node.args) < 2:
        raise NotRowLocalError(f"{op_name(node)} depends on all sizes")
    return {source: through_view(shape_of(node), out, shape_of(source))}


def _resize_view(node: fx.Node, rows: RowAxes, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (node.args[0], list(block_shape(shape_of(node), rows, count))), dict(node.kwargs)


def _resize_full(node: fx.Node, rows: RowAxes, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (list(block_shape(shape_of(node), rows, count)), *node.args[1:]), dict(node.kwargs)


def _permute(node: fx.Node, out: RowAxes) -> Demands:
    (source,) = _operands(node)
    order = _order(node, len(shape_of(source)))
    axes = [order[axis] for axis in range(out.first, out.last + 1)]
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise NotRowLocalError("a permutation takes the axes of the rows apart")
    return {source: normal(shape_of(source), axes[0], axes[-1], out.each)}


def _order(node: fx.Node, rank: int) -> list[int]:
    match op_name(node):
        case "permute":
            return [axis % rank for axis in _ints(node.args[1])]
        case "transpose":
            order = list(range(rank))
            a, b = (axis % rank for axis in _ints(node.args[1:3]))
            order[a], order[b] = order[b], order[a]
            return order
        case _:
            return list(range(rank))[::-1]


def _along(position: int) -> Callable[[fx.Node, RowAxes], Demands]:
    """Operators that work along one axis, given as an argument; all others stay as they are."""

    def demand(node: fx.Node, out: RowAxes) -> Demands:
        argument = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
        (axis,) = (axis % len(shape_of(node)) for axis in _ints([argument]))
        if out.first <= axis <= out.last:
            raise NotRowLocalError(f"{op_name(node)} works along the rows")
        return dict.fromkeys(_operands(node), out)

    return demand


def _select(node: fx.Node, out: RowAxes) -> Demands:
    (source,) = _operands(node)
    (axis,) = (axis % len(shape_of(source)) for axis in _ints(node.args[1:2]))
    if out.first < axis <= out.last:
        raise NotRowLocalError("an axis is selected between those of the rows")
    moved = out.shifted(1) if axis <= out.first else out
    return {source: normal(shape_of(source), moved.first, moved.last, moved.each)}


def _ints(values: Any) -> list[int]:
    return [int(value) for value in values]


def _axes(dims: Any, rank: int) -> set[int]:
    if dims is None or dims == []:
        return set(range(rank))
    return {axis % rank for axis in ([dims] if isinstance(dims, int) else dims)}


def _reduction(node: fx.Node, out: RowAxes) -> Demands:
    source = _operands(node)[0]
    rank = len(shape_of(source))
    gone = _axes(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim"), rank)
    left = list(range(rank)) if len(shape_of(node)) == rank else [axis for axis in range(rank) if axis not in gone]
    axes = left[out.first : out.last + 1]
    if gone & set(axes) or axes != list(range(axes[0], axes[0] + len(axes))):
        raise NotRowLocalError(f"{op_name(node)} mixes rows")
    return {source: normal(shape_of(source), axes[0], axes[-1], out.each)}


def _product(node: fx.Node, out: RowAxes) -> Demands:
    """mm, addmm, mm_add, bmm and baddbmm: rows of the left operand; or, where both have a batch, rows of the batch."""
    *added, left, right = _operands_in_order(node)
    batched = len(shape_of(node)) == 3
    if batched and shape_of(node)[0] == 1:
        out = RowAxes(out.last, out.last, out.each)
    if out.first != out.last or out.first > int(batched) or left is right:
        raise NotRowLocalError(f"{op_name(node)} mixes rows")
    by_batch = batched and out.first == 0
    demands: Demands = {left: normal(shape_of(left), out.first, out.last, out.each), right: out if by_batch else None}
    for operand in added:
        wanted = _aligned(operand, out, shape_of(node))
        if demands.get(operand, wanted) != wanted:
            raise NotRowLocalError(f"{operand.name} is read in two ways")
        demands[operand] = wanted
    return demands


def _operands_in_order(node: fx.Node) -> list[fx.Node]:
    return [argument for argument in node.args if isinstance(argument, fx.Node)]


def _attention(node: fx.Node, out: RowAxes) -> Demands:
    """Items of the batch are independent of each other."""
    if out.first or out.last:
        raise NotRowLocalError("attention mixes rows")
    if torch.Tag.nondeterministic_seeded in node.target.tags and _dropout(node):  # type: ignore[union-attr]
        raise NotRowLocalError("attention with dropout")
    return {operand: _aligned(operand, out, shape_of(node)) for operand in _operands(node)}


def _dropout(node: fx.Node) -> float:
    schema = node.target._schema  # type: ignore[union-attr]
    for position, argument in enumerate(schema.arguments):
        if argument.name == "dropout_p":
            given = node.args[position] if position < len(node.args) else node.kwargs.get("dropout_p", argument.default_value)
            return float(given or 0.0)  # type: ignore[arg-type]
    return 0.0


def _embedding(node: fx.Node, out: RowAxes) -> Demands:
    weight, indices = node.args[:2]
    assert isinstance(weight, fx.Node)
    assert isinstance(indices, fx.Node)
    if out.last >= len(shape_of(indices)):
        raise NotRowLocalError("the columns of an embedding")
    return {weight: None, indices: out}


def _constant(_node: fx.Node, _out: RowAxes) -> Demands:
    return {}


_ATTENTION = frozenset(
    {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    }
)
_POINTWISE = _Rule(_pointwise)
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape"), _Rule(_view, _resize_view)),
    **dict.fromkeys(("unsqueeze", "squeeze"), _Rule(_view)),
    **dict.fromkeys(("permute", "transpose", "t"), _Rule(_permute)),
    "expand": _Rule(_pointwise, _resize_view),
    **dict.fromkeys(("clone", "convert_element_type", "_to_copy", "alias", "detach"), _POINTWISE),
    "full": _Rule(_constant, _resize_full),
    "cat": _Rule(_along(1)),
    **dict.fromkeys(("slice", "_softmax", "_log_softmax", "cumsum"), _Rule(_along(1))),
    **dict.fromkeys(("split", "split_with_sizes"), _Rule(_along(2))),
    "select": _Rule(_select),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var_mean", "var", "prod", "any", "all"), _Rule(_reduction)),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mm_add"), _Rule(_product)),
    **dict.fromkeys(_ATTENTION, _Rule(_attention)),
    "embedding": _Rule(_embedding),
}
