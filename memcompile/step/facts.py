"""FX graphs -> storages, operations, lifetimes, costs: what the planners know.

The facts start from the partition that plain ``torch.compile`` uses (PyTorch's min-cut of the joint graph, which already
recomputes what fuses for free): a plan without recomputation is exactly plain ``torch.compile``, and every second that a plan
adds is a second above it.

What is materialised is not guessed: ``traces`` are the lowered graphs of that partition, so a node is a storage where
Inductor allocated a buffer for it. All other nodes are *virtual*: they are fused into the kernels that read them, and run
again with them. Facts live beside the graphs, never in ``node.meta``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Literal

import torch
from torch import fx

from memcompile.solvers.schedule.problem import Op, RematProblem, Storage
from memcompile.step.cost import CostModel, is_extern
from memcompile.step.effects import order_of_effects
from memcompile.step.fxutil import (
    base_of,
    is_pure,
    mutated_inputs,
    node_bytes,
    outputs_of,
    source_of,
    tensors_of,
    topological,
)
from memcompile.step.trace import GraphTrace, TracedBuffer

Half = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Planned:
    """What lowering must keep of a plan, as names of FX nodes: ``recomputed`` ones run at their planned time, ``stored`` ones
    are storages of the plan and get a buffer where they are made, ``apart`` ones share no C++ function with others."""

    recomputed: frozenset[str] = frozenset()
    stored: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()


UNPLANNED = Planned()


@dataclass(frozen=True, slots=True)
class StepGraphs:
    """Forward and backward as partitioned; ``backward`` is None for an inference graph.

    ``num_user_outputs``: leading outputs of the forward that the user receives; saved tensors follow. ``planned``: what
    lowering keeps of a plan. ``tangents_held``: the gradients that the backward receives are alive until it ends.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule | None
    num_user_outputs: int
    planned: Planned = UNPLANNED
    tangents_held: bool = True

    def saved_nodes(self) -> list[fx.Node]:
        """Outputs of the forward that the backward reads, in order."""
        return [n for n in outputs_of(self.forward.graph)[self.num_user_outputs :] if isinstance(n, fx.Node)]

    def returns_loss(self) -> bool:
        """Whether a differentiable output is a scalar: it is taken for the loss, the only output that gets a gradient."""
        saved = {node.name for node in self.saved_nodes()}
        inputs = self.backward.graph.find_nodes(op="placeholder") if self.backward is not None else ()
        return any(tensor.dim() == 0 for node in inputs if node.name not in saved for tensor in tensors_of(node))


@dataclass(frozen=True, slots=True)
class OpFacts:
    """``roots`` run in one kernel; ``storages``: the (node, storage index) pairs that they materialise.

    ``loops``: kernel of the lowered half and which of its fused loops, None where that is unknown. Forward roots of one loop
    are ops of their own.
    """

    half: Half
    roots: tuple[fx.Node, ...]
    storages: tuple[tuple[fx.Node, int], ...]
    source: str
    loops: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """``problem`` for the solvers, and the FX nodes behind it (parallel tuples: ``ops``, ``storage_nodes``)."""

    graphs: StepGraphs
    problem: RematProblem
    ops: tuple[OpFacts, ...]
    storage_nodes: tuple[fx.Node, ...]
    storage_of: dict[fx.Node, int]
    refused: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Made:
    """Where in the lowered code a node's buffer comes to life, in which kernel and by which of its fused loops, and whether it
    takes over another's memory."""

    position: int
    loops: tuple[int, int]
    reuses: bool
    replaces: bool


@dataclass(slots=True)
class _Half:
    """One graph while it is read. ``leaves``: storages of the nodes that hold memory (placeholders and roots)."""

    half: Half
    graph: fx.Graph
    roots: set[fx.Node]
    mutated: set[fx.Node]
    made: dict[fx.Node, _Made]
    leaves: dict[fx.Node, frozenset[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Cluster:
    """A root with the virtual nodes that are fused into it."""

    leaves: frozenset[int]
    seconds: float
    pure: bool


def gather_facts(graphs: StepGraphs, traces: Sequence[GraphTrace], costs: CostModel, entry_bytes: int) -> Facts:
    """Storages and operations of a step. ``traces``: lowered forward (and backward). ``entry_bytes``: bytes of the inputs."""
    return _Builder(graphs, traces, costs, entry_bytes).build()


class _Builder:
    def __init__(self, graphs: StepGraphs, traces: Sequence[GraphTrace], costs: CostModel, entry_bytes: int) -> None:
        self.graphs, self.traces, self.costs, self.entry_bytes = graphs, traces, costs, entry_bytes
        self.storages: list[Storage] = []
        self.storage_nodes: list[fx.Node] = []
        self.storage_of: dict[fx.Node, int] = {}
        self.ops: list[Op] = []
        self.op_facts: list[OpFacts] = []
        self.refused: dict[str, tuple[str, str, str]] = {}

    def build(self) -> Facts:
        forward = self.graphs.forward.graph
        part = self._open("forward", forward)
        part.leaves.update((node, frozenset()) for node in forward.find_nodes(op="placeholder"))
        self._read(part, outputs_of(forward)[: self.graphs.num_user_outputs])
        boundary = len(self.ops)
        if self.graphs.backward is not None:
            backward = self.graphs.backward.graph
            saved = {node.name: _leaves_of(node, part.leaves) for node in self.graphs.saved_nodes()}
            part = self._open("backward", backward)
            self._add_tangents(part, saved)
            self._read(part, outputs_of(backward))
        copies = _copied_inputs(self.traces[0], forward) if self.graphs.backward is not None else 0
        problem = RematProblem(tuple(self.storages), tuple(self.ops), boundary, self.entry_bytes + copies)
        refused = tuple(self.refused.values())
        return Facts(self.graphs, problem, tuple(self.op_facts), tuple(self.storage_nodes), self.storage_of, refused)

    def _open(self, half: Half, graph: fx.Graph) -> _Half:
        made = _made_at(self.traces[0 if half == "forward" else 1], graph)
        written = [*made, *(node for node in outputs_of(graph) if isinstance(node, fx.Node))]
        roots = {_producer(base_of(node)) for node in written}
        roots |= {n for n in graph.nodes if n.op == "call_function" and self._runs_alone(n, made, roots)}
        return _Half(half, graph, {n for n in roots if n.op == "call_function"}, mutated_inputs(graph), made)

    def _runs_alone(self, node: fx.Node, made: dict[fx.Node, _Made], roots: set[fx.Node]) -> bool:
        """Library kernels and ops with effects run by themselves, unless Inductor merged them into an output (mm + add)."""
        if not is_pure(node):
            return True
        user = next(iter(node.users), None)
        merged = node not in made and len(node.users) == 1 and user in roots and (user not in made or made[user].replaces)
        return is_extern(node) and not merged

    def _add_tangents(self, part: _Half, saved: dict[str, frozenset[int]]) -> None:
        """Inputs of the backward: saved tensors, and tangents, which come to life as it starts."""
        writes = []
        for node in part.graph.find_nodes(op="placeholder"):
            if node.name in saved:
                part.leaves[node] = saved[node.name]
            else:
                size = node_bytes(node)
                writes += [(node, self._new_storage(node, size, is_output=self.graphs.tangents_held))] if size else []
                part.leaves[node] = frozenset(index for target, index in writes if target is node)
        if writes:
            self._add_op("tangents", part.half, (), _Cluster(frozenset(), 0.0, pure=False), writes)

    def _read(self, part: _Half, held: Iterable[object]) -> None:
        held_bases = {base_of(node) for node in held if isinstance(node, fx.Node)}
        for roots in _kernels(part):
            cluster = self._cluster(part, roots)
            writes = []
            for result in (result for root in roots for result in _results(root)):
                size = node_bytes(result)
                if size:
                    writes.append((result, self._new_storage(result, size, is_output=result in held_bases)))
                part.leaves[result] = frozenset(index for target, index in writes if target is result)
            for root in roots:
                part.leaves.setdefault(root, frozenset(index for target, index in writes if _producer(target) is root))
            made = [part.made[root] for root in roots if root in part.made]
            loops = made[0].loops if made else None
            self._add_op(roots[0].name, part.half, roots, cluster, writes, any(m.reuses for m in made), loops)

    def _cluster(self, part: _Half, roots: tuple[fx.Node, ...]) -> _Cluster:
        """What a kernel reads and computes: its roots and the virtual nodes between its inputs and them."""
        leaves: set[int] = set()
        seconds, pure = 0.0, True
        seen: set[fx.Node] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            pure = pure and base_of(node) not in part.mutated
            if node in part.leaves:
                leaves |= part.leaves[node]
            else:
                seconds += self.costs.node_seconds(node)
                pure = pure and is_pure(node)
                stack += node.all_input_nodes
        return _Cluster(frozenset(leaves), seconds, pure)

    def _new_storage(self, node: fx.Node, size: int, *, is_output: bool) -> int:
        index = len(self.storages)
        self.storages.append(Storage(node.name, size, is_output=is_output))
        self.storage_nodes.append(node)
        self.storage_of[node] = index
        return index

    def _add_op(
        self,
        name: str,
        half: Half,
        roots: tuple[fx.Node, ...],
        cluster: _Cluster,
        writes: list[tuple[fx.Node, int]],
        inplace: bool = False,
        loops: tuple[int, int] | None = None,
    ) -> None:
        indices = tuple(index for _, index in writes)
        source = next(filter(None, map(source_of, roots)), "")
        seconds = cluster.seconds
        if roots:
            touched = sum(self.storages[i].size_bytes for i in {*cluster.leaves, *indices})
            seconds += self.costs.kernel_seconds(touched)
        if half == "forward" and writes and not cluster.pure:
            self.refused[name] = (name, source, "random state, mutation or side effect: runs once")
        reads = tuple(sorted(cluster.leaves))
        self.ops.append(Op(name, reads, indices, seconds, recomputable=cluster.pure, inplace=inplace))
        self.op_facts.append(OpFacts(half, roots, tuple(writes), source, loops))


def _made_at(trace: GraphTrace, graph: fx.Graph) -> dict[fx.Node, _Made]:
    """The nodes whose values get a buffer in the lowered code."""
    nodes = {node.name: node for node in graph.nodes}
    made: dict[fx.Node, _Made] = {}
    kernel = 0
    for position, event in enumerate(trace.events):
        buffer = trace.buffers.get(event.name)
        if event.kind == "kernel":
            kernel += 1
        elif event.kind in ("alloc", "alias") and buffer is not None:
            node = _materialised(buffer, nodes)
            producer = None if node is None else _producer(base_of(node))
            if producer is not None and producer not in made:
                replaces = buffer.origins[0] not in nodes
                made[producer] = _Made(position, (kernel, buffer.loops), event.kind == "alias", replaces)
    return made


def _copied_inputs(trace: GraphTrace, graph: fx.Graph) -> int:
    """Bytes of inputs that the lowered forward copies to another layout (weights of convolutions) and saves so."""
    inputs = {node.name for node in graph.find_nodes(op="placeholder")}
    saved = [trace.buffers[name] for name in dict.fromkeys(trace.outputs) if name in trace.buffers]
    return sum(buffer.size_bytes for buffer in saved if buffer.origins and buffer.origins[0] in inputs)


def _materialised(buffer: TracedBuffer, nodes: dict[str, fx.Node]) -> fx.Node | None:
    """The node whose value a buffer holds: of its origins the first whose size it has."""
    candidates = [nodes[name] for name in buffer.origins if name in nodes]
    if buffer.origins and buffer.origins[0] not in nodes:
        candidates = [*_merged(buffer, nodes), *candidates]
    for node in candidates:
        if any(node_bytes(base_of(result)) == buffer.size_bytes for result in _results(node)):
            return node
    return None


def _merged(buffer: TracedBuffer, nodes: dict[str, fx.Node]) -> Iterator[fx.Node]:
    """Additions that Inductor's patterns merged with a matrix product (mm + add -> addmm) into the origin of a buffer."""
    reads = set(buffer.reads)
    for name in buffer.reads:
        for product in nodes[name].users if name in nodes else ():
            if len(product.users) == 1 and {i.name for i in product.all_input_nodes} <= reads:
                yield next(iter(product.users))


def _kernels(part: _Half) -> Iterator[tuple[fx.Node, ...]]:
    """Roots in the order in which they run, those of one fused loop of the backward together.

    It holds all that it reads until it ends. Forward roots stay apart: each of them may be made again alone. So do roots that
    were fused over a library kernel: plans are lowered without such fusions (``codegen/inductor/fusion.py``).
    """
    inputs = _root_inputs(part)
    order = _lowered_order(part, inputs)
    libraries = dict(zip(order, itertools.accumulate(int(is_extern(root)) for root in order), strict=True))
    group: list[fx.Node] = []
    loops = None
    for root in order:
        made = part.made.get(root) if part.half == "backward" else None
        if group and (made is None or made.loops != loops):
            yield from _apart(group, inputs, libraries)
            group = []
        group.append(root)
        loops = made.loops if made is not None else None
    yield from _apart(group, inputs, libraries)


def _apart(
    group: list[fx.Node], inputs: dict[fx.Node, set[fx.Node]], libraries: dict[fx.Node, int]
) -> list[tuple[fx.Node, ...]]:
    """Roots of one loop by how many library kernels run before they can. ``libraries``: how many run up to each root."""
    before: dict[fx.Node, int] = {}
    for root in group:
        before[root] = max((before.get(source, libraries[source]) for source in inputs[root]), default=0)
    return [tuple(root for root in group if before[root] == count) for count in sorted(set(before.values()))]


def _root_inputs(part: _Half) -> dict[fx.Node, set[fx.Node]]:
    """Per node, the roots that it reads, directly or through what is fused into it."""
    inputs: dict[fx.Node, set[fx.Node]] = {}
    for node in part.graph.nodes:
        direct = {i for i in node.all_input_nodes if i in part.roots}
        inputs[node] = direct.union(*(inputs[i] for i in node.all_input_nodes if i not in part.roots), set())
    return inputs


def _lowered_order(part: _Half, inputs: dict[fx.Node, set[fx.Node]]) -> list[fx.Node]:
    """Roots in the order in which the lowered code runs them, inputs before users."""
    order = {node: index for index, node in enumerate(part.graph.nodes)}
    inputs = {root: inputs[root] | waits for root, waits in order_of_effects(part.graph, part.roots).items()}
    position: dict[fx.Node, int] = {}
    for root in sorted(part.roots, key=order.__getitem__):
        made = part.made.get(root)
        position[root] = made.position if made else max((position[i] for i in inputs[root]), default=-1)
    key = {root: (position[root], order[root]) for root in part.roots}
    return topological(part.roots, {root: inputs[root] for root in part.roots}, key)


def _leaves_of(node: fx.Node, leaves: dict[fx.Node, frozenset[int]]) -> frozenset[int]:
    """Storages behind a node that may be a view."""
    return leaves.get(node) or leaves.get(base_of(node)) or frozenset()


def _producer(node: fx.Node) -> fx.Node:
    """The node that runs: for an item of a tuple, the one that made the tuple."""
    return node.all_input_nodes[0] if node.target is getitem else node


def _results(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node makes: itself, or its ``getitem`` nodes. What it writes in place (a buffer) it does not make."""
    if isinstance(node.target, torch._ops.OpOverload):
        returns = [r.alias_info for r in node.target._schema.returns]
        if returns and all(info is not None and info.is_write for info in returns):
            return []
    if isinstance(node.meta.get("val"), torch.Tensor):
        return [node]
    return [user for user in node.users if user.target is getitem and tensors_of(user)]
