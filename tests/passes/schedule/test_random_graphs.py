"""Random programs under random plans: whatever a schedule makes again, the numbers stay.

A program is a list of operations drawn from a seed. It is captured and partitioned as the product does it, written down under a
random valid schedule, and run by an interpreter: outputs and gradients equal those of the unplanned graph bit for bit, and those
of eager autograd within rounding.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.index import Index
from memcompile.solvers.schedule.problem import Schedule
from memcompile.solvers.schedule.simulate import validate
from memcompile.step.facts import Facts
from tests.planned_eagerly import Planner, unplanned, with_lowering
from tests.steps import Step, assert_same_step, run_memcompile, train

N = 8

UNARY = (
    torch.sin,
    torch.tanh,
    torch.sigmoid,
    lambda t: nn.functional.gelu(t) + t.relu(),
    lambda t: (t * 0.1).exp(),
    lambda t: t.softmax(1),
    lambda t: nn.functional.layer_norm(t, (N,)),
    lambda t: t - t.mean(0, keepdim=True),
    lambda t: t.amax(1, keepdim=True) * t,
    lambda t: t.cumsum(0) / N,
    lambda t: t.t().contiguous(),
    lambda t: t.reshape(2, N // 2, N).permute(2, 0, 1).reshape(N, N),
    lambda t: torch.cat([t[:, N // 2 :], t[:, : N // 2]], 1),
    lambda t: torch.where(t > 0.2, t, t * 0.5),
    lambda t: t.clone().mul_(0.5).add_(1),
    lambda t: t.unbind(0)[1].expand(N, N) + t,
    lambda t: torch.stack(t.chunk(2, 1), 0).flatten(1).view(N, N),
    lambda t: nn.functional.dropout(t, 0.3),
    lambda t: nn.functional.dropout(t.cos(), 0.5) * t,
    lambda t: t + torch.rand_like(t),
)
BINARY = (torch.add, torch.mul, torch.sub, torch.matmul, lambda a, b: (a @ b).tanh(), lambda a, b: torch.maximum(a, b))
RANDOM = (17, 18, 19)
"""Places in ``UNARY`` of the operations that draw random numbers."""


class Program(nn.Module):
    """Operations drawn from ``seed``; the newest values are used most. Returns the loss and a hidden value."""

    def __init__(self, seed: int, length: int = 14, with_random: bool = True) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.weights = nn.ParameterList(torch.randn(N, N) / N**0.5 for _ in range(3))
        self.offsets = nn.ParameterList(torch.randn(N) for _ in range(2))
        unary = [i for i in range(len(UNARY)) if with_random or i not in RANDOM]
        self.steps: list[tuple[str, int, int, int]] = []
        for made in range(1, length + 1):
            recent = max(0, made - 4)
            source, other = draw.randrange(recent, made), draw.randrange(made)
            kind = draw.choice(("unary", "unary", "binary", "weight", "offset"))
            choice = {"unary": draw.choice(unary), "binary": draw.randrange(len(BINARY)), "weight": draw.randrange(3)}
            self.steps.append((kind, choice.get(kind, draw.randrange(2)), source, other))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = [x]
        for kind, choice, source, other in self.steps:
            value = values[source]
            if kind == "unary":
                values.append(UNARY[choice](value))
            elif kind == "binary":
                values.append(BINARY[choice](value, values[other]))
            elif kind == "weight":
                values.append(value @ self.weights[choice])
            else:
                values.append(value * self.offsets[choice] + value)
        return values[-1].pow(2).mean() + values[-2].sin().mean(), values[len(values) // 2] * 1.5


def random_schedule(seed: int) -> Callable[[Facts], Schedule]:
    """A valid schedule that keeps a random part of what is alive at random instants; checked on its own."""

    def choose(facts: Facts) -> Schedule:
        draw = random.Random(seed)
        problem, index = facts.problem, Index.of(facts.problem)
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


def compare(model: nn.Module, seed: int, lowering=None) -> Planner:
    settings = {} if lowering is None else {"lowering": lowering}
    x = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    planner = Planner(random_schedule(seed), **settings)
    assert_same_step(step(model, planner, x), step(model, Planner(unplanned, **settings), x), tolerance=0.0)
    return planner


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_any_plan_leaves_the_numbers_alone(seed):
    """Random numbers included: both runs start from the same state, and a mask drawn twice would show."""
    compare(Program(seed), seed)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_planned_numbers_are_those_of_eager(seed):
    model = Program(seed, with_random=False)
    x = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    assert_same_step(step(model, Planner(random_schedule(seed)), x), step(model, None, x), tolerance=2e-5)


@pytest.mark.parametrize("seed", range(6))
def test_plans_of_the_real_lowering(seed):
    """The same with Inductor's own answer to what is materialised."""
    compare(Program(seed), seed, with_lowering)


def test_the_random_plans_make_things_again():
    """Most of them do: the tests above are no tautology."""
    longer = [
        len(p.schedule.sequence) > len(p.facts.problem.ops) for seed in range(12) for p in compare(Program(seed), seed).planned
    ]
    assert sum(longer) >= 8


class Wide(Program):
    """The same programs on many rows: memory is in the activations."""

    def forward(self, x):
        return super().forward(x.view(-1, N, N).mean(0) + x[:N])[0] + (x * 2).sin().tanh().exp().sum() / x.shape[0]


@pytest.mark.parametrize("seed", [0, 3])
def test_planned_peaks_are_measured(seed):
    """The replay of the lowered code against the allocator, to the percent, on programs nobody chose."""
    model = Wide(seed, length=10)
    run = run_memcompile(model, (torch.randn(512, N, requires_grad=True),), 1, on_infeasible="best_effort")
    peak, planned = run.measured.peak_bytes, run.planned.planned_peak_bytes
    unused = sum(p.nbytes for name, p in model.named_parameters() if name not in run.step.gradients)
    assert abs(peak - unused - planned) <= 0.01 * peak, f"planned {planned}, measured {peak - unused}"
