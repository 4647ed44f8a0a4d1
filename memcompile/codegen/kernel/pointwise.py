"""Pointwise operators as Triton expressions. A new operator is one line of ``FORMULAS``.

A formula gets its tensor and number operands as text (names, or literals) and the remaining arguments as they are. Floating
point is computed in fp32, whatever the graph's dtype is; integers and truth values stay what they are. Only builtins of
``triton.language`` appear, none of its library functions, so that a kernel runs compiled and interpreted in one process.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from memcompile.errors import KernelRefusedError
from memcompile.step.fxutil import source_of

Formula = Callable[..., str]
Read = Callable[[fx.Node, bool], str]
"""From a tensor operand to its name; True asks for it in fp32."""

DTYPES: Mapping[torch.dtype, str] = {
    torch.float32: "tl.float32",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.int16: "tl.int16",
    torch.int8: "tl.int8",
    torch.uint8: "tl.uint8",
    torch.bool: "tl.int1",
}
"""What a kernel can hold; the graph's other dtypes (float64, complex) are refused."""


def refused(node: fx.Node, reason: str) -> KernelRefusedError:
    """The error that says which node of which source line has no kernel, and why."""
    return KernelRefusedError(node.name, reason, source_of(node))


def number(value: float) -> str:
    """A number as Triton source."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _infix(sign: str) -> Formula:
    return lambda a, b: f"{a} {sign} {b}"


def _call(name: str) -> Formula:
    return lambda *operands: f"{name}({', '.join(operands)})"


def _scaled(sign: str) -> Formula:
    return lambda a, b, alpha=1: f"{a} {sign} {b}" if float(alpha) == 1 else f"{a} {sign} {alpha} * {b}"


def _extremum(name: str) -> Formula:
    return lambda a, b: f"{name}({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"


def _gelu(x: str, approximate: str = "none") -> str:
    if approximate == "tanh":
        return f"{x} / (1.0 + tl.exp(-{2 * math.sqrt(2 / math.pi)} * ({x} + 0.044715 * {x} * {x} * {x})))"
    return f"0.5 * {x} * (1.0 + tl.erf({x} * {math.sqrt(0.5)}))"


def _tanh(x: str) -> str:
    series = f"{x} * (1.0 + {x} * {x} * (-1 / 3 + {x} * {x} * (2 / 15 + {x} * {x} * (-17 / 315 + {x} * {x} * (62 / 2835)))))"
    whole = f"(1.0 - 2.0 / (tl.exp(2.0 * {x}) + 1.0))"
    return f"tl.where(tl.abs({x}) < 0.25, {series}, {whole})"


def _expm1(x: str) -> str:
    series = "1.0"
    for i in range(7, 1, -1):
        series = f"(1.0 + {x} * {series} / {i})"
    return f"tl.where(tl.abs({x}) < 0.25, {x} * {series}, tl.exp({x}) - 1.0)"


def _log1p(x: str) -> str:
    half = f"({x} / (2.0 + {x}))"
    square = f"{half} * {half}"
    series = f"2.0 * {half} * (1.0 + {square} * (1 / 3 + {square} * (1 / 5 + {square} * (1 / 7 + {square} / 9))))"
    return f"tl.where(tl.abs({x}) < 0.25, {series}, tl.log(1.0 + {x}))"


def _power(x: str, exponent: str) -> str:
    known = {"0": "1.0", "1": x, "0.5": f"tl.sqrt_rn({x})", "-0.5": f"tl.rsqrt({x})", "-1": f"1.0 / {x}"}
    try:
        value = float(exponent)
    except ValueError:
        raise ValueError("the exponent is a tensor") from None
    if f"{value:g}" in known:
        return known[f"{value:g}"]
    if value == int(value) and 2 <= abs(value) <= 8:
        product = " * ".join([x] * int(abs(value)))
        return product if value > 0 else f"1.0 / ({product})"
    return f"tl.exp2({value} * tl.log2({x}))"


def _clamp(x: str, low: str | None = None, high: str | None = None) -> str:
    bounded = x if low is None else f"tl.where({x} < {low}, {low}, {x})"
    return bounded if high is None else f"tl.where({bounded} > {high}, {high}, {bounded})"


def _hardtanh(x: str, low: str, high: str) -> str:
    return _clamp(x, low, high)


def _divided(a: str, b: str, rounding_mode: None = None) -> str:
    if rounding_mode is not None:
        raise ValueError(f"rounding_mode={rounding_mode!r}")
    return f"{a} / {b}"


def _leaky_relu(x: str, slope: str) -> str:
    return f"tl.where({x} > 0, {x}, {slope} * {x})"


def _elu(x: str, alpha: str, scale: str, input_scale: str) -> str:
    below = _expm1(f"({input_scale} * {x})")
    return f"{scale} * tl.where({x} > 0, {x}, {alpha} * ({below}))"


def _softplus(x: str, beta: str, threshold: str) -> str:
    below = _log1p(f"tl.exp({x} * {beta})")
    return f"tl.where({x} * {beta} > {threshold}, {x}, {below} / {beta})"


def _gelu_backward(grad: str, x: str, approximate: str = "none") -> str:
    if approximate != "none":
        raise ValueError(f"approximate={approximate!r}")
    density = f"{x} * tl.exp(-0.5 * {x} * {x}) * {1 / math.sqrt(2 * math.pi)}"
    return f"{grad} * (0.5 * (1.0 + tl.erf({x} * {math.sqrt(0.5)})) + {density})"


def _silu_backward(grad: str, x: str) -> str:
    return f"{grad} / (1.0 + tl.exp(-{x})) * (1.0 + {x} * (1.0 - 1.0 / (1.0 + tl.exp(-{x}))))"


FORMULAS: Mapping[str, Formula] = {
    "aten::abs": _call("tl.abs"),
    "aten::add": _scaled("+"),
    "aten::bitwise_and": _infix("&"),
    "aten::bitwise_not": lambda x: f"~{x}",
    "aten::bitwise_or": _infix("|"),
    "aten::clamp": _clamp,
    "aten::clamp_max": lambda x, high: _clamp(x, None, high),
    "aten::clamp_min": _clamp,
    "aten::cos": _call("tl.cos"),
    "aten::div": _divided,
    "aten::elu": _elu,
    "aten::eq": _infix("=="),
    "aten::erf": _call("tl.erf"),
    "aten::exp": _call("tl.exp"),
    "aten::exp2": _call("tl.exp2"),
    "aten::expm1": _expm1,
    "aten::floor": _call("tl.floor"),
    "aten::ge": _infix(">="),
    "aten::gelu": _gelu,
    "aten::gelu_backward": _gelu_backward,
    "aten::gt": _infix(">"),
    "aten::hardsigmoid": lambda x: f"{_clamp(f'({x} + 3.0)', '0.0', '6.0')} / 6.0",
    "aten::hardswish": lambda x: f"{x} * {_clamp(f'({x} + 3.0)', '0.0', '6.0')} / 6.0",
    "aten::hardtanh": _hardtanh,
    "aten::le": _infix("<="),
    "aten::leaky_relu": _leaky_relu,
    "aten::log": _call("tl.log"),
    "aten::log1p": _log1p,
    "aten::log2": _call("tl.log2"),
    "aten::logical_and": lambda a, b: f"({a} != 0) & ({b} != 0)",
    "aten::logical_not": lambda x: f"{x} == 0",
    "aten::logical_or": lambda a, b: f"({a} != 0) | ({b} != 0)",
    "aten::lt": _infix("<"),
    "aten::masked_fill": lambda x, mask, value: f"tl.where({mask}, {value}, {x})",
    "aten::maximum": _extremum("tl.maximum"),
    "aten::minimum": _extremum("tl.minimum"),
    "aten::mul": _infix("*"),
    "aten::ne": _infix("!="),
    "aten::neg": lambda x: f"-{x}",
    "aten::pow": _power,
    "aten::reciprocal": lambda x: f"1.0 / {x}",
    "aten::relu": lambda x: f"tl.where({x} < 0, 0.0, {x})",
    "aten::rsqrt": _call("tl.rsqrt"),
    "aten::rsub": lambda a, b, alpha=1: _scaled("-")(b, a, alpha),
    "aten::sigmoid": lambda x: f"1.0 / (1.0 + tl.exp(-{x}))",
    "aten::silu": lambda x: f"{x} / (1.0 + tl.exp(-{x}))",
    "aten::silu_backward": _silu_backward,
    "aten::sin": _call("tl.sin"),
    "aten::softplus": _softplus,
    "aten::sqrt": _call("tl.sqrt_rn"),
    "aten::square": lambda x: f"{x} * {x}",
    "aten::sub": _scaled("-"),
    "aten::tanh": _tanh,
    "aten::threshold_backward": lambda grad, x, threshold: f"tl.where({x} <= {threshold}, 0.0, {grad})",
    "aten::where": _call("tl.where"),
}

_CONDITIONS: Mapping[str, int] = {"aten::where": 0, "aten::masked_fill": 1}
"""The position of the operand that is a truth value."""
_CASTS = frozenset({"prims::convert_element_type", "aten::_to_copy"})
_SAME = frozenset(
    f"aten::{name}"
    for name in ("alias", "detach", "clone", "expand", "unsqueeze", "squeeze", "view", "_unsafe_view", "reshape")
)
_FILLS = {"aten::full": 1, "aten::full_like": 1, "aten::scalar_tensor": 0}
_ONES_AND_ZEROS = {"aten::zeros_like": 0, "aten::ones_like": 1, "aten::zeros": 0, "aten::ones": 1}


def operator_of(node: fx.Node) -> str:
    """ "aten::mul" of any overload, "" for what is no operator."""
    target = node.target
    return target._schema.name if node.op == "call_function" and isinstance(target, torch._ops.OpOverload) else ""


def is_pointwise(node: fx.Node) -> bool:
    """Whether there is a formula for the node."""
    return operator_of(node) in FORMULAS


def is_cast(node: fx.Node) -> bool:
    """Whether the node only changes the dtype."""
    return operator_of(node) in _CASTS


def is_transpose(node: fx.Node) -> bool:
    """Whether the node swaps the two dimensions of a matrix."""
    swaps = operator_of(node) == "aten::permute" and [d % 2 for d in node.args[1]] == [1, 0]  # type: ignore[union-attr, operator]
    return (swaps or operator_of(node) == "aten::t") and shape_of(node).__len__() == 2


def is_same(node: fx.Node) -> bool:
    """Whether the node yields its operand, at most with leading dimensions of length 1 more or less, or broadcast."""
    if operator_of(node) not in _SAME:
        return False
    before, after = (_without_leading_ones(shape_of(n)) for n in (node.all_input_nodes[0], node))
    return before == after or operator_of(node) == "aten::expand"


def constant_of(node: fx.Node) -> float | None:
    """The number that fills the node's tensor, None where there is none."""
    name = operator_of(node)
    value = node.args[_FILLS[name]] if name in _FILLS else _ONES_AND_ZEROS.get(name)
    return value if isinstance(value, (int, float)) else None


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The static shape of the node's tensor."""
    return tuple(node.meta["val"].shape)


def dtype_of(node: fx.Node) -> torch.dtype:
    """The dtype of the node's tensor."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def expression(node: fx.Node, read: Read) -> str:
    """The node's value, from those of its operands. Raises `KernelRefusedError` for arguments that no formula takes."""
    name = operator_of(node)
    if name not in FORMULAS:
        raise refused(node, f"{node.target} is not pointwise, or has no formula yet")
    floats = any(dtype_of(n).is_floating_point for n in (node, *node.all_input_nodes))
    positional, named = arguments_of(node)
    operands = [_operand(value, read, floats and i != _CONDITIONS.get(name)) for i, value in enumerate(positional)]
    formula = FORMULAS[name]
    try:
        inspect.signature(formula).bind(*operands, **named)
    except TypeError:
        raise refused(node, f"{node.target} with {', '.join(map(str, [*positional, *named]))}") from None
    try:
        return formula(*operands, **named)
    except ValueError as error:
        raise refused(node, f"{node.target}: {error}") from None


def arguments_of(node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
    """Positional arguments with their defaults, and the keyword arguments that differ from theirs."""
    schema = node.target._schema  # type: ignore[union-attr]
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for index, argument in enumerate(schema.arguments):
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        if not argument.kwarg_only:
            positional.append(given)
        elif given != argument.default_value:
            named[argument.name] = given
    return positional, named


def _operand(value: Any, read: Read, as_float: bool) -> Any:
    if isinstance(value, fx.Node):
        return read(value, as_float)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(float(value) if as_float else value)
    return value


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape
