"""Low-rank products in one spelling, before graphs are partitioned and lowered.

    views that follow each other     folded                                        arrangement.py
    copies that change nothing       dropped
    bmm of batch 1                   mm
    x @ (U @ V)                      (x @ U) @ V                                   reassociation.py
    attention over low-rank heads    over their ranks (inference)                  attention_fold.py
    scales                           of the small tensors                          scaling.py
    base + P @ B                     added to base where it lies                   accumulation.py

Works on inference graphs and on joint graphs (forward and backward) of ATen ops whose nodes carry fake tensors. What a rewrite
replaces is gone afterwards; inputs, outputs and their order stay. Results agree within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from memcompile.passes.rows.accumulation import accumulate
from memcompile.passes.rows.arrangement import Arrangement
from memcompile.passes.rows.attention_fold import fold_attention
from memcompile.passes.rows.reassociation import reassociate
from memcompile.passes.rows.scaling import scale_in_rank_space, unscale_gradients
from memcompile.step.fxutil import base_of, is_symbol, mutated_inputs, outputs_of, tensors_of
from memcompile.step.rewriting import (
    ATEN,
    Outcome,
    RefusedPattern,
    chain_of,
    insert,
    is_permute,
    is_rearrangement,
    is_tensor,
    order_of,
    replace,
    rewrite,
    size_bytes,
    value_of,
)


def canonicalise(module: fx.GraphModule) -> tuple[Outcome, ...]:
    """Rewrite the graph of ``module`` in place; returns what was done, and what was refused with the reason."""
    graph = module.graph
    if _is_dynamic(graph):
        return (RefusedPattern("canonical", "", "", "dynamic shapes: sizes are not known"),)
    found: list[Outcome] = []
    for step in (drop_copies, fold_views, unbatch, fold_views):
        found += step(graph)
    for step in (reassociate, fold_attention, scale_in_rank_space, unscale_gradients, accumulate):
        found += step(graph)
    found += fold_views(graph)
    graph.lint()
    module.recompile()
    return tuple(found)


def _is_dynamic(graph: fx.Graph) -> bool:
    tensors = (tensor for node in graph.nodes for tensor in tensors_of(node))
    lengths = (length for tensor in tensors for length in (*tensor.shape, *tensor.stride()))
    return any(map(is_symbol, graph.nodes)) or any(isinstance(length, torch.SymInt) for length in lengths)


def fold_views(graph: fx.Graph) -> tuple[Outcome, ...]:
    """Each chain of views as the fewest that do the same; equal views of one tensor once.

    What the graph returns stays apart from its inputs and from each other.
    """
    returned = set(outputs_of(graph))
    known: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is ATEN.expand.default and node not in returned and value_of(node).shape == value_of(node.args[0]).shape:
            replace(node, node.args[0])
        elif is_rearrangement(node) and value_of(node).numel():
            new = _folded(node) or node
            if node in returned:
                same = node if new in returned or new.op == "placeholder" else new
                returned.add(same)
            else:
                same = known.setdefault((new.target, str(new.args)), new) if is_rearrangement(new) else new
            if same is not node:
                node.replace_all_uses_with(same)
    for node in reversed(graph.nodes):
        if is_rearrangement(node) and not node.users:
            graph.erase_node(node)
    return ()


def _folded(node: fx.Node) -> fx.Node | None:
    """The shorter chain that stands for a view; None when there is none."""
    source, views = chain_of(node)
    arrangement = Arrangement(tuple(value_of(source).shape))
    for view in views:
        if is_permute(view):
            arrangement.permute(order_of(view))
        elif not arrangement.reshape(tuple(value_of(view).shape)):
            return None
    steps = arrangement.steps()
    if len(steps) >= len(views):
        return None
    for kind, numbers in steps:
        source = insert(node, node, ATEN.view.default if kind == "view" else ATEN.permute.default, source, list(numbers))
    return source


def drop_copies(graph: fx.Graph) -> Iterator[Outcome]:
    """Drop copies with the strides of their source, where nobody writes to it and the copy is no result of its own."""
    written = mutated_inputs(graph)
    held = {base_of(node) for node in outputs_of(graph) if isinstance(node, fx.Node)}
    for node in list(graph.nodes):
        if node.target is not ATEN.clone.default or node in held or not is_tensor(node):
            continue
        source = node.args[0]
        copied = base_of(source) not in written and value_of(node).stride() == value_of(source).stride()
        if copied and node.users:
            yield rewrite("copy", node, size_bytes(node), f"drops a copy of {source.name}")
            replace(node, source)


def unbatch(graph: fx.Graph) -> Iterator[Outcome]:
    """``bmm`` of one pair of matrices is ``mm``."""
    for node in list(graph.nodes):
        if node.target is not ATEN.bmm.default or value_of(node).shape[0] != 1:
            continue
        yield rewrite("matrix", node, 0, "a batch of one product is a product")
        left, right = (insert(node, node, ATEN.squeeze.dim, factor, 0) for factor in node.args)
        product = insert(node, node, ATEN.mm.default, left, right)
        replace(node, insert(node, node, ATEN.unsqueeze.default, product, 0))
