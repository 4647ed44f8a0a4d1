"""Invariants of a planned step, checked after every pass. Shares no code with the planners."""

from __future__ import annotations

import torch
from torch import fx

from memcompile.codegen.inductor.joint import JointGraph
from memcompile.solvers.schedule.problem import Solution
from memcompile.solvers.schedule.simulate import validate
from memcompile.step.facts import Facts, StepGraphs
from memcompile.step.fxutil import outputs_of
from memcompile.step.verify_values import VerificationError, check_values


def verify(facts: Facts, solution: Solution, joint: JointGraph, graphs: StepGraphs) -> None:
    """Check a plan, the graph it was written to, and the halves extracted from that.

    Raises VerificationError (or ValueError from the schedule's own rules).
    """
    validate(facts.problem, solution.schedule)
    before = facts.graphs
    check_signature(before, graphs)
    check_values(before, graphs)
    joint.module.graph.lint()
    for module in (graphs.forward, graphs.backward):
        if module is not None:
            module.graph.lint()
            check_shapes(module)


def check_signature(before: StepGraphs, after: StepGraphs) -> None:
    """Same inputs, same user outputs, same gradients: shapes, strides and dtypes."""
    pairs = [(before.forward, after.forward, before.num_user_outputs)]
    if before.backward is not None and after.backward is not None:
        pairs.append((before.backward, after.backward, len(outputs_of(before.backward.graph))))
    for old, new, count in pairs:
        old_out, new_out = outputs_of(old.graph)[:count], outputs_of(new.graph)[:count]
        for index, (a, b) in enumerate(zip(old_out, new_out, strict=True)):
            if _signature(a) != _signature(b):
                raise VerificationError(f"output {index} changed: {_signature(a)} before, {_signature(b)} after")
    names = [n.target for n in before.forward.graph.find_nodes(op="placeholder")]
    if names != [n.target for n in after.forward.graph.find_nodes(op="placeholder")]:
        raise VerificationError("inputs of the forward changed")


def check_shapes(module: fx.GraphModule) -> None:
    """Every node that yields anything carries the value that shape propagation needs."""
    for node in module.graph.nodes:
        yields = not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.returns
        if node.op in ("placeholder", "call_function") and yields and "val" not in node.meta:
            raise VerificationError(f"{node} ({node.target}) has no fake value")


def _signature(output: object) -> object:
    if not isinstance(output, fx.Node):
        return output
    value = output.meta.get("val")
    if isinstance(value, torch.Tensor):
        return (tuple(map(str, value.shape)), tuple(map(str, value.stride())), value.dtype, value.device)
    return type(value)
