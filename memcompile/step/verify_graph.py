"""Whether a rewritten graph is sound and takes and returns the same. Shares no code with what rewrites graphs."""

from __future__ import annotations

import torch
from torch import fx

from memcompile.step.fxutil import outputs_of
from memcompile.step.verify_values import VerificationError


def check_inputs(before: fx.Graph, after: fx.Graph) -> None:
    """The same inputs in the same order; others may follow. Raises VerificationError."""
    names = [node.target for node in before.find_nodes(op="placeholder")]
    if names != [node.target for node in after.find_nodes(op="placeholder")][: len(names)]:
        raise VerificationError("inputs changed")


def check_outputs(before: fx.Graph, after: fx.Graph, count: int | None = None) -> None:
    """Shapes, strides, types and devices of the first ``count`` outputs, of all without it. Raises VerificationError."""
    old, new = outputs_of(before)[:count], outputs_of(after)[:count]
    if len(old) != len(new):
        raise VerificationError(f"{len(new)} outputs, {len(old)} before")
    for index, (a, b) in enumerate(zip(old, new, strict=True)):
        if _signature(a) != _signature(b):
            raise VerificationError(f"output {index} changed: {_signature(a)} before, {_signature(b)} after")


def check_shapes(module: fx.GraphModule) -> None:
    """Every node that yields anything carries the value that shape propagation needs. Raises VerificationError."""
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
