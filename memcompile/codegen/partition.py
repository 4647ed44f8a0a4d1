"""PyTorch's own partition of a joint graph, and the extraction of forward and backward from a planned one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import fx

from memcompile.facts import StepGraphs
from memcompile.passes.rematerialize import JointGraph, saved_nodes


def default_partition(gm: fx.GraphModule, joint_inputs: Sequence[object], num_user_outputs: int, **kwargs: Any) -> StepGraphs:
    """The partition of plain ``torch.compile``: the min-cut of the joint graph at PyTorch's default settings."""
    from torch._functorch import config
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    kwargs.pop("compiler", None)
    with config.patch(activation_memory_budget=1.0):
        forward, backward = min_cut_rematerialization_partition(gm, joint_inputs, num_fwd_outputs=num_user_outputs, **kwargs)
    return StepGraphs(forward, backward, num_user_outputs)


def extract(joint: JointGraph, before: StepGraphs) -> StepGraphs:
    """Forward and backward of a planned joint graph; what crosses is saved. ``before``: the unplanned halves."""
    from torch._functorch.partitioners import _extract_fwd_bwd_modules

    tensors, symbols = saved_nodes(joint)
    forward, backward = _extract_fwd_bwd_modules(
        joint.module, tensors, saved_sym_nodes=symbols, num_fwd_outputs=joint.num_user_outputs
    )
    return dataclasses.replace(before, forward=forward, backward=backward, recomputed=joint.recomputed)
