"""The planner of reads against a count of bytes that shares no code with it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memcompile.solvers.transfers.link import Link
from memcompile.solvers.transfers.prefetch import Prefetch, PrefetchProblem, WeightRead, just_in_time, plan_ahead, plan_prefetch

LINK = Link.to_read("disk", 1e9, 1e-4)
MB = 10**6


def problem_of(sizes: list[int], live: list[int], seconds: list[float], uses: list[int]) -> PrefetchProblem:
    """One slot and one moment for each use."""
    clock = np.concatenate([[0.0], np.cumsum(seconds)])[:-1]
    reads = tuple(WeightRead(weight, sizes[weight], slot, slot, slot + 1) for slot, weight in enumerate(uses))
    moments = tuple(range(len(uses)))
    return PrefetchProblem(np.array([*live, live[-1]]), moments, tuple(clock.tolist()), sum(seconds), tuple(sizes), reads)


def counted(problem: PrefetchProblem, plan: Prefetch) -> int:
    """Bytes at the fullest moment, one moment after the other."""
    levels = []
    for moment, live in enumerate(problem.live.tolist()):
        level = live + sum(problem.sizes[weight] for weight in plan.residents)
        for read, slot in plan.starts:
            if problem.moments[slot] <= moment < read.end:
                level += read.size_bytes
        levels.append(int(level))
    return max(levels)


@st.composite
def problems(draw: st.DrawFn) -> tuple[PrefetchProblem, int]:
    sizes = draw(st.lists(st.integers(1, 40).map(lambda n: n * MB), min_size=1, max_size=8))
    uses = [*range(len(sizes)), *draw(st.lists(st.integers(0, len(sizes) - 1), max_size=3))]
    live = draw(st.lists(st.integers(0, 20).map(lambda n: n * MB), min_size=len(uses), max_size=len(uses)))
    seconds = draw(st.lists(st.floats(0, 0.05), min_size=len(uses), max_size=len(uses)))
    return problem_of(sizes, live, seconds, uses), draw(st.integers(0, 400)) * MB


@given(problems())
def test_a_plan_keeps_the_budget_and_reads_what_does_not_stay(case: tuple[PrefetchProblem, int]) -> None:
    problem, budget = case
    plan = plan_prefetch(problem, budget, LINK)
    floor = just_in_time(problem, LINK)
    assert (plan is None) == (floor.peak_bytes > budget)
    for found in [floor, *([] if plan is None else [plan])]:
        assert found.peak_bytes == counted(problem, found)
        assert [read for read, _ in found.starts] == [read for read in problem.reads if read.weight not in found.residents]
        assert all(slot <= read.slot for read, slot in found.starts)
    if plan is not None:
        assert plan.peak_bytes <= budget
        assert plan.seconds <= floor.seconds + 1e-9


def test_everything_stays_where_there_is_room() -> None:
    problem = problem_of([10 * MB] * 4, [MB] * 4, [0.01] * 4, [0, 1, 2, 3])
    plan = plan_prefetch(problem, 41 * MB, LINK)
    assert plan is not None
    assert plan.residents == {0, 1, 2, 3} and not plan.starts and plan.seconds == problem.total_s


def test_more_room_is_never_slower_where_the_link_is_the_bottleneck() -> None:
    problem = problem_of([10 * MB] * 16, [MB] * 16, [0.001] * 16, list(range(16)))
    plans = [plan_prefetch(problem, budget * MB, LINK) for budget in (11, 21, 41, 81, 121, 161)]
    seconds = [plan.seconds for plan in plans if plan is not None]
    assert len(seconds) == len(plans)
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > 2 * seconds[-2]


def test_computation_hides_reads_that_start_in_time() -> None:
    problem = problem_of([10 * MB] * 8, [MB] * 8, [0.03] * 8, list(range(8)))
    plan = plan_prefetch(problem, 31 * MB, LINK)
    assert plan is not None
    assert plan.waited_s < 0.011  # but for the first one
    assert plan.hidden > 0.8


def test_a_weight_that_is_read_twice_stays_first() -> None:
    problem = problem_of([10 * MB] * 6, [MB] * 7, [0.001] * 7, [0, 1, 2, 3, 4, 5, 3])
    plan = plan_prefetch(problem, 25 * MB, LINK)
    assert plan is not None and 3 in plan.residents


def test_without_a_budget_a_few_reads_are_under_way() -> None:
    problem = problem_of([MB] * 5, [0] * 5, [0.1] * 5, list(range(5)))
    assert [slot for _, slot in plan_ahead(problem, 2, LINK).starts] == [0, 0, 0, 1, 2]
