"""PyTorch's own partition of a joint graph, and the extraction of forward and backward from a planned one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from memcompile.codegen.inductor.joint import JointGraph, saved_nodes
from memcompile.step.facts import StepGraphs
from memcompile.step.fxutil import base_of, is_pure, mutated_inputs, outputs_of


def default_partition(gm: fx.GraphModule, joint_inputs: Sequence[object], num_user_outputs: int, **kwargs: Any) -> StepGraphs:
    """The partition of plain ``torch.compile``: the min-cut of the joint graph at PyTorch's default settings."""
    from torch._functorch import config
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    kwargs.pop("compiler", None)
    with config.patch(activation_memory_budget=1.0):
        forward, backward = min_cut_rematerialization_partition(gm, joint_inputs, num_fwd_outputs=num_user_outputs, **kwargs)
    _save_before_overwriting(forward, backward, num_user_outputs)
    for node in (*forward.graph.find_nodes(op="placeholder"), *backward.graph.find_nodes(op="placeholder")):
        node.meta.setdefault("val", 0)  # a size that is a plain number in this call: nothing reads it
    return StepGraphs(forward, backward, num_user_outputs)


def _save_before_overwriting(forward: fx.GraphModule, backward: fx.GraphModule, num_user_outputs: int) -> None:
    """Save a copy of each input that the forward overwrites (a buffer) and the backward reads.

    PyTorch's partition saves the input itself: by the time of the backward it has its new value, and gradients are wrong.
    """
    output = forward.graph.output_node()
    outputs = list(outputs_of(forward.graph))
    overwritten = mutated_inputs(forward.graph)
    inputs = {node.name: node for node in backward.graph.find_nodes(op="placeholder")}
    after_inputs = next(node for node in forward.graph.nodes if node.op != "placeholder")
    for index, node in enumerate(outputs[num_user_outputs:], num_user_outputs):
        if not isinstance(node, fx.Node) or base_of(node) not in overwritten or base_of(node).op != "placeholder":
            continue
        with forward.graph.inserting_before(after_inputs if node.op == "placeholder" else node.next):
            outputs[index] = copy = forward.graph.call_function(torch.ops.aten.clone.default, (node,))
        copy.meta = {**node.meta, "val": node.meta["val"].clone()}
        inputs[node.name]._rename(copy.name)
        inputs[node.name].target = copy.name
    output.args = (tuple(outputs),)
    forward.recompile()
    backward.recompile()


def extract(joint: JointGraph, before: StepGraphs) -> StepGraphs:
    """Forward and backward of a planned joint graph; what crosses is saved. ``before``: the unplanned halves.

    PyTorch leaves out of a half what has an effect and is tagged for the other one: every node gets the tag of its own.
    """
    from torch._functorch.partitioners import _extract_fwd_bwd_modules

    if before.backward is None:
        return dataclasses.replace(before, forward=joint.module, planned=joint.planned())
    for node in joint.module.graph.nodes:
        node.meta.pop("partitioner_tag", None)
        if node.op == "call_function" and not is_pure(node):
            node.meta["partitioner_tag"] = "must_be_in_forward" if node in joint.forward_nodes else "must_be_in_backward"
    tensors, symbols = saved_nodes(joint)
    forward, backward = _extract_fwd_bwd_modules(
        joint.module, tensors, saved_sym_nodes=symbols, num_fwd_outputs=joint.num_user_outputs
    )
    return dataclasses.replace(before, forward=forward, backward=backward, planned=joint.planned())
