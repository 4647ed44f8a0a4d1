"""The order that effects need beside the flow of values."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from memcompile.step.fxutil import is_pure, mutated_inputs, written_by


def order_of_effects(graph: fx.Graph, roots: Collection[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """Per root, the roots before it in the graph that it has to follow although it may read nothing of them.

    What reads memory that is written in place (an input, a buffer) stays on its side of the write. What draws random numbers,
    communicates or has another effect stays behind the one before it. ``roots``: the nodes that run; the others are fused into
    the roots that read them.
    """
    mutated = mutated_inputs(graph)
    waits: dict[fx.Node, set[fx.Node]] = {root: set() for root in roots}
    readers: dict[fx.Node, list[fx.Node]] = {memory: [] for memory in mutated}
    writer: dict[fx.Node, fx.Node] = {}
    effect: fx.Node | None = None
    for node in graph.nodes:
        if node not in roots:
            continue
        written = written_by(node)
        for memory in _read_by(node, roots, mutated) if mutated else ():
            readers[memory].append(node)
            if memory in writer:
                waits[node].add(writer[memory])
        for memory in written:
            waits[node].update(readers[memory])
            readers[memory], writer[memory] = [], node
        if not written and not is_pure(node):
            if effect is not None:
                waits[node].add(effect)
            effect = node
        waits[node].discard(node)
    return waits


def _read_by(root: fx.Node, roots: Collection[fx.Node], memories: Collection[fx.Node]) -> set[fx.Node]:
    """Which of some memories a root reads, directly or through what is fused into it."""
    found: set[fx.Node] = set()
    seen, stack = {root}, [root]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source in memories:
                found.add(source)
            elif source not in seen and source not in roots:
                seen.add(source)
                stack.append(source)
    return found
