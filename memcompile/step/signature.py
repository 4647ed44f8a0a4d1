"""What tells two steps apart: blocks of one kind, compiled one after the other, are one step to whoever plans them."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from memcompile.step.facts import StepGraphs


def signature(graphs: StepGraphs) -> Hashable | None:
    """The same for steps that compute the same from inputs of the same layout, wherever they stand in the user's code; None
    where that cannot be told: sizes that are symbols, constants, tensors that are not dense, graphs inside."""
    halves = [half for half in (graphs.forward, graphs.backward) if half is not None]
    nodes = [node for half in halves for node in half.graph.nodes]
    if any(node.op == "get_attr" for node in nodes):
        return None
    found = [_of_node(node) for node in nodes]
    if any(each is None for each in found):
        return None
    return graphs.num_user_outputs, graphs.planned, graphs.tangents_held, torch.get_num_threads(), tuple(found)


def _of_node(node: fx.Node) -> Hashable | None:
    layouts = []
    for leaf in tree_leaves(node.meta.get("val")):
        if not isinstance(leaf, torch.Tensor):
            layout: Hashable = repr(leaf) if not isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool) else None
        else:
            layout = _layout(leaf)
        if layout is None:
            return None
        layouts.append(layout)
    return node.op, node.name, str(node.target), str(node.args), str(node.kwargs), tuple(layouts)


def _layout(tensor: torch.Tensor) -> Hashable | None:
    if tensor.layout is not torch.strided:
        return None
    sizes = (*tensor.shape, *tensor.stride(), tensor.storage_offset())
    if not all(isinstance(size, int) for size in sizes):
        return None
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device
