"""Rewriting an FX graph in place: new nodes with their fake tensors, and what the report says of each rewrite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from memcompile.step.fxutil import source_of, tensors_of

ATEN = torch.ops.aten
_RESHAPES = frozenset(
    {
        ATEN.view.default,
        ATEN._unsafe_view.default,
        ATEN.unsqueeze.default,
        ATEN.squeeze.default,
        ATEN.squeeze.dim,
        ATEN.squeeze.dims,
    }
)
_PERMUTES = frozenset({ATEN.permute.default, ATEN.t.default, ATEN.transpose.int})
_TAKEN_FROM_VALUE = frozenset({"val", "tensor_meta", "example_value", "eager_input_vals"})


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One change of the graph: its ``kind``, the ``node`` that was replaced, where the user wrote it (``source``), the bytes of
    the full-size tensors that are no longer made, and ``what`` was done."""

    kind: str
    node: str
    source: str
    saves_bytes: int
    what: str


@dataclass(frozen=True, slots=True)
class RefusedPattern:
    """A pattern that is there and stays as it is, and ``why``."""

    kind: str
    node: str
    source: str
    why: str


Outcome = Rewrite | RefusedPattern


def rewrite(kind: str, node: fx.Node, saves_bytes: int, what: str) -> Rewrite:
    """The record of a rewrite of ``node``."""
    return Rewrite(kind, node.name, source_of(node), saves_bytes, what)


def refuse(kind: str, node: fx.Node, why: str) -> RefusedPattern:
    """The record of a pattern at ``node`` that stays."""
    return RefusedPattern(kind, node.name, source_of(node), why)


def value_of(node: fx.Node) -> Tensor:
    """The fake tensor that a node yields."""
    value = node.meta["val"]
    assert isinstance(value, Tensor), node
    return value


def is_tensor(node: object) -> bool:
    """Whether the argument is a node that yields one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def size_bytes(node: fx.Node) -> int:
    """Bytes of the tensor that a node yields. Static shapes only."""
    value = value_of(node)
    return value.numel() * value.element_size()


def insert(before: fx.Node, like: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A new node in front of ``before``, with its fake tensor; source lines and tags are those of ``like``.

    A constant is made as fake as the value of ``like``.
    """
    graph = before.graph
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs)
    node.meta = {key: value for key, value in like.meta.items() if key not in _TAKEN_FROM_VALUE}
    values, keywords = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    tensors = (tensor for source in node.all_input_nodes or [like] for tensor in tensors_of(source))
    modes = {mode for tensor in tensors if (mode := getattr(tensor, "fake_mode", None)) is not None}
    if len(modes) != 1:
        raise AssertionError(f"{target} on values of {len(modes)} fake modes")
    with modes.pop():
        node.meta["val"] = target(*values, **keywords)
    return node


def replace(node: fx.Node, new: fx.Node) -> None:
    """Let everything that reads ``node`` read ``new``, and remove what nobody reads any more."""
    node.replace_all_uses_with(new)
    remove(node)


def remove(node: fx.Node) -> None:
    """Remove a node that nobody reads, and what it alone read. Inputs of the graph stay."""
    if node.users or node.op != "call_function":
        return
    inputs = node.all_input_nodes
    node.graph.erase_node(node)
    for source in inputs:
        remove(source)


def is_permute(node: fx.Node) -> bool:
    """Whether the node changes the order of dimensions."""
    return node.target in _PERMUTES


def is_rearrangement(node: object) -> bool:
    """Whether the node only changes the shape or the order of dimensions: a view of its first input, each element once."""
    return isinstance(node, fx.Node) and node.op == "call_function" and (node.target in _RESHAPES or is_permute(node))


def order_of(node: fx.Node) -> tuple[int, ...]:
    """The order in which a permutation puts the dimensions of its input."""
    rank = value_of(node).dim()
    if node.target is ATEN.permute.default:
        return tuple(int(d) % rank for d in node.args[1])  # type: ignore[union-attr,arg-type]
    first, second = (0, rank - 1) if node.target is ATEN.t.default else node.args[1:3]
    order = list(range(rank))
    if rank > 1:
        order[first], order[second] = order[second], order[first]  # type: ignore[index]
    return tuple(order)


def chain_of(node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """What ``node`` is a rearrangement of, and the views from there to it; the node itself and nothing when it is none."""
    views: list[fx.Node] = []
    while is_rearrangement(node):
        views.append(node)
        node = node.all_input_nodes[0]
    return node, tuple(reversed(views))


def keeps_order(views: tuple[fx.Node, ...]) -> bool:
    """Whether views leave the elements in their order: only shapes change."""
    return not any(map(is_permute, views))


def read_once(nodes: tuple[fx.Node, ...]) -> bool:
    """Whether each of the nodes has one reader (what the graph returns is read by that)."""
    return all(len(node.users) == 1 for node in nodes)


def viewed(before: fx.Node, source: fx.Node, views: tuple[fx.Node, ...]) -> fx.Node:
    """The same views of another tensor of the same shape."""
    for view in views:
        source = insert(before, view, view.target, source, *view.args[1:], **view.kwargs)  # type: ignore[arg-type]
    return source


def readers_through_views(node: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """Each (reader, views) such that the reader reads ``node`` through the views."""
    stack: list[tuple[fx.Node, tuple[fx.Node, ...]]] = [(node, ())]
    while stack:
        last, views = stack.pop()
        for user in last.users:
            if is_rearrangement(user):
                stack.append((user, (*views, user)))
            else:
                yield user, views
