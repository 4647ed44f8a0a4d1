"""Attention over low-rank heads, computed in their ranks. For inference: a backward reads what this does not make.

    q = Pq Vq + bq      k = Pk Vk + bk      v = Pv Vv + bv        per head: P [N, R], V [R, head], R < head, no rotation between

    softmax(s q k^T) v  =  softmax(s q' Pk^T) Pv Vv + bv          with  q' = Pq (Vq Vk^T) + bq Vk^T,   s = 1 / sqrt(head)

q k^T = q Vk^T Pk^T + q bk^T, and the last term is the same for every key: the softmax does not see it, masked or not. Its rows
sum to one, so bv comes out as it is. Queries, keys and values of full width are never made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx

from memcompile.step.rewriting import (
    ATEN,
    Outcome,
    chain_of,
    insert,
    is_permute,
    is_tensor,
    order_of,
    read_once,
    refuse,
    replace,
    rewrite,
    size_bytes,
    value_of,
)

_HEADS_FIRST = (1, 0, 2, 3)


@dataclass(frozen=True, slots=True)
class Projection:
    """``heads`` [B, H, N, head] = ``ranks`` [G, M, R] @ ``factor`` [G, R, head] + ``bias`` (which may be None).

    ``shared``: G is H, M is B N, and ``factor`` is that of all of the batch. Otherwise G is B H, and M is N. ``nodes``: what
    stands between the product and the attention.
    """

    heads: fx.Node
    ranks: fx.Node
    factor: fx.Node
    bias: fx.Node | None
    shared: bool
    nodes: tuple[fx.Node, ...]

    @property
    def shape(self) -> torch.Size:
        """[B, H, N, head]."""
        return value_of(self.heads).shape

    @property
    def rank(self) -> int:
        """R."""
        return int(value_of(self.ranks).shape[2])


def fold_attention(graph: fx.Graph) -> Iterator[Outcome]:
    """Let attention work on the ranks of its heads."""
    for node in list(graph.nodes):
        if node.target is not ATEN._scaled_dot_product_flash_attention_for_cpu.default:
            continue
        found = [_projection(source) for source in node.args[:3]]
        query, key, value = found
        if query is None or key is None or value is None:
            continue
        why = _why_not(node, query, key, value)
        if why:
            yield refuse("attention", node, why)
            continue
        full = sum(size_bytes(projection.heads) for projection in (query, key, value))
        yield rewrite("attention", node, full, f"attends in {key.rank} of {key.shape[3]} dimensions")
        _write(node, query, key, value)


def _projection(node: Any) -> Projection | None:
    """What makes the heads, None when they are not made from ranks."""
    if not is_tensor(node) or value_of(node).dim() != 4:
        return None
    bias, nodes = None, (node,)
    if node.target is ATEN.add.Tensor and not node.kwargs and all(map(is_tensor, node.args)):
        node, bias = node.args if _is_bias(node.args[1], node) else reversed(node.args)
        if not _is_bias(bias, nodes[0]) or value_of(node).shape != value_of(nodes[0]).shape:
            return None
    product, views = chain_of(node)
    shared = bool(views) and is_permute(views[-1])
    if product.target is not ATEN.bmm.default or len(views) != 1 + shared:
        return None
    batch, heads, tokens, _ = value_of(node).shape
    if shared and (order_of(views[-1]) != _HEADS_FIRST or tuple(value_of(views[0]).shape[:3]) != (heads, batch, tokens)):
        return None
    group = (heads, batch * tokens) if shared else (batch * heads, tokens)
    if tuple(value_of(product).shape[:2]) != group:
        return None
    ranks, factor = product.args
    made = tuple(dict.fromkeys((product, *views, *nodes)))
    return Projection(nodes[0], ranks, factor, bias, shared, made)  # type: ignore[arg-type]


def _is_bias(bias: Any, heads: fx.Node) -> bool:
    """Whether a tensor is one vector a head, or one for all of them."""
    shape = value_of(bias).shape
    padded = (*(1,) * (4 - len(shape)), *shape)
    count, width = value_of(heads).shape[1], value_of(heads).shape[3]
    return padded[0] == padded[2] == 1 and padded[1] in (1, count) and padded[3] == width


def _why_not(node: fx.Node, query: Projection, key: Projection, value: Projection) -> str:
    """Why the attention stays as it is; empty when it can be folded."""
    if len(node.args) > 3 and node.args[3] != 0.0:
        return "attention drops weights at random"
    if any(user.target is not getitem or user.args[1] != 0 for user in node.users):
        return "its backward reads the logarithms of its sums"
    if value.bias is not None and node.kwargs.get("attn_mask") is not None:
        return "a mask may hide every key of a query, whose result then has no bias"
    if not all(read_once(projection.nodes) for projection in (query, key, value)):
        return "queries, keys or values are used elsewhere"
    if len({projection.shared for projection in (query, key, value)}) > 1 or query.shape[:2] != key.shape[:2]:
        return "the factors of queries, keys and values have different forms"
    if key.rank != value.rank or not key.rank < key.shape[3]:
        return f"the ranks {key.rank} and {value.rank} of keys and values are not one that is below {key.shape[3]}"
    return ""


def _write(node: fx.Node, query: Projection, key: Projection, value: Projection) -> None:
    batch, heads, tokens, width = query.shape

    def new(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return insert(node, node, target, *args, **kwargs)

    def split(source: fx.Node, length: int) -> fx.Node:
        """[G, M, R] -> [B, H, length, R]."""
        if not query.shared:
            return new(ATEN.view.default, source, [batch, heads, length, -1])
        return new(ATEN.permute.default, new(ATEN.view.default, source, [heads, batch, length, -1]), list(_HEADS_FIRST))

    transposed = new(ATEN.permute.default, key.factor, [0, 2, 1])
    asked = new(ATEN.bmm.default, query.ranks, new(ATEN.bmm.default, query.factor, transposed))
    if query.bias is not None:
        asked = new(ATEN.add.Tensor, asked, new(ATEN.bmm.default, _per_group(node, query), transposed))
    sources = (split(asked, tokens), split(key.ranks, key.shape[2]), split(value.ranks, key.shape[2]))
    given = {name: argument for name, argument in node.kwargs.items() if argument is not None}
    kwargs = {"scale": 1 / math.sqrt(width), **given}
    attention = new(node.target, *sources, *node.args[3:], **kwargs)
    mixed = new(getitem, attention, 0)
    if query.shared:
        mixed = new(ATEN.permute.default, mixed, list(_HEADS_FIRST))
    mixed = new(ATEN.clone.default, mixed, memory_format=torch.contiguous_format)
    grouped = new(ATEN.view.default, mixed, [value_of(value.factor).shape[0], -1, value.rank])
    result = split(new(ATEN.bmm.default, grouped, value.factor), tokens)
    if value.bias is not None:
        result = new(ATEN.add.Tensor, result, value.bias)
    for user in list(node.users):
        replace(user, _laid_out(result, user))


def _per_group(before: fx.Node, query: Projection) -> fx.Node:
    """The bias as one row for each product of the batch: [G, 1, head]."""
    assert query.bias is not None
    batch, heads, _, width = query.shape
    shape = [1 if query.shared else batch, heads, 1, width]
    spread = insert(before, query.bias, ATEN.expand.default, query.bias, shape)
    copy = insert(before, query.bias, ATEN.clone.default, spread, memory_format=torch.contiguous_format)
    return insert(before, query.bias, ATEN.view.default, copy, [-1, 1, width])


def _laid_out(node: fx.Node, like: fx.Node) -> fx.Node:
    """The same values with the strides of another tensor, which is dense."""
    strides = value_of(like).stride()
    if value_of(node).stride() == strides:
        return node
    order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
    ordered = insert(like, like, ATEN.permute.default, node, order)
    copy = insert(like, like, ATEN.clone.default, ordered, memory_format=torch.contiguous_format)
    return insert(like, like, ATEN.permute.default, copy, [order.index(dim) for dim in range(len(order))])
