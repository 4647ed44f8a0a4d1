"""Random programs under random plans: whatever a schedule makes again, the numbers stay.

A program is a list of operations drawn from a seed. It is captured and partitioned as the product does it, written down under a
random valid schedule, and run by an interpreter: outputs and gradients equal those of the unplanned graph bit for bit, and those
of eager autograd within rounding.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import RematSchedule
from memcompile.solvers.schedule.simulate import validate
from memcompile.step.facts import Facts, StepGraphs
from memcompile.step.lowered import Lowered
from tests.planned_eagerly import Planner, unplanned, with_lowering
from tests.random_programs import N, Program, Wide
from tests.steps import Step, assert_same_step, run_memcompile, train


def random_schedule(seed: int) -> Callable[[Facts], RematSchedule]:
    """A valid schedule that keeps a random part of what is alive at random instants; checked on its own."""

    def choose(facts: Facts) -> RematSchedule:
        draw = random.Random(seed)
        problem, index = facts.problem, RematIndex.of(facts.problem)
        instants = {problem.boundary, *(draw.randrange(len(problem.ops)) for _ in range(draw.randrange(4)))}
        kept = draw.choice((0.0, 0.3, 0.6))
        resident = {
            w: {s for s in range(len(problem.storages)) if index.producer[s] < w and draw.random() < kept}
            for w in instants
            if w < len(problem.ops)
        }
        schedule = decode(index, resident)
        validate(problem, schedule)
        return schedule

    return choose


def step(model: nn.Module, backend: Planner | None, x: torch.Tensor) -> Step:
    torch._dynamo.reset()
    function = model if backend is None else torch.compile(model, backend=backend)
    return train(function, model, [x])


def compare(model: nn.Module, seed: int, lowering: Callable[[StepGraphs], Lowered] | None = None) -> Planner:
    settings: dict[str, Any] = {} if lowering is None else {"lowering": lowering}
    x = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    planner = Planner(random_schedule(seed), **settings)
    assert_same_step(step(model, planner, x), step(model, Planner(unplanned, **settings), x), tolerance=0.0)
    return planner


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_any_plan_leaves_the_numbers_alone(seed: int) -> None:
    """Random numbers included: both runs start from the same state, and a mask drawn twice would show."""
    compare(Program(seed), seed)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_planned_numbers_are_those_of_eager(seed: int) -> None:
    model = Program(seed, with_random=False)
    x = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    assert_same_step(step(model, Planner(random_schedule(seed)), x), step(model, None, x), tolerance=2e-5)


@pytest.mark.parametrize("seed", range(4))
def test_plans_of_the_real_lowering(seed: int) -> None:
    """The same with Inductor's own answer to what is materialised."""
    compare(Program(seed), seed, with_lowering)


def test_the_random_plans_make_things_again() -> None:
    """Most of them do: the tests above are no tautology."""
    x, longer = torch.randn(N, N, requires_grad=True), 0
    for seed in range(8):
        planner = Planner(random_schedule(seed))
        step(Program(seed), planner, x)
        longer += any(len(p.schedule.sequence) > len(p.facts.problem.ops) for p in planner.planned)
    assert longer >= 5


@pytest.mark.parametrize("seed", [0, 3])
def test_planned_peaks_are_measured(seed: int) -> None:
    """The replay of the lowered code against the allocator, to the percent, on programs nobody chose."""
    model = Wide(seed, length=10)
    run = run_memcompile(model, (torch.randn(512, N, requires_grad=True),), "80%", on_infeasible="best_effort")
    peak, planned = run.measured.peak_bytes, run.planned.planned_peak_bytes
    unused = sum(p.nbytes for name, p in model.named_parameters() if name not in run.step.gradients)
    assert abs(peak - unused - planned) <= 0.01 * peak, f"planned {planned}, measured {peak - unused}"
