"""What tells two steps apart: blocks of one kind, compiled one after the other, are one step to whoever plans them."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch.utils._pytree import tree_leaves

from memcompile.step.facts import StepGraphs


def signature(graphs: StepGraphs) -> Hashable | None:
    """The same for steps that compute the same from inputs of the same layout, wherever they stand in the user's code; None
    where that cannot be told: sizes that are symbols, constants, tensors that are not dense, graphs inside."""
    halves = [half for half in (graphs.forward, graphs.backward) if half is not None]
    nodes = [node for half in halves for node in half.graph.nodes]
    if any(node.op == "get_attr" for node in nodes):
        return None
    layouts = [_layout(leaf) for node in nodes for leaf in tree_leaves(node.meta.get("val"))]
    if None in layouts:
        return None
    calls = tuple((node.op, node.name, str(node.target), str(node.args), str(node.kwargs)) for node in nodes)
    return graphs.num_user_outputs, graphs.planned, graphs.tangents_held, calls, tuple(layouts)


def _layout(value: object) -> Hashable | None:
    """Of what a node yields; None where it is a symbol, has sizes that are, or is not dense."""
    if not isinstance(value, torch.Tensor):
        return None if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else repr(value)
    sizes = (*value.shape, *value.stride(), value.storage_offset()) if value.layout is torch.strided else (None,)
    if not all(isinstance(size, int) for size in sizes):
        return None
    return value.shape, value.stride(), value.storage_offset(), value.dtype, value.device
