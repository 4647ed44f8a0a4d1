"""The portfolio: from a problem and a budget to the cheapest schedule found, with a proven bound. Read this first."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from memcompile.solvers.bisection import bisect_cap
from memcompile.solvers.decode import decode
from memcompile.solvers.evict import CapExceededError, decode_capped
from memcompile.solvers.floor import floor_bound
from memcompile.solvers.frontier import solve_frontier
from memcompile.solvers.index import Index
from memcompile.solvers.polish import polish
from memcompile.solvers.problem import InfeasibleError, Problem, Schedule, Solution, Status
from memcompile.solvers.simulate import Ints, Replay, Timeline

TOLERANCE = 1e-4  # of the base time: a plan this close to its bound is optimal


@dataclass(slots=True)
class Search:
    """One call of ``solve``: the clock, the best plan so far and the bound."""

    index: Index
    replay: Replay
    budget: int
    deadline: float
    seed: int
    best: tuple[Schedule, Timeline, str] | None = None
    bound_seconds: float = 0.0
    tried: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def closed(self) -> bool:
        """The best plan meets the bound."""
        slack = TOLERANCE * self.index.problem.total_seconds
        return self.best is not None and self.best[1].extra_seconds <= self.bound_seconds + slack

    def gap(self) -> float:
        """Distance of the best plan from the bound, as a share of the base time."""
        if self.best is None:
            return float("inf")
        return (self.best[1].extra_seconds - self.bound_seconds) / (self.index.problem.total_seconds or 1.0)

    def offer(self, schedule: Schedule, method: str) -> Timeline:
        """Replay a schedule; when it fits, polish it and keep it if it is the cheapest."""
        timeline = self.replay.run(schedule)
        if timeline.peak_bytes <= self.budget:
            better = polish(self.replay, schedule, self.budget)
            result = self.replay.run(better)
            if self.best is None or result.extra_seconds < self.best[1].extra_seconds:
                self.best = (better, result, method)
        return timeline


def solve(problem: Problem, budget_bytes: int, *, time_limit_s: float = 8.0, seed: int = 0) -> Solution:
    """The cheapest schedule found within ``budget_bytes``; InfeasibleError with the smallest peak found when there is none."""
    began = time.monotonic()
    index = Index.of(problem)
    search = Search(index, Replay(problem), budget_bytes, began + time_limit_s, seed)
    base = search.offer(decode(index), "base")
    if not search.closed:
        _search(search, base)
    if search.best is None:
        floor, lower = minimum_peak(problem, time_limit_s=max(1.0, search.left))
        if floor.peak_bytes > budget_bytes:
            raise InfeasibleError(budget_bytes, floor, lower)
        search.offer(floor.schedule, floor.method)
    assert search.best is not None
    schedule, timeline, method = search.best
    return _solution(search, schedule, timeline, method, time.monotonic() - began)


def _solution(search: Search, schedule: Schedule, timeline: Timeline, method: str, seconds: float) -> Solution:
    status: Status = "optimal" if search.closed else "bounded" if search.bound_seconds > 0 else "heuristic"
    return Solution(
        schedule=schedule,
        peak_bytes=timeline.peak_bytes,
        extra_seconds=timeline.extra_seconds,
        lower_bound_seconds=min(search.bound_seconds, timeline.extra_seconds),
        status=status,
        method=method,
        solve_seconds=seconds,
    )


def _search(search: Search, base: Timeline) -> None:
    """Run the portfolio until the gap closes or the time is spent."""
    index, total = search.index, search.index.problem.total_seconds
    sequence = decode(index).sequence
    instant = binding_instant(index, sequence, base.live_bytes)
    found = solve_frontier(
        index, {instant: search.budget}, time_limit_s=search.left * 0.2, gap_seconds=total * 1e-4, seed=search.seed
    )
    search.bound_seconds = max(search.bound_seconds, found.bound_seconds)
    if found.resident:
        search.offer(decode(index, found.resident), "frontier")
    if search.closed:
        return
    plan = bisect_cap(index, search.replay, search.budget, instant, tries=8, time_limit_s=search.left * 0.3, seed=search.seed)
    if plan is not None:
        search.offer(plan.schedule, "bisection")
    _evict(search)
    if search.closed:
        return
    _stage(search, instant)


def _evict(search: Search) -> None:
    limit = 12 * len(search.index.reads) + 1000
    for power in (0.5, 1.0, 0.0):
        if search.left <= 0 and search.best is not None:
            return
        try:
            schedule = decode_capped(search.index, search.budget, max_executions=limit, distance_power=power)
        except CapExceededError:
            continue
        search.offer(schedule, "eviction")


def _stage(search: Search, instant: int) -> None:
    """Lazily staged frontier: add the instants that the decoded plan violates, or lower their caps."""
    index = search.index
    caps = {instant: search.budget}
    exact = True
    hint: dict[int, frozenset[int]] = {}
    for _ in range(12):
        if search.left < 0.1 or search.closed:
            return
        found = solve_frontier(
            index,
            caps,
            engine="cp-sat" if len(caps) < 3 else "scip",
            time_limit_s=min(search.left, 0.5 * search.left + 0.2),
            gap_seconds=index.problem.total_seconds * 5e-4,
            at_least_seconds=search.bound_seconds,
            hint=hint,
            seed=search.seed,
        )
        if exact:
            search.bound_seconds = max(search.bound_seconds, found.bound_seconds)
        if not found.resident:
            return
        hint = found.resident
        schedule = decode(index, found.resident)
        timeline = search.offer(schedule, "staged frontier")
        if timeline.peak_bytes <= search.budget:
            return
        over = violated(index, schedule.sequence, timeline, search.budget)
        fresh = [w for w in sorted(over, key=lambda w: -over[w]) if w not in caps]
        if fresh and len(caps) < 8:
            caps.update(dict.fromkeys(fresh[:2], search.budget))
        else:
            exact = False
            for w, excess in over.items():
                if w in caps:
                    caps[w] -= excess


def violated(index: Index, sequence: tuple[int, ...], timeline: Timeline, budget: int) -> dict[int, int]:
    """Ops before which (or in which) the plan passes the budget, with the bytes above it."""
    over: dict[int, int] = {}
    first = first_positions(sequence)
    for position in np.flatnonzero(timeline.live_bytes > budget).tolist():
        w = int(first[position])
        if w >= 0 and not index.deferrable[w]:
            over[w] = max(over.get(w, 0), int(timeline.live_bytes[position]) - budget)
    return over


def first_positions(sequence: tuple[int, ...]) -> list[int]:
    """Per execution, the next op (from it on) that runs for the first time; -1 after the last."""
    seen: set[int] = set()
    first: list[bool] = []
    for p in sequence:
        first.append(p not in seen)
        seen.add(p)
    result = [-1] * len(sequence)
    current = -1
    for position in range(len(sequence) - 1, -1, -1):
        if first[position]:
            current = sequence[position]
        result[position] = current
    return result


def binding_instant(index: Index, sequence: tuple[int, ...], live: Ints) -> int:
    """The op with the fullest memory in the base order (deferrable ones have no fixed instant)."""
    best, chosen = -1, 0
    first = first_positions(sequence)
    for position, p in enumerate(sequence):
        if first[position] == p and not index.deferrable[p] and int(live[position]) > best:
            best, chosen = int(live[position]), p
    return chosen


def minimum_peak(problem: Problem, *, time_limit_s: float) -> tuple[Solution, int]:
    """The schedule with the smallest peak found, and a number of bytes that no schedule stays below."""
    began = time.monotonic()
    index, replay = Index.of(problem), Replay(problem)
    lower = floor_bound(index)
    best = decode(index)
    peak, method = replay.run(best).peak_bytes, "base"
    low, high = lower, peak
    limit = 12 * len(index.reads) + 1000
    while high - low > max(1, lower // 500) and time.monotonic() - began < time_limit_s:
        cap = (low + high) // 2
        fits = False
        for power in (0.5, 1.0, 0.0):
            try:
                schedule = decode_capped(index, cap, max_executions=limit, distance_power=power)
            except CapExceededError:
                continue
            timeline = replay.run(schedule)
            if timeline.peak_bytes < peak:
                best, peak, method = schedule, timeline.peak_bytes, "eviction"
            fits = timeline.peak_bytes <= cap
            break
        low, high = (low, min(peak, cap)) if fits else (cap, high)
    timeline = replay.run(best)
    search = Search(index, replay, peak, began, 0)
    search.offer(best, method)
    assert search.best is not None
    schedule, timeline, method = search.best
    return _solution(search, schedule, timeline, method, time.monotonic() - began), lower
