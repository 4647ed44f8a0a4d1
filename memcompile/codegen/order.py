"""The planned order of kernels.

Inductor orders fused kernels by heuristics of its own. A plan recomputes as late as possible and counts on it: kernels of a
planned graph run in the order of their FX nodes, as far as their dependencies allow.
"""

from __future__ import annotations

import heapq
from typing import Any


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
    roots = [part.node.get_origin_node() for part in node.get_nodes() if part.node is not None]
    places = [place[root] for root in roots if root in place]
    if not places:
        origins = [origin for part in node.get_nodes() if part.node is not None for origin in part.node.get_origins()]
        places = [place[origin] for origin in origins if origin in place]
    return max(places, default=-1)
