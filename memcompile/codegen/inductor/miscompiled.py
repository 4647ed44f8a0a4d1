"""What Inductor is known to compile to another program, spelled so that it does not.

``JOINT`` looks at ATen graphs (training: forward and backward in one) before Inductor's passes see them, ``CAPTURED`` at what
Dynamo captured, before they are decomposed. Each entry is one fault: what goes wrong, where it was seen, and a rewrite of one
node that means the same, bit for bit. Nothing is planned yet, so the plan knows what will run. Where a PyTorch is right, an
entry changes nothing but the spelling; ``tests/codegen/inductor/test_miscompiled.py`` says which of them it needs no more.

Two more faults, of its pattern matcher, are no matter of spelling: ``codegen/inductor/patterns.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx

from memcompile.step.fxutil import base_of, mutated_inputs
from memcompile.step.rewriting import ATEN, insert, is_tensor, replace, value_of

CONVERT = torch.ops.prims.convert_element_type.default
_HALVES = (torch.float16, torch.bfloat16)
_BYTES = (torch.int8, torch.uint8)


@dataclass(frozen=True, slots=True)
class Fault:
    """``what`` Inductor makes of nodes with one of the ``targets``, and a ``rewrite`` of such a node that means the same.

    ``report``: where it is known. ``fixed_in``: the first PyTorch release that is right; entries older than the oldest release
    that is supported can go.
    """

    name: str
    what: str
    targets: frozenset[Any]
    rewrite: Callable[[fx.Node], object]
    report: str = ""
    fixed_in: str = ""


def respell(graph: fx.Graph, faults: Iterable[Fault]) -> None:
    """Rewrite a graph in place, wherever one of the faults could strike."""
    known: dict[Any, list[Fault]] = {}
    for fault in faults:
        for target in fault.targets:
            known.setdefault(target, []).append(fault)
    for node in list(graph.nodes):
        for fault in known.get(node.target, ()) if node.op in ("call_function", "call_method") else ():
            fault.rewrite(node)


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _converted(node: fx.Node, operand: Any, dtype: torch.dtype) -> Any:
    """An operand of ``node`` in another type; numbers have none."""
    if not is_tensor(operand) or value_of(operand).dtype is dtype:
        return operand
    return insert(node, node, CONVERT, operand, dtype)


def _same_types(node: fx.Node) -> None:
    """``cat`` of tensors of one type: the conversion stands in front."""
    tensors, *rest = _arguments(node)
    node.args = ([_converted(node, tensor, value_of(node).dtype) for tensor in tensors], *rest)


def _float_zero(node: fx.Node) -> None:
    """x * 0 as x * 0.0."""
    if value_of(node).dtype.is_floating_point or value_of(node).dtype.is_complex:
        node.args = tuple(0.0 if isinstance(argument, int) and argument == 0 else argument for argument in node.args)


def _fill_of_type(node: fx.Node) -> None:
    """full(shape, 2.7, dtype=int64) as full(shape, 2, dtype=int64)."""
    shape, fill = node.args
    dtype = value_of(node).dtype
    if isinstance(fill, bool | int | float) and not (dtype.is_floating_point or dtype.is_complex):
        node.args = (shape, bool(fill) if dtype is torch.bool else int(fill))


def _number_mask(node: fx.Node) -> None:
    """A tensor of truth values that is added, as numbers."""
    dtype = value_of(node).dtype
    if dtype.is_floating_point:
        node.args = tuple(
            _converted(node, argument, dtype) if is_tensor(argument) and value_of(argument).dtype is torch.bool else argument
            for argument in _arguments(node)
        )


def _binary_mask(node: fx.Node) -> None:
    """``mask == 0``, where it is spread over scores, as ``(mask != 0) == 0``: a mask of zeros and ones."""
    mask, number = _arguments(node)
    spread = any(user.target in (ATEN.view.default, ATEN.expand.default) for user in node.users)
    if number == 0 and spread and value_of(mask).dtype is not torch.bool:
        ones = insert(node, node, ATEN.ne.Scalar, mask, 0)
        node.args = (_converted(node, ones, value_of(mask).dtype), number)


def _plain_softmax(node: fx.Node) -> None:
    """``x - amax(x)`` as ``x + -amax(x)`` where a pattern that looks for it would change the numbers."""
    scores, highest = _arguments(node)
    if not (is_tensor(scores) and is_tensor(highest) and highest.target is ATEN.amax.default):
        return
    if _scaled_in_other_type(scores) or _masked_by_lowest(scores):
        negative = insert(node, node, ATEN.neg.default, highest)
        replace(node, insert(node, node, ATEN.add.Tensor, scores, negative))


def _scaled_in_other_type(scores: fx.Node) -> bool:
    """Whether scores are a product or quotient whose operand is no float of the same type: the operand overflows on its own."""
    scaled: Any = scores.args[0] if scores.target is CONVERT else scores
    if not is_tensor(scaled) or scaled.target not in (ATEN.mul.Tensor, ATEN.div.Tensor):
        return False
    types = {value_of(operand).dtype for operand in scaled.args if is_tensor(operand) and value_of(operand).dim()}
    return any(not dtype.is_floating_point or dtype is not value_of(scaled).dtype for dtype in types)


def _masked_by_lowest(scores: fx.Node, depth: int = 3) -> bool:
    """Whether the lowest finite number stands in for what is masked: a row of nothing else is uniform, not empty."""
    if scores.target is ATEN.where.self:
        fill: Any = scores.args[2]
        return is_tensor(fill) and fill.target is ATEN.full.default and fill.args[1] <= torch.finfo(value_of(fill).dtype).min
    through = depth and scores.target in (CONVERT, ATEN.add.Tensor, ATEN.view.default)
    return bool(through) and any(_masked_by_lowest(source, depth - 1) for source in scores.all_input_nodes)


def _dense(node: fx.Node) -> None:
    """An operand of other strides than the result, beside a constant: copied. The result would be replaced by the operand."""
    value, operands = value_of(node), _arguments(node)
    if len(operands) != 2 or not all(map(is_tensor, operands)) or not all(map(_is_static, operands)):
        return
    for operand, other in (operands, operands[::-1]):
        known = value_of(operand)
        if known.shape == value.shape and known.stride() != value.stride() and value.is_contiguous() and _is_constant(other):
            copy = insert(node, node, ATEN.clone.default, operand, memory_format=torch.contiguous_format)
            node.args = tuple(copy if argument is operand else argument for argument in operands)


def _is_static(node: fx.Node) -> bool:
    value = value_of(node)
    return all(isinstance(length, int) for length in (*value.shape, *value.stride()))


def _is_constant(node: fx.Node, depth: int = 8) -> bool:
    return depth > 0 and node.op == "call_function" and all(_is_constant(source, depth - 1) for source in node.all_input_nodes)


def _wide_extreme(node: fx.Node) -> None:
    """The extreme of bytes as that of 32-bit integers."""
    source, *rest = _arguments(node)
    dtype = value_of(source).dtype
    if dtype not in _BYTES or value_of(source).device.type != "cpu":
        return
    operator: Any = node.target
    wide = insert(node, node, operator, _converted(node, source, torch.int32), *rest, **node.kwargs)
    if isinstance(node.meta["val"], torch.Tensor):
        replace(node, _converted(node, wide, dtype) if value_of(node).dtype is dtype else wide)
        return
    for user in list(node.users):
        part = insert(user, user, getitem, wide, user.args[1])
        replace(user, _converted(user, part, value_of(user).dtype))


def _wrapped_abs(node: fx.Node) -> None:
    """abs(x) of a short integer as a choice of x and x * -1: a product has the type of its factors."""
    source = node.args[0]
    if value_of(node).dtype in (torch.int8, torch.int16):
        negative = insert(node, node, ATEN.mul.Tensor, source, -1)
        replace(node, insert(node, node, ATEN.where.self, insert(node, node, ATEN.lt.Scalar, source, 0), negative, source))


def _any_byte(node: fx.Node) -> None:
    """any(x) of unsigned bytes, which is one."""
    source, *rest = _arguments(node)
    if is_tensor(source) and value_of(source).dtype is torch.uint8:
        operator: Any = node.target
        found = insert(node, node, operator, insert(node, node, ATEN.ne.Scalar, source, 0), *rest, **node.kwargs)
        replace(node, _converted(node, found, torch.uint8))


def _floor_division(node: fx.Node) -> None:
    """Quotients of floats that are rounded down, and their remainders, from fmod as in eager execution: 1.0 // 0.1 is 9."""
    rounds = node.target in _QUOTIENTS
    if not value_of(node).dtype.is_floating_point or (rounds and node.kwargs.get("rounding_mode") != "floor"):
        return
    dtype = value_of(node).dtype

    def new(operator: Any, *operands: Any) -> fx.Node:
        return insert(node, node, operator, *operands)

    def tensor(operand: Any) -> Any:
        if not is_tensor(operand):
            operand = insert(node, node, ATEN.full.default, [], operand, dtype=exact, device=value_of(node).device)
        return _converted(node, operand, exact)

    exact = torch.float32 if dtype in _HALVES else dtype
    left, right = map(tensor, node.args)
    rest = new(ATEN.fmod.Tensor, left, right)
    across = new(ATEN.ne.Tensor, new(ATEN.lt.Scalar, right, 0), new(ATEN.lt.Scalar, rest, 0))
    below = new(ATEN.logical_and.default, new(ATEN.ne.Scalar, rest, 0), across)
    if not rounds:
        replace(node, _converted(node, new(ATEN.where.self, below, new(ATEN.add.Tensor, rest, right), rest), dtype))
        return
    ratio = new(ATEN.div.Tensor, left, right)
    whole = new(ATEN.div.Tensor, new(ATEN.sub.Tensor, left, rest), right)
    whole = new(ATEN.where.self, below, new(ATEN.sub.Tensor, whole, 1), whole)
    floor = new(ATEN.floor.default, whole)
    short = new(ATEN.gt.Scalar, new(ATEN.sub.Tensor, whole, floor), 0.5)
    floor = new(ATEN.where.self, short, new(ATEN.add.Tensor, floor, 1), floor)
    zero = new(ATEN.copysign.Tensor, new(ATEN.sub.Tensor, whole, whole), ratio)
    floor = new(ATEN.where.self, new(ATEN.eq.Scalar, whole, 0), zero, floor)
    replace(node, _converted(node, new(ATEN.where.self, new(ATEN.eq.Scalar, right, 0), ratio, floor), dtype))


def _ldexp(node: fx.Node) -> None:
    """x * 2 ** y, which is what it is in eager execution."""
    x, exponent = node.args
    replace(node, insert(node, node, ATEN.mul.Tensor, x, insert(node, node, ATEN.pow.Scalar, 2.0, exponent)))


def _is_cat_of_types(node: fx.Node) -> bool:
    tensors: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    known = [tensor.meta.get("example_value") for tensor in tensors] if isinstance(tensors, list | tuple) else []
    return len({tensor.dtype for tensor in known if isinstance(tensor, torch.Tensor)}) > 1


def _unsunk_cat(node: fx.Node) -> None:
    """``cat`` by its other name, which no pass moves behind what reads it."""
    as_bits = any(user.target == "view" and any(isinstance(a, torch.dtype) for a in user.args) for user in node.users)
    if as_bits or _is_cat_of_types(node):
        node.target = torch.concat


def _finite_input(node: fx.Node) -> None:
    """addmm with beta=0 adds to a finite tensor: 0 times that is 0."""
    if node.args and node.kwargs.get("beta", 1) == 0:
        with node.graph.inserting_before(node):
            finite = node.graph.call_function(torch.nan_to_num, (node.args[0], 0.0, 0.0, 0.0))
        node.args = (finite, *node.args[1:])


def _double_number(node: fx.Node) -> None:
    """A number that is looked up among doubles, as a double."""
    place, among = (1, 0) if node.target is torch.searchsorted else (0, 1)
    if len(node.args) < 2 or not isinstance(node.args[place], float):
        return
    sought = _arguments(node)[among].meta.get("example_value")
    if isinstance(sought, torch.Tensor) and sought.dtype is torch.float64:
        with node.graph.inserting_before(node):
            keywords: dict[str, Any] = {"dtype": torch.float64, "device": sought.device}
            number = node.graph.call_function(torch.scalar_tensor, (node.args[place],), keywords)
        node.args = (*node.args[:place], number, *node.args[place + 1 :])


_LINEAR = frozenset({ATEN.add.Tensor, ATEN.sub.Tensor, ATEN.mul.Tensor, ATEN.div.Tensor})
_ANY = frozenset({ATEN.any.default, ATEN.any.dim, ATEN.any.dims})
_QUOTIENTS = frozenset({ATEN.div.Tensor_mode, ATEN.div.Scalar_mode})
_REMAINDERS = frozenset({ATEN.remainder.Tensor, ATEN.remainder.Scalar, ATEN.remainder.Scalar_Tensor})
_EXTREMES = frozenset(
    {
        *(ATEN.amin.default, ATEN.amax.default, ATEN.min.default, ATEN.max.default, ATEN.min.dim, ATEN.max.dim),
        *(ATEN.argmin.default, ATEN.argmax.default),
    }
)


def _kept_copy(node: fx.Node) -> None:
    """The copy of what is written over later, as one that no pass takes for needless."""
    (source,) = _arguments(node)
    if value_of(source).stride() == value_of(node).stride() and base_of(source) in mutated_inputs(node.graph):
        node.target, node.kwargs = ATEN.lift_fresh_copy.default, {}


JOINT = (
    Fault("kept copy", "old = a.clone(); a.copy_(b); b.copy_(old) with old = a", frozenset({ATEN.clone.default}), _kept_copy),
    Fault("cat of types", "the parts of a cat of several types keep their own", frozenset({ATEN.cat.default}), _same_types),
    Fault(
        "times zero", "0 for x * 0 where x is infinite or undefined", frozenset({ATEN.mul.Tensor, ATEN.mul.Scalar}), _float_zero
    ),
    Fault("fill", "a cumulative sum of fractions for integers", frozenset({ATEN.full.default}), _fill_of_type),
    Fault("added truth", "attention masked by what should be added", frozenset({ATEN.add.Tensor}), _number_mask),
    Fault(
        "mask of twos",
        "attention without what a mask other than 0 and 1 lets through",
        frozenset({ATEN.eq.Scalar}),
        _binary_mask,
    ),
    Fault(
        "softmax", "integers that overflow; 0 for the mean where all is masked", frozenset({ATEN.sub.Tensor}), _plain_softmax
    ),
    Fault("plus zeros", "zeros + x.t() with the strides of x.t()", _LINEAR, _dense),
    Fault("extremes", "0 for the least of 16 bytes or more", _EXTREMES, _wide_extreme, "pytorch/pytorch#191499"),
    Fault("abs", "abs(-128) = 128 for a signed byte", frozenset({ATEN.abs.default}), _wrapped_abs),
    Fault("any", "a truth value for any of bytes, which is a byte", _ANY, _any_byte),
    Fault("floor", "1.0 // 0.1 = 10", _QUOTIENTS | _REMAINDERS, _floor_division),
    Fault("ldexp", "the type of one operand", frozenset({ATEN.ldexp.Tensor}), _ldexp, "pytorch/pytorch#197091"),
)

CAPTURED = (
    Fault("tanh of cat", "tanh(cat) rounded to the types of the parts", frozenset({torch.cat}), _unsunk_cat),
    Fault(
        "beta",
        "beta * x for beta = 0 and undefined x",
        frozenset({torch.addmm, "addmm"}),
        _finite_input,
        "pytorch/pytorch#196596",
    ),
    Fault(
        "search", "doubles searched for in single precision", frozenset({torch.searchsorted, torch.bucketize}), _double_number
    ),
)
