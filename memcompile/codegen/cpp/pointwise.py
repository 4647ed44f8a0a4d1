"""Pointwise operators as C++ expressions, of vectors and of single floats (rows.h).

A new operator is one line of ``FORMULAS``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from memcompile.codegen.kernel.pointwise import Formula, arguments_of, operator_of, refused


def number(value: float) -> str:
    """A number as a C++ float."""
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    return f"{float(value)!r}f"


def _infix(sign: str) -> Formula:
    return lambda a, b: f"({a} {sign} {b})"


def _call(name: str) -> Formula:
    return lambda *operands: f"{name}({', '.join(operands)})"


def _scaled(sign: str) -> Formula:
    return lambda a, b, alpha=1: f"({a} {sign} {b})" if float(alpha) == 1 else f"({a} {sign} {number(alpha)} * {b})"


def _clamp(x: str, low: str | None = None, high: str | None = None) -> str:
    bounded = x if low is None else f"clamp_min({x}, {low})"
    return bounded if high is None else f"clamp_max({bounded}, {high})"


def _divided(a: str, b: str, rounding_mode: None = None) -> str:
    if rounding_mode is not None:
        raise ValueError(f"rounding_mode={rounding_mode!r}")
    return f"({a} / {b})"


def _power(x: str, exponent: str) -> str:
    known = {"2.0f": f"({x} * {x})", "0.5f": f"square_root({x})", "1.0f": x, "-1.0f": f"(1.0f / {x})"}
    if exponent not in known:
        raise ValueError(f"the exponent {exponent}")
    return known[exponent]


FORMULAS: Mapping[str, Formula] = {
    "aten::abs": _call("absolute"),
    "aten::add": _scaled("+"),
    "aten::clamp": _clamp,
    "aten::clamp_max": lambda x, high: _clamp(x, None, high),
    "aten::clamp_min": _clamp,
    "aten::div": _divided,
    "aten::exp": _call("exponential"),
    "aten::ge": _infix(">="),
    "aten::gt": _infix(">"),
    "aten::hardsigmoid": _call("hardsigmoid"),
    "aten::hardswish": _call("hardswish"),
    "aten::hardtanh": _clamp,
    "aten::le": _infix("<="),
    "aten::leaky_relu": _call("leaky_relu"),
    "aten::lt": _infix("<"),
    "aten::maximum": _call("maximum"),
    "aten::minimum": _call("minimum"),
    "aten::mul": _infix("*"),
    "aten::neg": lambda x: f"(-{x})",
    "aten::pow": _power,
    "aten::reciprocal": lambda x: f"(1.0f / {x})",
    "aten::relu": _call("relu"),
    "aten::rsqrt": lambda x: f"(1.0f / square_root({x}))",
    "aten::rsub": lambda a, b, alpha=1: _scaled("-")(b, a, alpha),
    "aten::sigmoid": _call("sigmoid"),
    "aten::silu": _call("silu"),
    "aten::sqrt": _call("square_root"),
    "aten::square": lambda x: f"({x} * {x})",
    "aten::sub": _scaled("-"),
    "aten::where": _call("where"),
}


def expression(node: fx.Node, read: Callable[[fx.Node], str]) -> str:
    """The node's value, from those of its operands. Raises `KernelRefusedError` for what has no formula here."""
    formula = FORMULAS.get(operator_of(node))
    if formula is None:
        raise refused(node, f"{node.target} has no C++ formula yet")
    positional, named = arguments_of(node)
    operands = [_operand(value, read) for value in positional]
    try:
        inspect.signature(formula).bind(*operands, **named)
        return formula(*operands, **named)
    except (TypeError, ValueError) as error:
        raise refused(node, f"{node.target}: {error}") from None


def _operand(value: Any, read: Callable[[fx.Node], str]) -> Any:
    if isinstance(value, fx.Node):
        return read(value)
    return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
