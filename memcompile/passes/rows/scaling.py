"""Scales of low-rank products, moved to their small tensors.

    mul(mm(P, B), s)                 ->  mm(mul(P, s), B)          where the rank is shorter than both sides of the product
    mm(mul(dy, s), B)                ->  mul(mm(dy, B), s)         in backwards, where dy is read unscaled too
    mm(P^T, mul(dy, s))              ->  mm(mul(P, s)^T, dy)       where mul(P, s) is there already

s is a number or a tensor without dimensions; views may stand between. Each rewrite removes a full-size tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from memcompile.step.cost import is_extern
from memcompile.step.rewriting import (
    ATEN,
    Outcome,
    chain_of,
    insert,
    is_tensor,
    read_once,
    readers_through_views,
    refuse,
    replace,
    rewrite,
    size_bytes,
    value_of,
    viewed,
)

Reader = tuple[fx.Node, tuple[fx.Node, ...]]

_SCALES = frozenset({ATEN.mul.Tensor, ATEN.mul.Scalar, ATEN.div.Tensor, ATEN.div.Scalar})
_COMMUTES = frozenset({ATEN.mul.Tensor, ATEN.mul.Scalar})


@dataclass(frozen=True, slots=True)
class Scale:
    """``node`` multiplies (or divides) each element of its argument ``position`` by one number."""

    node: fx.Node
    position: int

    @property
    def operand(self) -> fx.Node:
        """What is scaled."""
        operand = self.node.args[self.position]
        assert isinstance(operand, fx.Node)
        return operand

    def arguments(self, operand: fx.Node) -> tuple[Any, ...]:
        """The arguments that scale another tensor."""
        arguments = list(self.node.args)
        arguments[self.position] = operand
        return tuple(arguments)

    def of(self, operand: fx.Node, before: fx.Node) -> fx.Node:
        """The same scale of another tensor: the one that is there in front of ``before``, or a new one."""
        return self.found(operand, before) or insert(before, self.node, self.node.target, *self.arguments(operand))  # type: ignore[arg-type]

    def found(self, operand: fx.Node, before: fx.Node) -> fx.Node | None:
        """The node in front of ``before`` that scales ``operand`` so already."""
        arguments = self.arguments(operand)
        same = (user for user in operand.users if user.target is self.node.target and user.args == arguments)
        return next((user for user in same if user < before), None)


def scale_of(node: fx.Node) -> Scale | None:
    """The node as a scale, None when it is none."""
    if node.op != "call_function" or node.target not in _SCALES or node.kwargs:
        return None
    for position in (0, 1) if node.target in _COMMUTES else (0,):
        operand = node.args[position]
        others = (argument for index, argument in enumerate(node.args) if index != position)
        if is_tensor(operand) and all(map(_is_number, others)) and _same_kind(node, operand):
            return Scale(node, position)
    return None


def _is_number(argument: Any) -> bool:
    return isinstance(argument, (int, float)) or (is_tensor(argument) and value_of(argument).dim() == 0)


def _same_kind(node: fx.Node, operand: Any) -> bool:
    """Whether scaling changes neither shape, strides nor type."""
    scaled, plain = value_of(node), value_of(operand)
    return plain.dim() > 0 and (scaled.shape, scaled.stride(), scaled.dtype) == (plain.shape, plain.stride(), plain.dtype)


def scale_in_rank_space(graph: fx.Graph) -> Iterator[Outcome]:
    """Scale the left factor of a low-rank product instead of the product."""
    for node in list(graph.nodes):
        scale = scale_of(node)
        if scale is None:
            continue
        product, views = chain_of(scale.operand)
        if product.target is not ATEN.mm.default or not is_low_rank(product):
            continue
        if not read_once((product, *views)):
            yield refuse("scale", node, f"{product.name} is read unscaled, too")
            continue
        yield rewrite("scale", node, size_bytes(node), f"scales {product.args[0]} in place of {product.name}")
        source, small_views = chain_of(product.args[0])  # type: ignore[arg-type]
        small = viewed(node, scale.of(source, node), small_views)
        replace(node, viewed(node, insert(node, product, ATEN.mm.default, small, product.args[1]), views))


def is_low_rank(product: fx.Node) -> bool:
    """Whether a product sums over a dimension that is shorter than both of its own."""
    rows, columns = value_of(product).shape
    return bool(value_of(product.args[0]).shape[1] < min(rows, columns))  # type: ignore[arg-type]


def unscale_gradients(graph: fx.Graph) -> Iterator[Outcome]:
    """Let products read a full-size tensor unscaled, and scale what is small."""
    for node in list(graph.nodes):
        scale = scale_of(node)
        if scale is None or not _is_alive_anyway(scale):
            continue
        readers = list(readers_through_views(node))
        small = [reader for reader in readers if _is_smaller(scale, reader)]
        if small and len(small) < len(readers):
            other = next(reader for reader, views in readers if (reader, views) not in small)
            yield refuse("scale", node, f"{other.name} reads it, too")
        elif small:
            yield rewrite("scale", node, size_bytes(node), f"{len(small)} products read {scale.operand.name} unscaled")
            for reader, views in small:
                _unscale(scale, reader, views)


def _is_alive_anyway(scale: Scale) -> bool:
    """Whether the unscaled tensor has memory of its own beside the scaled one's."""
    base, _ = chain_of(scale.operand)
    return base.op == "placeholder" or is_extern(base) or any(user is not scale.node for user, _ in readers_through_views(base))


def _is_smaller(scale: Scale, reader: Reader) -> bool:
    """Whether the reader is a product of the scaled tensor and of another one, whose scale costs less."""
    product, _ = reader
    if product.target is not ATEN.mm.default:
        return False
    own = [chain_of(factor)[0] is scale.node for factor in product.args]  # type: ignore[arg-type]
    if sum(own) != 1:
        return False
    other, _ = chain_of(product.args[own.index(False)])  # type: ignore[arg-type]
    return scale.found(other, product) is not None or value_of(product).numel() < value_of(scale.node).numel()


def _unscale(scale: Scale, product: fx.Node, views: tuple[fx.Node, ...]) -> None:
    last = views[-1] if views else scale.node
    side = 0 if product.args[0] is last else 1
    factors = list(product.args)
    factors[side] = viewed(product, scale.operand, views)
    source, other_views = chain_of(factors[1 - side])  # type: ignore[arg-type]
    scaled = scale.found(source, product)
    if scaled is not None:
        factors[1 - side] = viewed(product, scaled, other_views)
    new = insert(product, product, ATEN.mm.default, *factors)
    replace(product, new if scaled is not None else insert(product, scale.node, scale.node.target, *scale.arguments(new)))  # type: ignore[arg-type]
