"""Chains of sums and products with vectors as one product and one sum: ``(x - mean) * scale + shift`` is ``x * a + b``.

In a kernel that computes an element once a tap, each operator counts that often; the vectors are computed once a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

ATEN = torch.ops.aten
OPERATORS = frozenset({"aten::add", "aten::sub", "aten::rsub", "aten::mul", "aten::div"})

Vector = fx.Node | float | None
Call = Callable[[Any, tuple[Any, ...]], fx.Node]


@dataclass(frozen=True, slots=True)
class Affine:
    """``base * scale + shift``; None: 1, or 0."""

    base: fx.Node
    scale: Vector = None
    shift: Vector = None

    def node(self, call: Call) -> fx.Node:
        """The value, in at most two nodes."""
        result = self.base if self.scale is None else call(ATEN.mul.Tensor, (self.base, self.scale))
        return result if self.shift is None else call(ATEN.add.Tensor, (result, self.shift))

    def then(self, name: str, other: fx.Node | float, reversed_: bool, call: Call) -> Affine:
        """After an operator of OPERATORS with ``other``. ``reversed_``: the image is its right operand."""
        if name == "aten::rsub":
            name, reversed_ = "aten::sub", not reversed_
        if name == "aten::add":
            return Affine(self.base, self.scale, _sum(self.shift, other, call))
        if name == "aten::sub":
            negated = _product(other, -1.0, call)
            if not reversed_:
                return Affine(self.base, self.scale, _sum(self.shift, negated, call))
            turned = Affine(self.base, _product(self.scale, -1.0, call), _product(self.shift, -1.0, call, zero=True))
            return Affine(turned.base, turned.scale, _sum(turned.shift, other, call))
        factor = other if name == "aten::mul" else _inverse(other, call)
        return Affine(self.base, _product(self.scale, factor, call), _product(self.shift, factor, call, zero=True))


def _sum(left: Vector, right: fx.Node | float, call: Call) -> fx.Node | float:
    if left is None:
        return right
    if isinstance(left, float) and isinstance(right, float):
        return left + right
    return call(ATEN.add.Tensor, (left, right) if isinstance(left, fx.Node) else (right, left))


def _product(left: Vector, right: fx.Node | float, call: Call, zero: bool = False) -> Any:
    """``zero``: None is 0, not 1."""
    if left is None or right == 1.0:
        return right if left is None and not zero else left
    if isinstance(left, float) and isinstance(right, float):
        return left * right
    return call(ATEN.mul.Tensor, (left, right) if isinstance(left, fx.Node) else (right, left))


def _inverse(value: fx.Node | float, call: Call) -> fx.Node | float:
    return call(ATEN.reciprocal.default, (value,)) if isinstance(value, fx.Node) else 1.0 / value
