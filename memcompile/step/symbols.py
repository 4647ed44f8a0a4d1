"""Sizes that are symbols, as plain numbers to count with.

A symbol of an input has the value of the shapes in hand. One that only the step itself can know (how many elements are not
zero, the value of an ``item()``) counts as the most that it can be; where no bound is known, as what Inductor assumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

UNBOUNDED = 1 << 40
"""A bound from which on a size is as good as without one: elements."""


@dataclass(frozen=True, slots=True)
class UnknownSize:
    """A size that only the step knows: the node that finds it, what it counts as, and whether that is the most it can be."""

    node: fx.Node
    counted: int
    bounded: bool


def counted(expression: Any, shape_env: Any) -> int:
    """The number of elements, or the length, that ``expression`` (a SymPy one) counts as. Never below zero."""
    values = getattr(shape_env, "backed_var_to_val", None) or shape_env.var_to_val
    known = expression.xreplace(values)
    if not known.free_symbols:
        return int(known)
    most = _most(known, shape_env)
    if most is None:
        most = int(known.xreplace({symbol: _assumed(symbol, shape_env) for symbol in known.free_symbols}))
    return max(0, most)


def symbols_of(graph: fx.Graph) -> dict[int, Any]:
    """Which inputs of a captured graph are sizes that differ from call to call: place -> symbol."""
    values = (node.meta.get("example_value", node.meta.get("val")) for node in graph.find_nodes(op="placeholder"))
    sizes = {place: value.node.expr for place, value in enumerate(values) if isinstance(value, torch.SymInt)}
    return {place: expression for place, expression in sizes.items() if expression.is_Symbol}


def unknown_sizes(graph: fx.Graph) -> Iterator[UnknownSize]:
    """The sizes that nodes of a graph find while it runs. Fractions, which are no sizes, are left out."""
    for node in graph.nodes:
        environment = _shape_env(node.meta.get("val"))
        for symbol in node.meta.get("unbacked_bindings") or ():
            if environment is not None and symbol.is_integer:
                yield UnknownSize(node, counted(symbol, environment), _most(symbol, environment) is not None)


def finds_sizes(node: fx.Node) -> bool:
    """Whether a node defines a symbol: a second one like it would define it twice."""
    return bool(node.meta.get("unbacked_bindings"))


def _most(expression: Any, shape_env: Any) -> int | None:
    upper = shape_env.bound_sympy(expression).upper
    return int(upper) if upper.is_Integer and int(upper) <= UNBOUNDED else None


def _assumed(symbol: Any, shape_env: Any) -> int:
    from torch._inductor import config

    most = _most(symbol, shape_env)
    return int(config.unbacked_symint_fallback) if most is None else most


def _shape_env(value: Any) -> Any:
    """Of the first symbol in what a node yields."""
    values = value if isinstance(value, tuple | list) else [value]
    lengths = [length for v in values for length in (v.shape if isinstance(v, torch.Tensor) else [v])]
    return next((length.node.shape_env for length in lengths if isinstance(length, torch.SymInt)), None)
