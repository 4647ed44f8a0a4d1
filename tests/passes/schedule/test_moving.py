"""Moves written down as nodes: whatever leaves comes back with the same numbers, on random programs under random plans.

The mover reads and writes as late as it may: memory that is given up, or used, too early shows as wrong numbers.
"""

from __future__ import annotations

import dataclasses
import gc
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.passes.schedule.swap import durations_of, movable_storages
from memcompile.solvers.schedule.problem import RematSchedule
from memcompile.solvers.schedule.simulate import Replay
from memcompile.solvers.transfers import moves as moves_module
from memcompile.solvers.transfers.link import Link
from memcompile.solvers.transfers.moves import InstanceLives, plan_moves
from memcompile.step.facts import Facts
from tests.movers import LazyMover
from tests.passes.schedule.test_random_graphs import random_schedule, step
from tests.planned_eagerly import Planner, unplanned
from tests.random_programs import N, Program
from tests.steps import assert_same_step


@pytest.fixture(autouse=True)
def _everything_may_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves_module, "SMALLEST_BYTES", 0)


def random_moves(seed: int) -> Callable[[Facts], RematSchedule]:
    """A random schedule, below its peak by as much as moves can do, or a part of that."""

    def choose(facts: Facts) -> RematSchedule:
        draw = random.Random(seed)
        schedule = random_schedule(seed)(facts) if draw.random() < 0.5 else unplanned(facts)
        replay = Replay(facts.problem)
        lives = InstanceLives.of(replay, schedule, movable_storages(facts))
        links = (Link("disk", draw.choice((1e6, 1e9)), draw.choice((1e6, 1e9)), 1e-6, 10**12),)
        peak, base = replay.run(schedule).peak_bytes, facts.problem.base_bytes
        for share in (draw.uniform(0.1, 0.9), 0.5, 0.7, 0.8, 0.9, 0.95):
            moves = plan_moves(lives, durations_of(facts, schedule), int(base + share * (peak - base)), links)
            if moves:
                return dataclasses.replace(schedule, moves=moves)
        return schedule

    return choose


def compare(seed: int) -> tuple[Planner, LazyMover]:
    mover = LazyMover()
    x = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    planner = Planner(random_moves(seed), mover=mover)
    model = Program(seed)
    assert_same_step(step(model, planner, x), step(model, Planner(unplanned), x), tolerance=0.0)
    return planner, mover


@settings(max_examples=6)
@given(seed=st.integers(0, 2**32))
def test_moves_leave_the_numbers_alone(seed: int) -> None:
    compare(seed)


def test_the_random_plans_move_things() -> None:
    """Most of them do, some across the boundary and some with recomputation: the test above is no tautology. Copies are dropped
    with the step."""
    moved = both = across = 0
    for seed in range(12):
        planner, mover = compare(seed)
        gc.collect()
        assert mover.leaving == {} and mover.held == {}
        for planned in planner.planned:
            schedule = planned.schedule
            moved += bool(schedule.moves) and bool(mover.log)
            both += bool(schedule.moves) and len(schedule.sequence) > len(planned.facts.problem.ops)
            across += any(move.gone < schedule.split < move.back for move in schedule.moves)
    assert moved >= 8 and both >= 2 and across >= 4
