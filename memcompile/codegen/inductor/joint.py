"""A planned step as one graph: the forward, then the backward, from which both halves are extracted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from memcompile.runtime.transfers.sources import Moved
from memcompile.step.facts import Planned
from memcompile.step.fxutil import is_symbol, outputs_of

_BACKWARD_INPUTS = ("tangents", "bwd_seed", "bwd_base_offset", "backward_state")


@dataclass(frozen=True, slots=True)
class JointGraph:
    """A step in one graph: ``forward_nodes`` (inputs included) come first, the backward follows.

    The first ``num_user_outputs`` outputs are the forward's, the rest are gradients. ``recomputed``: names of inserted nodes.
    ``positions``: (half, node name) -> position in the schedule of the op that the node belongs to. ``apart``: positions of ops
    that must share no C++ function with others. ``moved``: storages that leave for a while; they must live as long as the code.
    """

    module: fx.GraphModule
    forward_nodes: frozenset[fx.Node]
    num_user_outputs: int
    recomputed: frozenset[str]
    positions: dict[tuple[str, str], int]
    apart: frozenset[int] = frozenset()
    moved: tuple[Moved, ...] = ()

    def planned(self) -> Planned:
        """What lowering must keep."""
        apart = (name for (_, name), position in self.positions.items() if position in self.apart)
        return Planned(self.recomputed, frozenset(name for _, name in self.positions), frozenset(apart))


def saved_nodes(joint: JointGraph) -> tuple[list[fx.Node], list[fx.Node]]:
    """(tensors, symbols) of the forward half that the backward half reads, in graph order."""
    gradients = set(outputs_of(joint.module.graph)[joint.num_user_outputs :])
    tensors: list[fx.Node] = []
    symbols: list[fx.Node] = []
    for node in joint.module.graph.nodes:
        if node not in joint.forward_nodes or (node.op == "placeholder" and str(node.target).startswith(_BACKWARD_INPUTS)):
            continue
        if node not in gradients and not any(user not in joint.forward_nodes and user.op != "output" for user in node.users):
            continue
        if not is_symbol(node) and not isinstance(node.meta.get("val"), torch.Tensor):
            raise AssertionError(f"{node} is neither a tensor nor a size, but the backward reads it")
        (symbols if is_symbol(node) else tensors).append(node)
    return tensors, symbols
