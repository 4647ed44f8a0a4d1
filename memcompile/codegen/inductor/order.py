"""The planned order of kernels.

Inductor orders fused kernels by heuristics of its own. A plan recomputes as late as possible and counts on it: kernels of a
planned graph run in the order of their FX nodes, as far as their dependencies allow.
"""

from __future__ import annotations

from typing import Any

from memcompile.codegen.inductor.swapped import returns_operand
from memcompile.step.cost import is_extern
from memcompile.step.fxutil import topological


def planned_order(nodes: list[Any]) -> list[Any]:
    """Fused scheduler nodes, each as early as its last FX node stands, producers before readers."""
    from torch._inductor.virtualized import V

    place = {node: index for index, node in enumerate(V.graph.graph.nodes)}
    producer = {name: node for node in nodes for name in node.get_buffer_names()}
    sources = {node: {producer[dep.name] for dep in node.unmet_dependencies if dep.name in producer} - {node} for node in nodes}
    key = {node: (_last_origin(node, place), before) for before, node in enumerate(nodes)}
    result = topological(nodes, sources, key)
    if len(result) != len(nodes):
        raise AssertionError("the fused kernels of a planned graph depend on each other in a circle")
    return result


def _last_origin(node: Any, place: dict[Any, int]) -> int:
    buffers = [part.node for part in node.get_nodes() if part.node is not None]
    roots = [buffer.get_origin_node() for buffer in buffers]
    found = [root for root in roots if root in place and not returns_operand(root)]  # such a node takes its operand's name over
    if not found:  # what a library kernel reads may be computed for it: that kernel is named too
        found = [origin for buffer in buffers for origin in buffer.get_origins() if origin in place]
        found = [origin for origin in found if not is_extern(origin)] or found
    return max(map(place.__getitem__, found), default=-1)
