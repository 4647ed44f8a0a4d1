"""Swap: the joint planner that keeps, recomputes or moves each storage.

Recomputation alone is planned for several targets between its floor and the unplanned peak; moves bring each of those schedules
down to the budget (``solvers/transfers/moves.py``); the one that takes the least time is taken. A target at the budget is
recomputation alone, one at the unplanned peak moves alone: by the model, a plan is never slower than either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from memcompile.passes.schedule import rematerialize
from memcompile.runtime.transfers.sources import Mover
from memcompile.solvers import work
from memcompile.solvers.places.lanes import lanes
from memcompile.solvers.places.relays import relays_of_halves
from memcompile.solvers.schedule.problem import InfeasibleError, Move, RematSchedule, RematSolution
from memcompile.solvers.schedule.simulate import Replay, alive
from memcompile.solvers.transfers.link import Link
from memcompile.solvers.transfers.moves import InstanceLives, Traffic, plan_moves, traffic
from memcompile.step.calibrate import fused_runs
from memcompile.step.facts import Facts
from memcompile.step.fxutil import mutated_inputs

SHARES = (0.15, 0.35, 0.6, 0.85)
"""Targets of recomputation that are tried, between the smallest and the unplanned peak."""
FLOOR_STEPS = 12
"""Halvings of the range in which the smallest peak with moves is looked for."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """Where storages may move, the fastest first, and who moves them (None in a dry run).

    ``fresh_s_per_byte``: what the first touch of memory costs, wherever the arena has no place: the fuller a step keeps its
    budget, the more. ``recompute``: whether what is away may be computed again instead.
    """

    links: tuple[Link, ...] = ()
    mover: Mover | None = None
    fresh_s_per_byte: float = 0.0
    recompute: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(link.name for link in self.links)


def plan(facts: Facts, budget_bytes: int, time_limit_s: float, tiers: Tiers) -> RematSolution:
    """The fastest schedule found within ``budget_bytes``, with its moves.

    Raises ``solvers.problem.InfeasibleError`` when there is none.
    """
    if not tiers.links:
        return rematerialize.plan(facts, budget_bytes, time_limit_s)
    return _Search(facts, budget_bytes, tiers, work.now() + time_limit_s).run()


def durations_of(facts: Facts, schedule: RematSchedule) -> list[float]:
    """Seconds of each execution."""
    ops = facts.problem.ops
    return [ops[p].seconds for p in schedule.sequence]


def traffic_of(facts: Facts, schedule: RematSchedule, links: tuple[Link, ...]) -> Traffic:
    """What the moves of a schedule cost."""
    return traffic(schedule.moves, durations_of(facts, schedule), links)


@dataclass(frozen=True, slots=True)
class MovedStorage:
    """One storage that is moved: how often it comes back, and to which tier it goes."""

    storage: str
    source: str
    size_bytes: int
    times: int
    tier: str
    seconds: float


def moved_storages(facts: Facts, schedule: RematSchedule, links: tuple[Link, ...]) -> tuple[MovedStorage, ...]:
    """What a schedule moves, largest first. ``seconds``: of its transfers, hidden or not."""
    ops = facts.problem.ops
    source = {storage: facts.ops[p].source for p, op in enumerate(ops) for storage in op.writes}
    moves: dict[int, list[Move]] = {}
    for move in schedule.moves:
        moves.setdefault(move.storage, []).append(move)
    rows = []
    for storage, group in moves.items():
        link = links[group[0].link]
        size = group[0].size_bytes
        writes = sum(not move.copied for move in group)
        seconds = writes * link.write_s(size) + len(group) * link.read_s(size)
        rows.append(MovedStorage(facts.problem.storages[storage].name, source[storage], size, len(group), link.name, seconds))
    return tuple(sorted(rows, key=lambda row: -row.size_bytes))


@dataclass(slots=True)
class _Search:
    facts: Facts
    budget: int
    tiers: Tiers
    deadline: float

    def run(self) -> RematSolution:
        began = time.monotonic()
        replay = Replay(self.facts.problem)
        movable = movable_storages(self.facts)
        found: list[RematSolution] = []
        tried: list[RematSchedule] = []
        for solution in self._recomputed(replay):
            tried.append(solution.schedule)
            if solution.peak_bytes <= self.budget:
                found.append(solution)
            else:
                found += self._moved(replay, solution, movable, self.budget)
        if not found:
            raise InfeasibleError(self.budget, self._floor(replay, tried, movable), 0)
        best = min(found, key=lambda solution: solution.extra_seconds + self._fresh_s(replay, solution))
        return replace(best, solve_seconds=time.monotonic() - began) if best.schedule.moves else best

    def _fresh_s(self, replay: Replay, solution: RematSolution) -> float:
        """What is lost to memory that the arena has no place for: every step touches it for the first time."""
        return self.tiers.fresh_s_per_byte * fresh_bytes(replay, solution.schedule, self.budget)

    def _recomputed(self, replay: Replay) -> Iterator[RematSolution]:
        """Schedules without moves, from the smallest peak to the unplanned one."""
        count = len(self.facts.problem.ops)
        base = RematSchedule(tuple(range(count)), self.facts.problem.boundary)
        top = replay.run(base).peak_bytes
        if not self.tiers.recompute:
            yield rematerialize.plan(self.facts, top, 0.3)  # but for what the user chose to compute again
            return
        left = max(0.5, self.deadline - work.now())
        try:
            smallest = rematerialize.plan(self.facts, self.budget, left / 2)
        except InfeasibleError as infeasible:
            smallest = infeasible.floor
        yield smallest
        if smallest.extra_seconds <= 0:
            return
        low = max(smallest.peak_bytes, self.budget)
        for index, share in enumerate(SHARES):
            left = max(0.3, (self.deadline - work.now()) / (len(SHARES) - index))
            try:
                yield rematerialize.plan(self.facts, int(low + share * (top - low)), left)
            except InfeasibleError:
                continue
        yield rematerialize.plan(self.facts, top, 0.3)

    def _moved(self, replay: Replay, solution: RematSolution, movable: list[bool], budget: int) -> list[RematSolution]:
        """The same schedule with moves that bring it down to ``budget``, where there are any."""
        durations = durations_of(self.facts, solution.schedule)
        for runs in (fused_runs(self.facts, solution.schedule), ()):  # lowering may still take such kernels apart
            lives = InstanceLives.of(replay, solution.schedule, movable, runs)
            if (moves := plan_moves(lives, durations, budget, self.tiers.links)) is not None:
                break
        else:
            return []
        schedule = replace(solution.schedule, moves=moves)
        extra_s = solution.extra_seconds + traffic(moves, durations, self.tiers.links).extra_s
        peak = replay.run(schedule).peak_bytes
        method = f"{solution.method} + moves"
        return [
            replace(
                solution,
                schedule=schedule,
                peak_bytes=peak,
                extra_seconds=extra_s,
                lower_bound_seconds=0.0,
                status="heuristic",
                method=method,
            )
        ]

    def _floor(self, replay: Replay, tried: list[RematSchedule], movable: list[bool]) -> RematSolution:
        """The smallest peak that moves reach, on any of the schedules."""
        best: RematSolution | None = None
        for schedule in tried:
            run = replay.run(schedule)
            plain = RematSolution(schedule, run.peak_bytes, run.extra_seconds, 0.0, "heuristic", "floor", 0.0)
            low, high = self.budget, run.peak_bytes
            smallest = plain
            for _ in range(FLOOR_STEPS):
                middle = (low + high) // 2
                moved = self._moved(replay, plain, movable, middle)
                low, high = (low, middle) if moved else (middle, high)
                smallest = moved[0] if moved else smallest
            if best is None or smallest.peak_bytes < best.peak_bytes:
                best = smallest
        assert best is not None
        return best


def fresh_bytes(replay: Replay, schedule: RematSchedule, budget_bytes: int) -> int:
    """Bytes that a step writes to memory for the first time, as lanes and relays (``solvers/``) would place the rest."""
    found = replay.instances(np.array(schedule.sequence, dtype=np.int64))
    timeline = replay.run(schedule)
    lives: dict[int, list[tuple[int, int]]] = {}
    for storage, start, end in zip(found.storage.tolist(), found.start.tolist(), found.end.tolist(), strict=True):
        lives.setdefault(storage, []).append((start, min(end + 1, len(schedule.sequence))))
    for move in sorted(schedule.moves, key=lambda move: move.gone):  # what comes back lives again
        place = max(i for i, (start, _) in enumerate(lives[move.storage]) if start <= move.out)
        start, end = lives[move.storage][place]
        lives[move.storage][place : place + 1] = [(start, move.gone), (move.back, end)]
    rows = [(storage, start, end) for storage, parts in lives.items() for start, end in parts if start < end]
    storages, starts, ends = np.array(rows, dtype=np.int64).T
    sizes = replay.size[storages]
    slack = max(budget_bytes, timeline.peak_bytes) - timeline.live_bytes
    mine = np.where(replay.output[storages], 0, sizes)
    lie = (inside := lanes(starts, ends, mine, slack)).offsets >= 0
    slack -= inside.height - alive(starts[lie], ends[lie], sizes[lie], len(slack))
    relays = relays_of_halves(starts, ends, np.where(lie, 0, mine), slack, schedule.split)
    return int(sizes[~lie].sum()) - sum(relay.saved(sizes) for relay in relays)


def movable_storages(facts: Facts) -> list[bool]:
    """Which storages may leave: those that an op of the step makes, of known size, that nobody writes again.

    Gradients too, as long as they are there when the step ends; what the forward returns is the user's at once.
    """
    graphs = (facts.graphs.forward, facts.graphs.backward)
    mutated = set().union(*(mutated_inputs(module.graph) for module in graphs if module is not None))
    backward = {storage for op in facts.problem.ops[facts.problem.boundary :] for storage in op.writes}
    stays = [storage.is_output and index not in backward for index, storage in enumerate(facts.problem.storages)]
    return [
        not kept and node.op == "call_function" and node not in mutated and is_static(node)
        for kept, node in zip(stays, facts.storage_nodes, strict=True)
    ]


def is_static(node: torch.fx.Node) -> bool:
    """Whether the node yields one tensor whose sizes are numbers."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and all(type(length) is int for length in (*value.shape, *value.stride()))
