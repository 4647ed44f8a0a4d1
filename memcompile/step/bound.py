"""A number of bytes that no execution of a step stays below, in whatever order, fused and recomputed however.

It counts only what has to be in memory at one time: all that a step leaves behind, what its forward returns, and what a
library call reads and writes. Nothing is taken from a planner, nor from lowered code: both may do better than they say.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from memcompile.step.facts import StepGraphs
from memcompile.step.fxutil import base_of, hint, outputs_of

_PRODUCTS = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "convolution": (0, 1),
    "convolution_backward": (0, 1, 2),
}
"""Library calls whatever is fused, with the operands that stay whole while they run: not the addend of ``addmm``, since the sum
may take its place."""

_COPY = torch.ops.aten.copy_.default


def least_bytes(graphs: StepGraphs, entry_bytes: int) -> int:
    """``entry_bytes``: the inputs of the graph, which are alive throughout."""
    halves = [half.graph for half in (graphs.forward, graphs.backward) if half is not None]
    inputs = {node.name for node in halves[0].find_nodes(op="placeholder")}
    inputs |= {
        copy.args[1].name for graph in halves for copy in graph.find_nodes(op="call_function", target=_COPY)
    }  # made in place
    returned = outputs_of(halves[0])[: graphs.num_user_outputs]
    moments = [_whole(returned, inputs)]
    if graphs.backward is not None:
        moments.append(_whole(outputs_of(halves[1]), inputs))
    if not any("memcompile" in str(node.target) for graph in halves for node in graph.nodes):  # else parts run block by block
        moments += [_call_bytes(node, inputs) for graph in halves for node in graph.nodes]
    return entry_bytes + max(moments)


def _call_bytes(node: fx.Node, inputs: set[str]) -> int:
    """What a library call needs at once; 0 for any other node."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return 0
    if (places := _PRODUCTS.get(node.target._opname)) is None:
        return 0
    return _whole([node.args[place] for place in places], inputs) + _distinct_bytes(node)


def _whole(values: Iterable[object], inputs: set[str]) -> int:
    """Bytes that values take at once, inputs aside; of several views of one tensor those of the largest."""
    found: dict[fx.Node, int] = {}
    for value in values:
        if isinstance(value, fx.Node) and (base := base_of(value)).name not in inputs:
            found[base] = max(found.get(base, 0), _distinct_bytes(value))
    return sum(found.values())


def _distinct_bytes(node: fx.Node) -> int:
    """Bytes of the elements of a dense tensor, repeated ones (a stride of zero) once; 0 where elements overlap otherwise."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return 0
    dimensions = sorted((hint(step), hint(size)) for size, step in zip(value.shape, value.stride(), strict=True))
    if any(size == 0 for _, size in dimensions):
        return 0
    span = count = 1
    for step, size in dimensions:
        if step == 0 or size == 1:
            continue
        if step < span:
            return 0
        span, count = step * size, count * size
    return count * value.itemsize
