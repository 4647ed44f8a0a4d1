"""Rematerialization: drop a storage and make it again just before its next use.

``plan`` asks the solvers for a schedule within the budget. ``apply`` writes that schedule down as one joint graph (forward,
then backward with the recomputed operations in their places) from which forward and backward are extracted. The joint graph
is an ordinary FX graph: readable, and runnable in eager mode.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter, getitem
from typing import Any

from torch import fx

from memcompile.codegen.inductor.joint import JointGraph
from memcompile.passes.schedule.moving import Moving, Step
from memcompile.runtime.transfers.sources import Mover
from memcompile.solvers.schedule.problem import RematSchedule, RematSolution
from memcompile.solvers.schedule.solve import solve
from memcompile.step.facts import Facts, OpFacts, StepGraphs
from memcompile.step.fxutil import is_symbol, outputs_of


def plan(facts: Facts, budget_bytes: int, time_limit_s: float) -> RematSolution:
    """The cheapest schedule found whose modelled peak is at most ``budget_bytes``.

    Raises ``solvers.problem.InfeasibleError`` when there is none.
    """
    return solve(facts.problem, budget_bytes, time_limit_s=time_limit_s)


@dataclass(frozen=True, slots=True)
class Recomputation:
    """One storage that is made again: how often, what it saves and what that costs."""

    storage: str
    source: str
    size_bytes: int
    times: int
    seconds: float


def recomputations(facts: Facts, schedule: RematSchedule) -> tuple[Recomputation, ...]:
    """What a schedule makes again, largest first."""
    runs: dict[int, int] = {}
    for op in schedule.sequence:
        runs[op] = runs.get(op, 0) + 1
    rows = [
        Recomputation(
            facts.problem.storages[index].name,
            facts.ops[op].source,
            facts.problem.storages[index].size_bytes,
            count - 1,
            (count - 1) * facts.problem.ops[op].seconds,
        )
        for op, count in runs.items()
        if count > 1
        for index in facts.problem.ops[op].writes
    ]
    return tuple(sorted(rows, key=lambda row: -row.size_bytes))


def apply(
    facts: Facts,
    schedule: RematSchedule,
    apart: Collection[int] = (),
    tiers: Sequence[str] = (),
    mover: Mover | None = None,
) -> JointGraph:
    """Write a schedule down as a joint graph with the same inputs and outputs. ``apart``: positions in the schedule.
    ``tiers``: what the links of its moves are called; ``mover``: what runs them, None where nothing runs."""
    moving = Moving(schedule.moves, facts.storage_nodes, tiers, mover)
    return replace(_Writer(facts, moving).write(schedule), apart=frozenset(apart))


@dataclass(slots=True)
class _Instance:
    """One execution's storage: the node that stands for it, and when it was made."""

    node: fx.Node
    stamp: int


@dataclass(slots=True)
class _Writer:
    facts: Facts
    moving: Moving
    graph: fx.Graph = field(default_factory=fx.Graph)
    placeholders: dict[str, fx.Node] = field(default_factory=dict)
    instances: dict[fx.Node, _Instance] = field(default_factory=dict)
    virtual: dict[tuple[fx.Node, tuple[int, ...], int], fx.Node] = field(default_factory=dict)
    saved: dict[str, fx.Node] = field(default_factory=dict)
    forward_nodes: set[fx.Node] = field(default_factory=set)
    user_outputs: list[object] = field(default_factory=list)
    recomputed: set[str] = field(default_factory=set)
    positions: dict[tuple[str, str], int] = field(default_factory=dict)
    stamps: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    in_backward: bool = False
    stamp: int = 0

    def write(self, schedule: RematSchedule) -> JointGraph:
        graphs = self.facts.graphs
        self.saved = {node.name: node for node in graphs.saved_nodes()}
        self._open(graphs.forward.graph)
        if graphs.backward is not None:
            self._open(graphs.backward.graph)
        for position, op in enumerate(schedule.sequence):
            if position == schedule.split:
                self._enter_backward(graphs.forward.graph)
            self._move(self.moving.before(position))
            self._run(self.facts.ops[op], position)
            self._move(self.moving.after(position))
        self._move(self.moving.before(len(schedule.sequence)))
        if schedule.split >= len(schedule.sequence):
            self._enter_backward(graphs.forward.graph)
        self._close()
        return JointGraph(
            fx.GraphModule(_attributes(graphs), self.graph),
            frozenset(self.forward_nodes),
            graphs.num_user_outputs,
            frozenset(self.recomputed),
            self.positions,
            moved=tuple(self.moving.all_moved),
        )

    def _open(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="placeholder"):
            if not self._is_saved_input(node):
                new = self.graph.placeholder(node.name)
                new.meta = dict(node.meta)
                self.placeholders[node.name] = new

    def _enter_backward(self, forward: fx.Graph) -> None:
        """Everything that the forward returns is written before the backward starts."""
        count = self.facts.graphs.num_user_outputs
        self.user_outputs = [self._value(out) for out in outputs_of(forward)[:count]]
        self.forward_nodes = set(self.graph.nodes)
        self.in_backward = True

    def _close(self) -> None:
        graphs = self.facts.graphs
        descriptions = list(graphs.forward.graph.output_node().meta.get("desc", ()))[: graphs.num_user_outputs]
        outputs: list[Any] = list(self.user_outputs)
        if graphs.backward is not None:
            node = graphs.backward.graph.output_node()
            outputs += [self._value(out) for out in outputs_of(graphs.backward.graph)]
            descriptions += list(node.meta.get("desc", ()))
        output = self.graph.output(tuple(outputs))
        output.meta["desc"] = descriptions or [None] * len(outputs)
        self.graph.lint()

    def _run(self, op: OpFacts, position: int) -> None:
        self.stamp += 1
        for node in _written(op):
            new = self._copy(node)
            self.instances[node] = _Instance(new, self.stamp)
            self.stamps.clear()
            self.positions["backward" if self.in_backward else "forward", new.name] = position

    def _move(self, steps: Iterator[tuple[fx.Node, Step]]) -> None:
        """Steps of moves; what comes back is a new instance of its storage."""
        for node, step in steps:
            new = step(self.graph, self.instances[node].node)
            if new is not None:
                self.stamp += 1
                self.instances[node] = _Instance(new, self.stamp)
                self.stamps.clear()

    def _copy(self, node: fx.Node) -> fx.Node:
        recomputed = (self.in_backward and node.graph is self.facts.graphs.forward.graph) or node in self.instances
        mapping = {source: self._value(source) for source in node.all_input_nodes}
        new = self.graph.node_copy(node, lambda source: mapping[source])
        new.meta = dict(node.meta)
        if recomputed:
            new._rename(f"{node.name}_recompute")
            self.recomputed.add(new.name)
            new.meta.pop("partitioner_tag", None)
            new.meta.pop("recompute", None)
        return new

    def _value(self, node: Any) -> Any:
        """The new node that holds the value of ``node`` now. Chains of virtual nodes are copied from their start: deep
        recurrent models have longer ones than Python can recurse."""
        if not isinstance(node, fx.Node):
            return node
        stack = [self._made_by(node)]
        while self._known(node) is None:
            top = stack[-1]
            missing = [] if self._known(top) else [s for s in top.all_input_nodes if self._known(s) is None]
            stack += map(self._made_by, missing)
            if not missing:
                stack.pop()
                if self._known(top) is None:
                    self.virtual[self._key(top)] = self._copy(top)
        return self._known(node)

    def _made_by(self, node: fx.Node) -> fx.Node:
        """The node itself, or for an input of the backward that was saved the one in the forward."""
        return self.saved[node.name] if self._is_saved_input(node) else node

    def _known(self, node: fx.Node) -> fx.Node | None:
        """The new node that holds the value of ``node``, where it is written down already."""
        node = self._made_by(node)
        if node.op == "placeholder":
            return self.placeholders[node.name]
        if node in self.instances:
            return self.instances[node].node
        return self.virtual.get(self._key(node))

    def _key(self, node: fx.Node) -> tuple[fx.Node, tuple[int, ...], int]:
        if node not in self.stamps:
            self.stamps[node] = self._stamps(node)
        return node, self.stamps[node], self._home(node)

    def _home(self, node: fx.Node) -> int:
        """Where a virtual node may be shared. A node of the forward that the backward computes again belongs to one kernel
        (its stamp): shared between kernels, it would be materialised."""
        recomputed = self.in_backward and node.graph is self.facts.graphs.forward.graph and not self._crosses(node)
        return self.stamp if recomputed else 0

    def _is_saved_input(self, node: fx.Node) -> bool:
        """Whether a node is an input of the backward that the forward saved."""
        return node.op == "placeholder" and node.name in self.saved and node.graph is not self.facts.graphs.forward.graph

    def _crosses(self, node: fx.Node) -> bool:
        """Whether a virtual node of the forward may be read by the backward as it is: the unplanned step saves it too, or it
        is no tensor (sizes cost nothing)."""
        if node.graph is not self.facts.graphs.forward.graph:
            return False
        return node.name in self.saved or is_symbol(node)

    def _stamps(self, node: fx.Node) -> tuple[int, ...]:
        """When the storages behind a virtual node were made: a later copy of them needs a new copy of it."""
        stamps: set[int] = set()
        stack, seen = [node], {node}
        while stack:
            for source in stack.pop().all_input_nodes:
                if source in seen:
                    continue
                seen.add(source)
                if self._is_saved_input(source):
                    source = self.saved[source.name]
                if source in self.instances:
                    stamps.add(self.instances[source].stamp)
                else:
                    stack.append(source)
        return tuple(sorted(stamps))


def _attributes(graphs: StepGraphs) -> dict[str, Any]:
    """What either half refers to by name: the bodies of ``cond`` and its like, constants."""
    halves = [half for half in (graphs.forward, graphs.backward) if half is not None]
    return {str(n.target): attrgetter(str(n.target))(half) for half in halves for n in half.graph.find_nodes(op="get_attr")}


def _written(op: OpFacts) -> Iterator[fx.Node]:
    """The nodes of a kernel: every root, followed by its items when it makes a tuple, also those without any bytes: a tuple is
    no tensor, and cannot be saved."""
    for root in op.roots:
        yield root
        yield from (user for user in root.users if user.target is getitem)
