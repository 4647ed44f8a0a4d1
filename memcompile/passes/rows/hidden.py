"""Regions of a joint graph: the hidden of the forward is never whole, and the backward makes it again, block by block.

The hidden is all that has the width of a factored product, from there to the products that contract it. The forward's part is
one region. What the backward reads of it is copied into the backward's region: that one reads the rank-space operands, which
are saved, and the gradients in rank space; it returns gradients in rank space and sums over the rows, the gradients of weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from operator import getitem

from torch import fx

from memcompile.passes.rows.necks import Found
from memcompile.step.cost import is_extern
from memcompile.step.fxutil import is_view, node_bytes, tensors_of
from memcompile.streaming.profile import LiveProfile
from memcompile.streaming.region import RowRegion, RowsOf, enclose, spread
from memcompile.streaming.rules import NotRowLocalError, contracted, normal, shape_of

WIDER = 1.5
"""A product is a hidden when it is that much wider than what its first factor reads."""
AS_WIDE = 0.75
"""What has at least this share of the hidden's elements belongs to it."""


@dataclass(slots=True)
class _Grown:
    """Nodes as wide as the hidden, and the narrow ones and the sums that read them."""

    wide: set[fx.Node] = field(default_factory=set)
    ends: set[fx.Node] = field(default_factory=set)


@dataclass(slots=True)
class Hidden:
    """``regions``: of the forward, then of the backward. ``copies``: what the graph got for the backward, by original."""

    regions: list[Found] = field(default_factory=list)
    copies: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def undo(self) -> None:
        """The graph as it was."""
        for node, copy in self.copies.items():
            copy.replace_all_uses_with(node)
        for copy in reversed(self.copies.values()):
            copy.graph.erase_node(copy)


def regions_of_hidden(graph: fx.Graph, seed: fx.Node, factor: fx.Node) -> Hidden:
    """Forward and backward regions of the hidden that ``seed`` makes; the graph gets the copies for the backward.

    ``factor``: the first product. Empty where there is no hidden. Raises NotRowLocalError where it cannot be streamed.
    """
    shape = shape_of(seed)
    axis, source = len(shape) - 2, factor.all_input_nodes
    read = max(math.prod(shape_of(node)) for node in source if shape_of(node)[-2:-1] == shape_of(factor)[-2:-1])
    if math.prod(shape) < WIDER * read:
        return Hidden()
    total = shape[axis]
    rows, inside = spread(seed, normal(shape, axis, axis, 1), total)
    found = _grow(seed, rows, inside)
    backward = _after_tangents(graph)
    forward_nodes = {node for node in (*found.wide, *found.ends) if node not in backward}
    backward_nodes = {node for node in (*found.wide, *found.ends) if node in backward}
    hidden = Hidden()
    if backward_nodes:
        hidden.copies = _made_again(graph, backward_nodes, found.wide - backward)
        backward_nodes |= set(hidden.copies.values())
    rows |= {copy: rows[node] for node, copy in hidden.copies.items() if node in rows}
    inside |= set(hidden.copies.values())
    try:
        halves = [_hull(graph, nodes, inside) for nodes in (forward_nodes, backward_nodes) if nodes]
        hidden.regions = [_found(graph, nodes, rows, total) for nodes in halves]
    except NotRowLocalError:
        hidden.undo()
        raise
    return hidden


def chain_around(graph: fx.Graph, seed: fx.Node, factor: fx.Node) -> RowRegion | None:
    """The hidden with the products before and after it that nobody else reads: all that one fused kernel can do.

    For graphs without a backward. None where there is no hidden. Raises NotRowLocalError where it cannot be streamed.
    """
    hidden = regions_of_hidden(graph, seed, factor)
    if not hidden.regions:
        return None
    region = hidden.regions[0].region
    axis = len(shape_of(seed)) - 2
    rows, inside = spread(seed, normal(shape_of(seed), axis, axis, 1), region.total)
    nodes = set(region.nodes)
    while more := {n for n in inside - nodes if _joins(n, nodes)}:
        nodes |= more
    run = [node for node in graph.nodes if node in nodes]
    return enclose(run, {n: rows[n] for n in run}, region.total)


def _joins(node: fx.Node, nodes: Collection[fx.Node]) -> bool:
    """Whether a node is read by a chain alone; or reads, alone, what the chain makes: as the product that widens it again, or
    without a library."""
    if all(user in nodes for user in node.users):
        return is_view(node) or is_extern(node)
    made = [source for source in node.all_input_nodes if source in nodes and len(source.users) == 1]
    return bool(made) and (not is_extern(node) or node_bytes(made[0]) < node_bytes(node))


def _grow(seed: fx.Node, rows: RowsOf, inside: Collection[fx.Node]) -> _Grown:
    least = AS_WIDE * math.prod(shape_of(seed))
    found = _Grown()
    stack = [seed]

    def wide_sources(node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if _is_wide(source, least)]

    def made_inside(node: fx.Node) -> bool:
        """Whether less crosses into the region than the tensor itself: nothing wide, or the booleans of a mask."""
        return node in inside and sum(map(crossing, wide_sources(node))) < node_bytes(node)

    @functools.cache
    def crossing(node: fx.Node) -> int:
        """Fewest bytes of wide tensors from outside that give the tensor inside."""
        return sum(map(crossing, wide_sources(node))) if made_inside(node) else node_bytes(node)

    while stack:
        node = stack.pop()
        if node in found.wide:
            continue
        if node not in inside:
            raise NotRowLocalError(f"{node.name} is as wide as the hidden, and its rows depend on each other")
        found.wide.add(node)
        stack += [source for source in wide_sources(node) if made_inside(source)]
        for user in node.users:
            if user.op == "output":
                raise NotRowLocalError(f"{node.name}, the hidden, is returned")
            if user in inside and _is_wide(user, least):
                stack.append(user)
            elif user in inside:
                found.ends.add(user)
            else:
                contracted(user, node, rows[node])
                found.ends.add(user)
    return found


def _is_wide(node: fx.Node, least: float) -> bool:
    return any(tensor.numel() >= least for tensor in tensors_of(node))


def _after_tangents(graph: fx.Graph) -> set[fx.Node]:
    """All that depends on a gradient that the backward receives."""
    backward = {node for node in graph.find_nodes(op="placeholder") if "tangents" in str(node.target)}
    for node in graph.nodes:
        if any(source in backward for source in node.all_input_nodes):
            backward.add(node)
    return backward


def _made_again(graph: fx.Graph, backward: Collection[fx.Node], forward: Collection[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Copies of what the backward's nodes read of the forward's hidden, which read each other; the backward reads them."""
    wanted: set[fx.Node] = set()
    stack = list(backward)
    while stack:
        for source in stack.pop().all_input_nodes:
            if source in forward and source not in wanted:
                wanted.add(source)
                stack.append(source)
    first = next(node for node in graph.nodes if node in backward)
    copies: dict[fx.Node, fx.Node] = {}
    for node in [node for node in graph.nodes if node in wanted]:
        with graph.inserting_before(first):
            copies[node] = graph.node_copy(node, lambda n: copies.get(n, n))
    for node in backward:
        for source in node.all_input_nodes:
            if source in copies:
                node.replace_input_with(source, copies[source])
    return copies


def _hull(graph: fx.Graph, nodes: Collection[fx.Node], inside: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes with all that lies on a way from one of them to another, and the parts of tuples that they yield."""
    chosen = set(nodes)
    chosen |= {user for node in nodes for user in node.users if user.target is getitem}
    after, before = set(chosen), set(chosen)
    for node in graph.nodes:
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    for node in reversed(graph.nodes):
        if any(user in before for user in node.users):
            before.add(node)
    between = (after & before) - chosen
    if outside := next((node for node in between if node not in inside), None):
        raise NotRowLocalError(f"{outside.name} reads the hidden, which reads it again, and its rows depend on each other")
    return chosen | between


def _found(graph: fx.Graph, nodes: Collection[fx.Node], rows: RowsOf, total: int) -> Found:
    run = [node for node in graph.nodes if node in nodes]
    region = enclose(run, {n: rows[n] for n in run if n in rows}, total)
    return Found(region, LiveProfile(run, rows).hill(0, len(run)))
