"""The portfolio: from a problem and a budget to the cheapest schedule found, with a proven bound. Read this first."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from memcompile.solvers import work
from memcompile.solvers.schedule.bisection import bisect_cap
from memcompile.solvers.schedule.blocks import find_chain
from memcompile.solvers.schedule.chain import chain_floor, chain_search, model_chain
from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.evict import CapExceededError, decode_capped
from memcompile.solvers.schedule.floor import floor_bound, quick_bound
from memcompile.solvers.schedule.frontier import solve_frontier
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.polish import polish
from memcompile.solvers.schedule.problem import InfeasibleError, RematProblem, RematSchedule, RematSolution, Status
from memcompile.solvers.schedule.simulate import Ints, Replay, Timeline

FLOOR_S = 8.0  # before a budget is refused
LEAST_S = 2.0  # for the options of a chain's blocks, even when the time is spent: a plan must be found
TOLERANCE = 1e-4  # of the base time: a plan this close to its bound is optimal
GOOD_GAP = 5e-4  # of the base time: a plan this close to its bound ends the search
FAIR_GAP = 5e-2  # of the base time: a plan this close to its bound is not worth the chain
VERY_DEEP = 6000  # ops from which the greedy decoder gets one short try
SMALL_PROBLEM = 300  # ops up to which more variants of the greedy decoder are tried
CHAIN_BLOCKS = (64, 16)  # granularities of the chain


@dataclass(frozen=True, slots=True)
class GreedyVariant:
    """How the greedy decoder weighs distance and orders remakes (see ``decode_capped``)."""

    power: float
    order: int


VARIANTS = (GreedyVariant(0.5, 1), GreedyVariant(0.25, 0), GreedyVariant(0.0, 1), GreedyVariant(0.0, 0))


@dataclass(slots=True)
class RematSearch:
    """One call of ``solve``: the clock, the best plan so far and the bound."""

    index: RematIndex
    replay: Replay
    budget: int
    deadline: float
    seed: int
    best: tuple[RematSchedule, Timeline, str] | None = None
    bound_seconds: float = 0.0
    lowest: tuple[RematSchedule, Timeline, str] | None = None

    @property
    def left(self) -> float:
        """Seconds of work until the deadline."""
        return self.deadline - work.now()

    @property
    def lowest_peak(self) -> int:
        """The smallest peak found."""
        return self.lowest[1].peak_bytes if self.lowest is not None else self.budget

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

    def offer(self, schedule: RematSchedule, method: str) -> Timeline:
        """Replay a schedule; when it fits, polish it and keep it if it is the cheapest."""
        timeline = self.replay.run(schedule)
        if timeline.peak_bytes <= self.budget:
            better = polish(self.replay, schedule, self.budget)
            result = self.replay.run(better)
            if self.best is None or result.extra_seconds < self.best[1].extra_seconds:
                self.best = (better, result, method)
        return timeline

    def offer_lowest(self, schedule: RematSchedule, method: str) -> int:
        """Replay a schedule; keep it if its peak is the smallest. Returns its peak."""
        timeline = self.replay.run(schedule)
        if self.lowest is None or timeline.peak_bytes < self.lowest[1].peak_bytes:
            self.lowest = (schedule, timeline, method)
        return timeline.peak_bytes


def solve(
    problem: RematProblem, budget_bytes: int, *, time_limit_s: float = 8.0, seed: int = 0, effort: float = 1.0
) -> RematSolution:
    """The cheapest schedule found within ``budget_bytes``; InfeasibleError with the smallest peak found when there is none.

    ``effort`` multiplies the seconds that are spent for a problem of this size, up to ``time_limit_s``. They are seconds of
    work (``work.py``): the same problem gets the same answer.
    """
    began = time.monotonic()
    index = RematIndex.of(problem)
    search = RematSearch(index, Replay(problem), budget_bytes, work.now() + effort_s(problem, time_limit_s, effort), seed)
    base = search.offer(decode(index), "base")
    if problem.ops and not search.closed and quick_bound(index) <= budget_bytes:
        sequence = decode(index).sequence
        _search(search, binding_instant(sequence, base.live_bytes))
    if search.best is None:
        floor, lower = minimum_peak(problem, time_limit_s=max(FLOOR_S, search.left), enough_bytes=budget_bytes)
        if floor.peak_bytes > budget_bytes:
            raise InfeasibleError(budget_bytes, floor, lower)
        search.offer(floor.schedule, floor.method)
    assert search.best is not None
    schedule, timeline, method = search.best
    return _solution(search, schedule, timeline, method, time.monotonic() - began)


def variants(index: RematIndex) -> list[GreedyVariant]:
    """Variants of the greedy decoder to try: more of them on small problems."""
    chosen = list(VARIANTS)
    if 0 < len(index.reads) <= SMALL_PROBLEM:
        chosen += [GreedyVariant(0.25 * (i % 3), i) for i in range(2, 2 + min(40, 2400 // len(index.reads)))]
    return chosen


def greedy(index: RematIndex, cap: int, variant: GreedyVariant, repeats: int) -> RematSchedule | None:
    """One run of the greedy decoder, of at most ``repeats`` executions per op."""
    limit = repeats * len(index.reads) + len(index.reads) // 2 + 1000
    try:
        return decode_capped(index, cap, max_executions=limit, distance_power=variant.power, order=variant.order)
    except CapExceededError:
        return None


def effort_s(problem: RematProblem, time_limit_s: float, effort: float) -> float:
    """Seconds worth spending: planning time grows with the graph."""
    return min(time_limit_s, effort * (0.3 + 6e-3 * len(problem.ops)))


def _solution(search: RematSearch, schedule: RematSchedule, timeline: Timeline, method: str, seconds: float) -> RematSolution:
    status: Status = "optimal" if search.closed else "bounded" if search.bound_seconds > 0 else "heuristic"
    return RematSolution(
        schedule=schedule,
        peak_bytes=timeline.peak_bytes,
        extra_seconds=timeline.extra_seconds,
        lower_bound_seconds=min(search.bound_seconds, timeline.extra_seconds),
        status=status,
        method=method,
        solve_seconds=seconds,
    )


def _search(search: RematSearch, instant: int) -> None:
    """Run the portfolio, the surest first, until the gap closes or the time is spent."""
    index, total = search.index, search.index.problem.total_seconds
    found = solve_frontier(
        index, {instant: search.budget}, time_limit_s=search.left * 0.4, gap_seconds=total * TOLERANCE, seed=search.seed
    )
    search.bound_seconds = max(search.bound_seconds, found.bound_seconds)
    if found.resident:
        search.offer(decode(index, found.resident), "frontier")
    steps = ((_bisect, GOOD_GAP), (_evict, GOOD_GAP), (_chain, FAIR_GAP), (_stage, GOOD_GAP))
    for step, gap in steps:
        if search.gap() <= gap:
            continue
        if search.left <= 0 and search.best is not None:
            return
        step(search, instant)


def _bisect(search: RematSearch, instant: int) -> None:
    plan = bisect_cap(
        search.index, search.replay, search.budget, instant, tries=6, time_limit_s=search.left * 0.25, seed=search.seed
    )
    if plan is not None:
        search.offer(plan.schedule, "bisection")


def _evict(search: RematSearch, _: int) -> None:
    deep = len(search.index.reads) > VERY_DEEP
    for variant in VARIANTS[:1] if deep else variants(search.index):
        if search.left <= 0 and search.best is not None:
            return
        schedule = greedy(search.index, search.budget, variant, 1 if deep else 3)
        if schedule is not None:
            search.offer(schedule, "eviction")


def _chain(search: RematSearch, _: int) -> None:
    seen: set[int] = set()
    for blocks in CHAIN_BLOCKS:
        if search.left <= 0 and search.best is not None:
            return
        chain = find_chain(search.index, blocks)
        if chain is not None and len(chain.blocks) not in seen:
            seen.add(len(chain.blocks))
            model = model_chain(search.index, chain, search.seed, work.now() + max(search.left, LEAST_S))
            plans = chain_search(search.index, search.replay, model, search.budget)
            for schedule in sorted(plans, key=lambda s: search.replay.extra_seconds(s))[:3]:
                search.offer(schedule, "chain")


def _stage(search: RematSearch, instant: int) -> None:
    """Lazily staged frontier: add the instants that the decoded plan violates, or lower their caps."""
    index = search.index
    caps = {instant: search.budget}
    exact = True
    hint: dict[int, frozenset[int]] = {}
    for _ in range(12):
        if search.left < 0.1 or search.gap() <= GOOD_GAP:
            return
        found = solve_frontier(
            index,
            caps,
            time_limit_s=0.6 * search.left,
            gap_seconds=index.problem.total_seconds * TOLERANCE,
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
        over = violated(schedule.sequence, timeline, search.budget)
        fresh = [w for w in sorted(over, key=lambda w: -over[w]) if w not in caps]
        if fresh and len(caps) < 8:
            caps.update(dict.fromkeys(fresh[:2], search.budget))
        else:
            exact = False
            for w, excess in over.items():
                if w in caps:
                    caps[w] -= excess


def violated(sequence: tuple[int, ...], timeline: Timeline, budget: int) -> dict[int, int]:
    """Ops before which (or in which) the plan passes the budget, with the bytes above it."""
    over: dict[int, int] = {}
    first = first_positions(sequence)
    for position in np.flatnonzero(timeline.live_bytes > budget).tolist():
        w = int(first[position])
        if w >= 0:
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


def binding_instant(sequence: tuple[int, ...], live: Ints) -> int:
    """The op with the fullest memory in the base order."""
    best, chosen = -1, 0
    first = first_positions(sequence)
    for position, p in enumerate(sequence):
        if first[position] == p and int(live[position]) > best:
            best, chosen = int(live[position]), p
    return chosen


def minimum_peak(problem: RematProblem, *, time_limit_s: float, enough_bytes: int = 0) -> tuple[RematSolution, int]:
    """The schedule with the smallest peak found, and a number of bytes that no schedule stays below.

    The search ends early at a peak of ``enough_bytes``.
    """
    began = time.monotonic()
    index, replay = RematIndex.of(problem), Replay(problem)
    lower = floor_bound(index)
    base = decode(index)
    search = RematSearch(index, replay, replay.run(base).peak_bytes, work.now() + time_limit_s, 0)
    search.lowest = (base, replay.run(base), "base")
    enough = max(lower, enough_bytes)
    _lowest_by_chain(search, enough)
    _lowest_by_eviction(search, enough)
    schedule, timeline, method = search.lowest
    search.budget = timeline.peak_bytes
    search.offer(schedule, method)
    assert search.best is not None
    schedule, timeline, method = search.best
    return _solution(search, schedule, timeline, method, time.monotonic() - began), lower


def _lowest_by_eviction(search: RematSearch, enough: int) -> None:
    """Bisect the cap of the greedy decoder."""
    for variant in variants(search.index):
        low, high = enough - 1, search.lowest_peak
        for _ in range(10):
            if high - low <= max(1, enough // 500) or (search.left <= 0 and search.lowest_peak < search.budget):
                break
            cap = (low + high) // 2
            schedule = greedy(search.index, cap, variant, 4)
            if schedule is None:
                low = cap
                continue
            peak = search.offer_lowest(schedule, "eviction")
            low, high = (low, min(peak, cap)) if peak <= cap else (cap, high)


def _lowest_by_chain(search: RematSearch, enough: int) -> None:
    """Ask the chain for less and less, at each granularity, finest first."""
    for blocks in CHAIN_BLOCKS:
        chain = find_chain(search.index, blocks) if search.left > 0 and search.lowest_peak > enough else None
        if chain is None:
            continue
        model = model_chain(search.index, chain, search.seed, work.now() + max(search.left, LEAST_S))
        for _ in range(3):
            before = search.lowest_peak
            for schedule in chain_floor(search.index, model, before):
                search.offer_lowest(schedule, "chain")
            if search.lowest_peak > before - before // 50 or search.lowest_peak <= enough or search.left <= 0:
                break
