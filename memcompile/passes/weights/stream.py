"""Weights that are not in memory: when each is read, and which of them stay.

An inference graph has a ``memcompile::fetch`` for each offloaded parameter that it uses. Those that stay in memory become
inputs of the graph, alive from call to call, which no kernel writes over. Each of the others becomes a start at an earlier node
and a wait before its first reader. A weight that is used twice, far apart, is read twice.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointPolicy

import memcompile.runtime.transfers.operators  # noqa: F401  (defines the operators)
from memcompile.runtime.transfers.weight import Weight, weight_of
from memcompile.solvers.schedule.simulate import alive
from memcompile.solvers.transfers.link import Ints
from memcompile.solvers.transfers.prefetch import Prefetch, PrefetchProblem, WeightRead
from memcompile.step.cost import CostModel, is_extern
from memcompile.step.facts import Planned
from memcompile.step.fxutil import copied, is_view, node_bytes, source_of
from memcompile.step.trace import GraphTrace, StepPeak

AHEAD = 2
"""Reads that are under way at once where there is no budget."""


STORED_BYTES = 64 * 1024
"""From this size on the readers of a weight are stored where they are computed."""


@dataclass(frozen=True, slots=True)
class Use:
    """A weight and the nodes that read it in one stretch (views among them): one read."""

    weight: int
    readers: tuple[fx.Node, ...]


@dataclass(slots=True)
class Uses:
    """The weights of a graph, the node that fetches each, and each stretch of uses in order."""

    weights: list[Weight]
    fetches: list[fx.Node]
    uses: list[Use] = field(default_factory=list)


def fetches_of(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that read a weight."""
    return list(graph.find_nodes(op="call_function", target=torch.ops.memcompile.fetch.default))


def read_again(graph: fx.Graph) -> None:
    """Of a training graph: PyTorch's partition reads weights again for the backward, and saves none."""
    for node in fetches_of(graph):
        node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE


def find_uses(graph: fx.Graph) -> Uses:
    """What a graph reads. Views of weights are moved to their readers, fetches that nobody reads are gone, and one that the
    graph returns stays as it is."""
    keys: dict[str, list[fx.Node]] = {}
    for node in fetches_of(graph):
        if not node.users:
            graph.erase_node(node)
        else:
            keys.setdefault(str(node.args[1]), []).append(node)
    fetches: dict[str, fx.Node] = {}
    for key, nodes in keys.items():
        for node in nodes[1:]:  # a tied weight is one value
            node.replace_all_uses_with(nodes[0])
            graph.erase_node(node)
        if not _is_returned(nodes[0]):
            fetches[key] = nodes[0]
            _gather_views(nodes[0])
    place = {node: index for index, node in enumerate(graph.nodes)}
    uses = Uses([weight_of(key) for key in fetches], list(fetches.values()))
    first = [min(place[user] for user in node.users) for node in uses.fetches]
    for index, node in enumerate(uses.fetches):
        users = sorted(node.users, key=place.__getitem__)
        others = [(at, other.size_bytes) for at, other in zip(first, uses.weights, strict=True) if at != first[index]]
        for stretch in _stretches(users, place, others, uses.weights[index].size_bytes):
            uses.uses.append(Use(index, tuple(stretch)))
    uses.uses.sort(key=lambda use: place[use.readers[0]])
    return uses


def _is_returned(node: fx.Node) -> bool:
    return any(user.op == "output" or (is_view(user) and _is_returned(user)) for user in node.users)


def _stretches(
    users: Sequence[fx.Node], place: dict[fx.Node, int], others: Sequence[tuple[int, int]], size_bytes: int
) -> Iterator[list[fx.Node]]:
    """Uses with fewer bytes of other weights between them than the weight has."""
    stretch = [users[0]]
    for before, user in itertools.pairwise(users):
        if sum(size for at, size in others if place[before] < at < place[user]) > size_bytes:
            yield stretch
            stretch = []
        stretch.append(user)
    yield stretch


def _gather_views(node: fx.Node) -> None:
    """Each view of a weight right before what reads it, one view a reader: uses far apart share none."""
    for view in [user for user in node.users if is_view(user)]:
        _gather_views(view)
        for user in list(view.users)[1:]:
            with node.graph.inserting_before(user):
                user.replace_input_with(view, node.graph.node_copy(view))
        for user in view.users:
            user.prepend(view)


def all_inputs(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy in which every weight is an input, as if all were in memory."""
    copy = copied(gm)
    for node in fetches_of(copy.graph):
        _as_input(node, node.name)
    copy.recompile()
    return copy


def _as_input(node: fx.Node, name: str) -> fx.Node:
    graph = node.graph
    last = graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_after(last):
        held = graph.placeholder(f"weight_{name}")
    held.meta = {key: node.meta[key] for key in ("val", "tensor_meta", "stack_trace") if key in node.meta}
    node.replace_all_uses_with(held)
    graph.erase_node(node)
    return held


def readers_of(use: Use) -> list[fx.Node]:
    """What computes with the weight, past its views."""
    found, stack = [], list(use.readers)
    while stack:
        node = stack.pop()
        if is_view(node):
            stack += node.users
        else:
            found.append(node)
    return found


def kept_order(uses: Uses) -> Planned:
    """Nodes run in their order, and what is computed from a large weight is stored: looked up in the table of an embedding by
    each of its readers instead, it would keep the table alive until the last one."""
    large = [use for use in uses.uses if uses.weights[use.weight].size_bytes >= STORED_BYTES]
    return Planned(stored=frozenset(node.name for use in large for node in readers_of(use)))


class Slots:
    """Where reads may start: before each node that computes. ``moments``: the event of the lowered graph that comes next."""

    def __init__(self, graph: fx.Graph, costs: CostModel | None, trace: GraphTrace | None) -> None:
        fetches = set(fetches_of(graph))
        self.nodes = [n for n in graph.nodes if n.op == "call_function" and not is_view(n) and n not in fetches]
        self.index = {node: index for index, node in enumerate(self.nodes)}
        seconds = [0.0 if costs is None else _seconds(costs, node) for node in self.nodes]
        self.clock = tuple(np.concatenate([[0.0], np.cumsum(seconds)])[:-1].tolist())
        self.total_s = float(sum(seconds))
        self.events = () if trace is None else trace.events
        self.made: dict[str, list[int]] = {}
        for position, event in enumerate(self.events, 1):
            buffer = trace.buffers.get(event.name) if trace is not None and event.kind in ("alloc", "alias") else None
            for origin in () if buffer is None else buffer.origins:
                self.made.setdefault(origin, []).append(position)
        self.end = len(self.events) + 1
        self.ran = self._ran(graph)
        moments, soonest = [], self.end
        for node in reversed(self.nodes):
            soonest = min(soonest, *self.made.get(node.name, (self.end,)))
            moments.append(soonest)
        self.moments = tuple(reversed(moments))

    def slot_of(self, use: Use) -> int:
        """Of the first reader."""
        return min(self.index[node] for node in readers_of(use) if node in self.index)

    def end_of(self, use: Use) -> int:
        """The moment after the last reader has run."""
        return max((self.ran[node] for node in readers_of(use) if node in self.ran), default=self.end)

    def _ran(self, graph: fx.Graph) -> dict[fx.Node, int]:
        """The moment after each node has run; where it is computed in others, after those."""
        kernels = [position for position, event in enumerate(self.events, 1) if event.kind == "kernel"]
        ran: dict[fx.Node, int] = {}
        for node in reversed(graph.nodes):
            if node.op == "output":
                ran[node] = self.end
            elif node.name not in self.made:
                ran[node] = max((ran[user] for user in node.users), default=self.end)
            else:
                after = bisect_left(kernels, max(self.made[node.name]))
                ran[node] = min(self.end, (kernels[after] if after < len(kernels) else self.end) + 1)
        return ran


def _seconds(costs: CostModel, node: fx.Node) -> float:
    seconds = costs.node_seconds(node)
    if is_extern(node):
        seconds = max(seconds, costs.kernel_seconds(node_bytes(node) + sum(map(node_bytes, node.all_input_nodes))))
    return seconds


def problem_of(
    gm: fx.GraphModule, uses: Uses, costs: CostModel | None, base: tuple[GraphTrace, StepPeak] | None
) -> PrefetchProblem:
    """The problem of a graph. ``base``: of the graph with all weights as inputs, lowered; None where memory does not count."""
    slots = Slots(gm.graph, costs, None if base is None else base[0])
    sizes = tuple(weight.size_bytes for weight in uses.weights)
    reads = []
    for use in uses.uses:
        slot = slots.slot_of(use)
        need = slots.moments[slot]
        reads.append(WeightRead(use.weight, sizes[use.weight], slot, need, max(need + 1, slots.end_of(use))))
    live = np.zeros(slots.end + 1, dtype=np.int64) if base is None else _live(uses, base[1])
    return PrefetchProblem(live, slots.moments, slots.clock, slots.total_s, sizes, tuple(reads))


def _live(uses: Uses, peak: StepPeak) -> Ints:
    """Bytes at each moment without the weights."""
    weights = {f"weight_{node.name}" for node in uses.fetches}
    rows = [(life.birth, life.death or peak.end, life.size_bytes) for life in peak.lives if life.name not in weights]
    begins, ends, sizes = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return alive(begins, ends, sizes, peak.end).copy()


@dataclass(frozen=True, slots=True)
class Known:
    """A weight as compiled code knows it: by its key, without keeping it. ``tier``: where it is read from."""

    key: str
    name: str
    size_bytes: int
    tier: str

    @classmethod
    def of(cls, weight: Weight) -> Known:
        """What is to know."""
        return cls(weight.key, weight.name, weight.size_bytes, weight.store.name)


@dataclass(eq=False)
class ReadAhead:
    """A graph with its reads planned. ``residents``: weights that are inputs, after the graph's own. ``planned``: keeps the
    order of its nodes. ``rows``: of each read the weight, the source line of its reader, and how many operations before that
    it starts."""

    gm: fx.GraphModule
    residents: tuple[Known, ...]
    prefetch: Prefetch
    rows: tuple[tuple[Known, str, int], ...]
    planned: Planned

    @property
    def resident_bytes(self) -> int:
        """Between calls."""
        return sum(weight.size_bytes for weight in self.residents)


def apply(gm: fx.GraphModule, uses: Uses, prefetch: Prefetch) -> ReadAhead:
    """A copy of the graph with the plan written down. ``uses`` are of ``gm``, which stays as it is."""
    copy = copied(gm)
    graph = copy.graph
    twin = dict(zip(gm.graph.nodes, graph.nodes, strict=True))
    slots = Slots(gm.graph, None, None).nodes
    rows = []
    for use, read in zip(uses.uses, _reads_by_use(uses, prefetch), strict=True):
        if read is None:
            continue
        fetch, first = twin[uses.fetches[use.weight]], twin[use.readers[0]]
        ticket, key = fetch.args
        with graph.inserting_before(_before_views(twin[slots[read[1]]])):
            start = graph.call_function(torch.ops.memcompile.swap_in.default, (ticket, key))
        with graph.inserting_before(first):
            wait = graph.call_function(torch.ops.memcompile.swap_in_wait.default, (start, ticket, key))
        start.meta = wait.meta = dict(fetch.meta)
        for reader in use.readers:
            twin[reader].replace_input_with(fetch, wait)
        rows.append((Known.of(uses.weights[use.weight]), source_of(readers_of(use)[0]), read[0].slot - read[1]))
    residents = []
    for index, node in enumerate(uses.fetches):
        if index in prefetch.residents:
            _as_input(twin[node], node.name)
            residents.append(Known.of(uses.weights[index]))
        else:
            graph.erase_node(twin[node])
    graph.lint()
    copy.recompile()
    return ReadAhead(copy, tuple(residents), prefetch, tuple(rows), kept_order(uses))


def _before_views(node: fx.Node) -> fx.Node:
    """The first of the views and waits right before a node: what starts at its slot starts before them."""
    waits = (torch.ops.memcompile.swap_in_wait.default, torch.ops.memcompile.fetch.default)
    while is_view(node.prev) or node.prev.target in waits:
        node = node.prev
    return node


def _reads_by_use(uses: Uses, prefetch: Prefetch) -> Iterator[tuple[WeightRead, int] | None]:
    starts = iter(prefetch.starts)
    for use in uses.uses:
        yield None if use.weight in prefetch.residents else next(starts)


def supply(streamed: ReadAhead, device: torch.device) -> list[Tensor]:
    """The weights that stay, as the compiled graph takes them."""
    if not streamed.residents:
        return []
    weights = [weight_of(known.key) for known in streamed.residents]
    return weights[0].store.residents.provide(weights, device)
