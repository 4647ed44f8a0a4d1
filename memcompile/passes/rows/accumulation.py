"""Products that are added to a tensor which dies there: ``add(base, mm(P, B)) -> memcompile::mm_add(base, P, B)``.

Lowered in place (``codegen/inductor/accumulate.py``), the sum and the product need no memory beside that of ``base``. Several
of them chain: LoRA adapters on one layer, or the gradient of an input that several layers read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from memcompile.codegen.inductor.accumulate import MM_ADD, mm_add
from memcompile.passes.rows.scaling import is_low_rank
from memcompile.step.rewriting import (
    ATEN,
    Outcome,
    chain_of,
    insert,
    is_tensor,
    keeps_order,
    read_once,
    refuse,
    replace,
    rewrite,
    size_bytes,
    value_of,
    viewed,
)

_KERNELS = frozenset({ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN.convolution, MM_ADD.overloadpacket})


@dataclass(frozen=True, slots=True)
class Sum:
    """``node`` = ``base`` + ``alpha`` * ``product``, each behind views. ``product`` is an mm."""

    node: fx.Node
    base: fx.Node
    base_views: tuple[fx.Node, ...]
    product: fx.Node
    views: tuple[fx.Node, ...]
    alpha: float

    @property
    def rank(self) -> int:
        """Length of the dimension that the product sums over."""
        return int(value_of(self.product.args[0]).shape[1])  # type: ignore[arg-type]

    def why_not(self) -> str:
        """Why the product cannot be added in place; empty when it can."""
        if not read_once((self.product, *self.views)):
            return f"{self.product.name} is used elsewhere"
        if not read_once((self.base, *self.base_views)):
            return f"{self.base.name} is used elsewhere"
        return ""

    def fits(self) -> bool:
        """Whether the elements of the base stand in the order of the product's."""
        base, product = value_of(self.base), value_of(self.product)
        if base.shape == product.shape and _same_views(self.base_views, self.views):
            return True
        return keeps_order(self.base_views) and keeps_order(self.views) and base.is_contiguous()


def accumulate(graph: fx.Graph) -> Iterator[Outcome]:
    """Add products in place, in the order of the graph."""
    for node in list(graph.nodes):
        sums = [found for found in _sums(node) if found.fits()]
        chosen = min((found for found in sums if not found.why_not()), key=lambda found: found.rank, default=None)
        if chosen is not None:
            yield rewrite("accumulate", node, size_bytes(node), f"adds {chosen.product.name} to {chosen.base.name} in place")
            _write(chosen)
        else:
            known = (found for found in sums if _packet(found.base) in _KERNELS and is_low_rank(found.product))
            yield from (refuse("accumulate", node, found.why_not()) for found in list(known)[:1])


def _sums(node: fx.Node) -> Iterator[Sum]:
    """The ways to read a node as a sum of a base and a product."""
    if node.target not in (ATEN.add.Tensor, ATEN.sub.Tensor) or not all(map(is_tensor, node.args)):
        return
    if any(_kind(argument) != _kind(node) for argument in node.args):
        return
    alpha: Any = node.kwargs.get("alpha", 1)
    factors = (1, alpha if node.target is ATEN.add.Tensor else -alpha)
    for own, other in ((1, 0), (0, 1)):
        product, views = chain_of(node.args[own])  # type: ignore[arg-type]
        base, base_views = chain_of(node.args[other])  # type: ignore[arg-type]
        if product.target is not ATEN.mm.default or base is product or factors[other] != 1 or not _is_fresh(base):
            continue
        if factors[own] == 1 or is_low_rank(product):
            yield Sum(node, base, base_views, product, views, factors[own])


def _kind(node: Any) -> tuple[object, ...]:
    return (value_of(node).shape, value_of(node).dtype)


def _is_fresh(node: fx.Node) -> bool:
    """Whether the value lies in memory of its own when it is made: a library kernel's result, or written over one that dies."""
    if _packet(node) in _KERNELS:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.pointwise not in node.target.tags:
        return False
    alike = (source for source in node.all_input_nodes if is_tensor(source) and _kind(source) == _kind(node))
    sources = map(chain_of, alike)
    return any(_packet(source) in _KERNELS and read_once((source, *views)) for source, views in sources)


def _packet(node: fx.Node) -> object:
    return node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else None


def _same_views(left: tuple[fx.Node, ...], right: tuple[fx.Node, ...]) -> bool:
    return [(view.target, view.args[1:]) for view in left] == [(view.target, view.args[1:]) for view in right]


def _write(found: Sum) -> None:
    node, product = found.node, found.product
    left, right = product.args
    if found.alpha != 1:
        left = insert(node, node, ATEN.mul.Tensor, left, found.alpha)
    acc, shape = found.base, list(value_of(product).shape)
    if list(value_of(acc).shape) != shape:
        acc = insert(node, node, ATEN.view.default, acc, shape)
    replace(node, viewed(node, insert(node, node, mm_add(), acc, left, right), found.views))
