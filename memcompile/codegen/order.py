"""The planned order of kernels.

Inductor orders fused kernels by heuristics of its own. A plan recomputes as late as possible and counts on it: kernels of a
planned graph run in the order of their FX nodes, as far as their dependencies allow.
"""

from __future__ import annotations

import heapq
from typing import Any

from memcompile.cost import is_extern


def planned_order(nodes: list[Any]) -> list[Any]:
    """Fused scheduler nodes, each as early as its last FX node stands, producers before readers."""
    from torch._inductor.virtualized import V

    place = {node: index for index, node in enumerate(V.graph.graph.nodes)}
    producer = {name: node for node in nodes for name in node.get_buffer_names()}
    waiting: dict[Any, int] = {}
    readers: dict[Any, list[Any]] = {node: [] for node in nodes}
    for node in nodes:
        sources = {producer[dep.name] for dep in node.unmet_dependencies if dep.name in producer} - {node}
        waiting[node] = len(sources)
        for source in sources:
            readers[source].append(node)
    before = {node: index for index, node in enumerate(nodes)}
    key = {node: (_last_origin(node, place), before[node]) for node in nodes}
    ready = [(*key[node], node) for node in nodes if not waiting[node]]
    heapq.heapify(ready)
    result = []
    while ready:
        node = heapq.heappop(ready)[-1]
        result.append(node)
        for reader in readers[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (*key[reader], reader))
    if len(result) != len(nodes):
        raise AssertionError("the fused kernels of a planned graph depend on each other in a circle")
    return result


def _last_origin(node: Any, place: dict[Any, int]) -> int:
    buffers = [part.node for part in node.get_nodes() if part.node is not None]
    found = [root for buffer in buffers if (root := buffer.get_origin_node()) in place]
    if not found:  # what a library kernel reads may be computed for it: that kernel is named too
        found = [origin for buffer in buffers for origin in buffer.get_origins() if origin in place]
        found = [origin for origin in found if not is_extern(origin)] or found
    return max(map(place.__getitem__, found), default=-1)
