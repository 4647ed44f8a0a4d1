"""The planner against exhaustive search on small problems, and on the shapes of real models."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers import work
from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.floor import floor_bound
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import InfeasibleError, RematProblem, RematSolution
from memcompile.solvers.schedule.simulate import simulate, validate
from memcompile.solvers.schedule.solve import minimum_peak, solve
from tests.solvers.instances import lstm, random_problem, recurrence, resnet, transformer, unet
from tests.solvers.reference import exhaustive

EPSILON = 1e-4


def base_peak(problem: RematProblem) -> int:
    """Peak of the schedule that keeps everything."""
    return simulate(problem, decode(RematIndex.of(problem))).peak_bytes


def check(problem: RematProblem, solution: RematSolution, budget: int) -> None:
    """A solution keeps its promises."""
    validate(problem, solution.schedule)
    timeline = simulate(problem, solution.schedule)
    assert timeline.peak_bytes == solution.peak_bytes <= budget
    assert timeline.extra_seconds == pytest.approx(solution.extra_seconds)
    assert solution.lower_bound_seconds <= solution.extra_seconds + EPSILON


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), forward=st.integers(2, 5), backward=st.integers(0, 4))
def test_against_exhaustive_search(seed: int, forward: int, backward: int) -> None:
    problem = random_problem(seed, forward, backward)
    best = exhaustive(problem, None)
    assert best is not None
    floor, lower = minimum_peak(problem, time_limit_s=1.0)
    check(problem, floor, floor.peak_bytes)
    assert lower <= best[0] <= floor.peak_bytes
    for budget in sorted({best[0], floor.peak_bytes, (floor.peak_bytes + base_peak(problem)) // 2}):
        optimum = exhaustive(problem, budget)
        assert optimum is not None
        try:
            solution = solve(problem, budget, time_limit_s=1.0)
        except InfeasibleError as error:
            assert budget < error.floor.peak_bytes <= floor.peak_bytes
            assert error.lower_bound_bytes <= best[0]
            continue
        check(problem, solution, budget)
        assert solution.lower_bound_seconds <= optimum[1] + EPSILON
        assert solution.extra_seconds >= optimum[1] - EPSILON
        if solution.status == "optimal":
            assert solution.extra_seconds == pytest.approx(optimum[1], abs=1e-2)


def test_most_small_problems_are_solved_optimally() -> None:
    optimal = count = exact_floor = 0
    for seed in range(40):
        problem = random_problem(seed, 4, 4)
        floor, _ = minimum_peak(problem, time_limit_s=1.0)
        best = exhaustive(problem, None)
        assert best is not None
        exact_floor += floor.peak_bytes <= 1.1 * best[0]
        budget = (floor.peak_bytes + base_peak(problem)) // 2
        optimum = exhaustive(problem, budget)
        assert optimum is not None
        solution = solve(problem, budget, time_limit_s=1.0)
        count += 1
        optimal += solution.extra_seconds <= optimum[1] + EPSILON
    assert optimal >= 0.9 * count
    assert exact_floor >= 0.8 * count


@pytest.mark.parametrize(
    ("name", "share", "gap"),
    [
        ("transformer", 0.7, 0.005),
        ("transformer", 0.5, 0.005),
        ("transformer", 0.25, 0.03),
        ("resnet", 0.5, 0.01),
        ("resnet", 0.35, 0.05),
        ("unet", 0.5, 0.02),
        ("unet", 0.35, 0.07),
        ("lstm", 0.7, 0.02),
    ],
)
def test_gap_on_model_shapes(name: str, share: float, gap: float) -> None:
    problem = {"transformer": transformer(12), "resnet": resnet(16), "unet": unet(4), "lstm": lstm(60)}[name]
    budget = int(share * base_peak(problem))
    solution = solve(problem, budget)
    check(problem, solution, budget)
    assert solution.extra_seconds - solution.lower_bound_seconds <= gap * problem.total_seconds


@pytest.mark.parametrize(("name", "ratio"), [("transformer", 1.08), ("resnet", 1.3), ("unet", 1.06)])
def test_floor_is_near_its_bound(name: str, ratio: float) -> None:
    problem = {"transformer": transformer(6), "resnet": resnet(8), "unet": unet(4)}[name]
    floor, lower = minimum_peak(problem, time_limit_s=4.0)
    check(problem, floor, floor.peak_bytes)
    assert lower <= floor.peak_bytes <= ratio * lower
    assert lower == floor_bound(RematIndex.of(problem))


def test_the_search_for_the_floor_ends_where_it_is_enough() -> None:
    problem = transformer(6)
    floor, _ = minimum_peak(problem, time_limit_s=4.0)
    enough = int(1.3 * floor.peak_bytes)
    found, _ = minimum_peak(problem, time_limit_s=4.0, enough_bytes=enough)
    assert floor.peak_bytes < found.peak_bytes <= enough
    assert found.extra_seconds < floor.extra_seconds


def test_recurrent_chain_saves_95_percent_for_a_third() -> None:
    """Gruslys et al. (2016), figure 1: T = 1000 with 5 % of the activation memory costs about one third more time."""
    problem = replace(lstm(400), base_bytes=0)
    index = RematIndex.of(problem)
    inherent = floor_bound(index)
    budget = int(0.05 * (base_peak(problem) - inherent)) + inherent
    solution = solve(problem, budget, time_limit_s=2.0)
    check(problem, solution, budget)
    assert solution.extra_seconds <= 0.36 * problem.total_seconds


def test_a_chain_of_states_of_one_size_costs_about_one_more_forward_pass() -> None:
    """No position crosses fewer bytes than its neighbours: every state is a place to cut."""
    problem = recurrence(800)
    budget = int(0.05 * base_peak(problem))
    solution = solve(problem, budget, time_limit_s=3.0)
    check(problem, solution, budget)
    forward_s = sum(op.seconds for op in problem.ops[: problem.boundary])
    assert solution.method == "chain"
    assert solution.extra_seconds <= 1.1 * forward_s


def test_generous_budget_needs_nothing() -> None:
    problem = transformer(2)
    solution = solve(problem, base_peak(problem))
    assert (solution.status, solution.method, solution.extra_seconds) == ("optimal", "base", 0.0)


def test_infeasible_budget_names_the_floor() -> None:
    problem = unet(3)
    floor, lower = minimum_peak(problem, time_limit_s=2.0)
    with pytest.raises(InfeasibleError, match="below the smallest peak found") as caught:
        solve(problem, lower - 1, time_limit_s=2.0)
    assert caught.value.lower_bound_bytes == lower
    check(problem, caught.value.floor, caught.value.floor.peak_bytes)
    assert caught.value.floor.peak_bytes <= 1.02 * floor.peak_bytes


def test_inference_graph() -> None:
    problem = transformer(2)
    forward = replace(problem, ops=problem.ops[: problem.boundary], storages=problem.storages[: problem.boundary])
    budget = base_peak(forward)
    check(forward, solve(forward, budget), budget)
    floor, lower = minimum_peak(forward, time_limit_s=1.0)
    assert lower <= floor.peak_bytes <= budget


def test_same_answer_twice() -> None:
    problem = resnet(6)
    budget = int(0.6 * base_peak(problem))
    assert solve(problem, budget).schedule == solve(problem, budget).schedule


def test_golden_plan() -> None:
    """Six storages a layer: the pointwise ones and the attention probabilities are made again, the matmuls kept."""
    problem = transformer(2)
    budget = int(0.6 * base_peak(problem))
    solution = solve(problem, budget)
    seen: set[int] = set()
    remade = [problem.ops[p].name for p in solution.schedule.sequence if p in seen or seen.add(p)]  # type: ignore[func-returns-value]
    saved = [problem.storages[s].name for s in simulate(problem, solution.schedule).saved]
    assert_expected_inline(
        "\n".join([*remade, "saved:", *saved]),
        """\
qk_1
softmax_1
qk_0
softmax_0
dropout_0
saved:
embed
ln1_0
q_0
k_0
v_0
av_0
add1_0
ln2_0
up_0
gelu_0
add2_0
ln1_1
q_1
k_1
v_1
dropout_1
av_1
add1_1
ln2_1
up_1
gelu_1
add2_1
ln_f
head
loss""",
    )


def test_a_slow_machine_finds_the_same_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every look at the clock takes five seconds (other processes, a first import), nothing is cut short."""
    problem = unet(3)
    budget = int(0.45 * base_peak(problem))
    usual = solve(problem, budget, time_limit_s=3.0)
    clock = itertools.count(0, 5)
    for name in ("monotonic", "perf_counter", "time"):
        monkeypatch.setattr(time, name, lambda: float(next(clock)))
    assert solve(problem, budget, time_limit_s=3.0).schedule == usual.schedule


def test_a_shorter_limit_is_less_work() -> None:
    problem = unet(3)
    budget = int(0.45 * base_peak(problem))
    done = []
    for limit_s in (0.05, 3.0):
        before = work.now()
        solve(problem, budget, time_limit_s=limit_s)
        done.append(work.now() - before)
    assert done[0] < 0.5 * done[1]
