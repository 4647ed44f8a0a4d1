"""The greedy decoder keeps its cap whatever it weighs, and what is derived for one op's workspace is what is made afresh."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.evict import CapExceededError, decode_capped
from memcompile.solvers.schedule.floor import floor_bound, quick_bound
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import RematProblem, RematSchedule
from memcompile.solvers.schedule.simulate import Replay, simulate, validate
from tests.solvers.instances import lstm, random_problem, transformer, unet

PROBLEMS = [random_problem(seed, 3 + seed % 9, 2 + seed % 11) for seed in range(60)]


def decoded(problem: RematProblem, share: float, order: int) -> tuple[int, RematSchedule | None]:
    """A cap between the base bytes and the peak without a plan, and a schedule within it."""
    index = RematIndex.of(problem)
    peak, base = simulate(problem, decode(index)).peak_bytes, problem.base_bytes
    cap = base + int(share * (peak - base))
    try:
        return cap, decode_capped(index, cap, max_executions=6 * len(problem.ops) + 100, order=order)
    except CapExceededError:
        return cap, None


@pytest.mark.parametrize("order", range(5))
def test_what_is_found_is_valid_and_keeps_the_cap(order: int) -> None:
    found = 0
    for number, problem in enumerate([*PROBLEMS, transformer(2), unet(3), lstm(8)]):
        cap, schedule = decoded(problem, random.Random(number).uniform(0.5, 1.0), order)
        if schedule is not None:
            validate(problem, schedule)
            assert simulate(problem, schedule).peak_bytes <= cap
            found += len(schedule.sequence) > len(problem.ops)
    assert found >= 10


def test_a_seed_repeats_and_another_differs() -> None:
    found = {order: decoded(transformer(3), 0.4, order)[1] for order in (2, 3)}
    assert found[2] is not None
    assert found[2] == decoded(transformer(3), 0.4, 2)[1]
    assert found[2] != found[3]


@pytest.mark.parametrize("seed", range(10))
def test_another_workspace(seed: int) -> None:
    problem = PROBLEMS[seed]
    p = random.Random(seed).randrange(len(problem.ops))
    changed = problem.with_workspace(p, 12_345)
    assert changed.ops[p] == dataclasses.replace(problem.ops[p], workspace_bytes=12_345)
    index, afresh = RematIndex.of(problem).with_workspace(p, 12_345), RematIndex.of(changed)
    assert index == afresh
    for name, array in index.steps._asdict().items():
        np.testing.assert_array_equal(array, getattr(afresh.steps, name), name)
    schedule = decode(afresh)
    assert Replay(problem).with_workspace(p, 12_345).run(schedule).peak_bytes == Replay(changed).run(schedule).peak_bytes


def test_the_quick_bound_is_below_the_one_that_looks_back() -> None:
    bounds = [(quick_bound(index), floor_bound(index)) for index in map(RematIndex.of, PROBLEMS)]
    assert all(quick <= slow for quick, slow in bounds)
    assert any(quick < slow for quick, slow in bounds)
