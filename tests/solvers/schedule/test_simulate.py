"""The replay against a naive one; the validator against planted errors."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import Op, RematProblem, RematSchedule, Storage
from memcompile.solvers.schedule.simulate import simulate, validate
from tests.solvers.instances import random_problem, transformer
from tests.solvers.reference import naive_live_bytes


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.integers(0, 10**6))
def test_replay_equals_naive(seed: int, noise: int) -> None:
    problem = random_problem(seed, 6, 7)
    index = RematIndex.of(problem)
    rng = random.Random(noise)
    resident = {
        w: frozenset(s for s in range(len(problem.storages)) if index.producer[s] < w and rng.random() < 0.4)
        for w in rng.sample(range(len(problem.ops)), 3)
    }
    schedule = decode(index, resident)
    validate(problem, schedule)
    timeline = simulate(problem, schedule)
    assert timeline.live_bytes.tolist() == naive_live_bytes(problem, schedule)
    assert timeline.peak_bytes == max(naive_live_bytes(problem, schedule))


def small() -> RematProblem:
    """a -> b -> c | d reads a, b and writes the output."""
    storages = (Storage("a", 4), Storage("b", 2), Storage("c", 1, is_output=True), Storage("d", 1, is_output=True))
    ops = (
        Op("make_a", (), (0,), 1.0),
        Op("make_b", (0,), (1,), 1.0, recomputable=False),
        Op("make_c", (1,), (2,), 1.0),
        Op("make_d", (0, 1), (3,), 1.0, workspace_bytes=10),
    )
    return RematProblem(storages, ops, boundary=3, base_bytes=100)


def test_small_by_hand() -> None:
    timeline = simulate(small(), RematSchedule((0, 1, 2, 0, 3), split=3))
    assert timeline.live_bytes.tolist() == [104, 106, 103, 107, 118]
    assert timeline.extra_seconds == 1.0
    assert timeline.saved == (1,)


def test_in_place_write_takes_a_dying_read() -> None:
    storages = (Storage("x", 4), Storage("y", 4, is_output=True))
    ops = (Op("make", (), (0,), 1.0), Op("relu", (0,), (1,), 1.0, inplace=True))
    problem = RematProblem(storages, ops, boundary=2)
    assert simulate(problem, RematSchedule((0, 1), 2)).live_bytes.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("sequence", "split", "message"),
    [
        ((0, 1, 2, 3), 9, "split 9 is outside"),
        ((0, 1, 2, 7), 3, "there is no op 7"),
        ((0, 1, 1, 2, 3), 4, "not recomputable"),
        ((0, 1, 2, 2, 3), 4, "creates an output a second time"),
        ((1, 0, 2, 3), 3, "reads storage 0"),
        ((0, 2, 1, 3), 3, "reads storage 1"),
        ((0, 1, 2, 3), 4, "a backward op before the split"),
        ((0, 1, 2, 3), 2, "after the split"),
        ((0, 1, 2), 3, "never runs"),
    ],
)
def test_validate_names_the_error(sequence: tuple[int, ...], split: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(small(), RematSchedule(sequence, split))


def test_validate_base_order() -> None:
    ops = tuple(Op(f"op{i}", (), (i,), 1.0) for i in range(4))
    problem = RematProblem(tuple(Storage(f"s{i}", 1) for i in range(4)), ops, boundary=2)
    with pytest.raises(ValueError, match="against the base order"):
        validate(problem, RematSchedule((1, 0, 2, 3), 2))
    with pytest.raises(ValueError, match="against the base order"):
        validate(problem, RematSchedule((0, 1, 3, 2), 2))


def test_replay_of_a_deep_model_is_fast() -> None:
    problem = transformer(100)
    schedule = RematSchedule(tuple(range(len(problem.ops))), problem.boundary)
    assert simulate(problem, schedule).extra_seconds == 0.0
