"""A feasible plan from one instant: shrink the cap of the single-instant model until the decoded schedule fits.

The frontier at the fullest instant ignores what the remakes hold later; asking for fewer resident bytes makes room for them.
The exact replay judges each try, so the answer is feasible, though its cost carries no bound of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.frontier import fixed_bytes, solve_frontier
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.polish import polish
from memcompile.solvers.schedule.problem import RematSchedule
from memcompile.solvers.schedule.simulate import Replay


@dataclass(frozen=True, slots=True)
class FoundSchedule:
    """A schedule within the budget."""

    schedule: RematSchedule
    peak_bytes: int
    extra_seconds: float


def bisect_cap(
    index: RematIndex, replay: Replay, budget: int, instant: int, *, tries: int, time_limit_s: float, seed: int
) -> FoundSchedule | None:
    """The cheapest plan found by bisection of the cap at ``instant``; None when no try fits."""
    low, high = fixed_bytes(index, instant), budget
    best: FoundSchedule | None = None
    cap = budget
    slack = index.problem.total_seconds * 2e-3
    for _ in range(tries):
        found = solve_frontier(index, {instant: cap}, time_limit_s=time_limit_s / tries, gap_seconds=slack, seed=seed)
        if not found.resident:
            low = cap
        else:
            schedule = decode(index, found.resident)
            timeline = replay.run(schedule)
            if timeline.peak_bytes <= budget:
                low = cap
                schedule = polish(replay, schedule, budget)
                timeline = replay.run(schedule)
                if best is None or timeline.extra_seconds < best.extra_seconds:
                    best = FoundSchedule(schedule, timeline.peak_bytes, timeline.extra_seconds)
            else:
                high = cap
        if high - low <= max(1, budget // 200):
            break
        cap = (low + high) // 2
    return best
