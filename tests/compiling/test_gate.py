"""The last gate: whatever was planned, tiled or given up, what is lowered is compared with the budget."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import memcompile
from memcompile.codegen.inductor.trial import lower_graphs
from memcompile.compiling.dryrun import captured
from memcompile.errors import BudgetInfeasibleError
from memcompile.options import Budget
from memcompile.passes.arena.allocate import plan_arena
from memcompile.passes.arena.placed import placed_peak
from memcompile.passes.schedule.fit import Outcome
from memcompile.report.data import Report
from memcompile.runtime.ledger import Outside
from memcompile.runtime.room import Rooms
from memcompile.solvers.calls.choose import LEAST, Share
from memcompile.step.bound import least_bytes
from memcompile.step.trace import step_peak
from tests.passes.arena.test_plan_arena import ALL, BACKWARD
from tests.step.test_trace import FORWARD


class Mlp(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh() * x.sigmoid()
        return x.square().mean()


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x).mean((2, 3))
        return y


ROWS = (torch.zeros(256, 16),)
IMAGES = (torch.zeros(1, 3, 32, 32),)


def plan(model: nn.Module, inputs: tuple[Tensor, ...], **options: object) -> Report:
    torch._dynamo.reset()
    return memcompile.plan(model, *inputs, options=options)


WAYS: dict[str, tuple[type[nn.Module], tuple[Tensor, ...], dict[str, Any], bool]] = {
    "recomputation off": (Mlp, ROWS, {"rematerialize": False}, True),
    "recomputation off, inference": (Mlp, ROWS, {"rematerialize": False}, False),
    "elements of another size, training": (Mlp, ROWS, {"bytes_per_element": 1, "rematerialize": False}, True),
    "elements of another size, no images": (Mlp, ROWS, {"bytes_per_element": 1, "rematerialize": False}, False),
    "patches off": (Images, IMAGES, {"patch": False, "rematerialize": False}, False),
    "tiles": (Images, IMAGES, {}, False),
    "everything": (Mlp, ROWS, {}, True),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_budget_is_kept_refused_or_said_not_to_be_kept(way: str) -> None:
    """And what the refusal advises is accepted."""
    make, inputs, options, training = WAYS[way]
    with torch.set_grad_enabled(training):
        with pytest.raises(BudgetInfeasibleError) as refused:
            plan(make(), inputs, memory_budget=2000, **options)
        floor = refused.value.floor_bytes
        assert refused.value.lower_bound_bytes <= floor
        best = plan(make(), inputs, memory_budget=2000, on_infeasible="best_effort", **options)
        assert not best.fits and best.budget_bytes == 2000
        assert any("not kept" in note for note in best.graphs[0].notes)
        kept = plan(make(), inputs, memory_budget=floor, **options)
        assert kept.fits and kept.planned_peak_bytes <= floor == kept.budget_bytes


def test_a_crash_that_is_swallowed_does_not_lose_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("planner broke")

    monkeypatch.setattr("memcompile.passes.schedule.schedule.fit", crash)
    free = plan(Mlp(), ROWS).planned_peak_bytes
    with pytest.raises(BudgetInfeasibleError) as refused:
        plan(Mlp(), ROWS, memory_budget="50%", fallback="inductor")
    assert refused.value.budget_bytes == free // 2
    assert plan(Mlp(), ROWS, memory_budget=refused.value.floor_bytes, fallback="inductor").fits


def test_what_is_compiled_counts_and_not_what_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that says it fits, and does not."""
    from memcompile.passes.schedule import schedule

    def lies(base: object, _budget: object, **_options: object) -> object:
        return Outcome(base, 2**30)  # type: ignore[arg-type]

    monkeypatch.setattr(schedule, "fit", lies)
    torch._dynamo.reset()
    budget = plan(Mlp(), ROWS).planned_peak_bytes // 2
    options: dict[str, Any] = {"memory_budget": budget, "inductor": {"cpp.simdlen": 1}}
    compiled = torch.compile(Mlp(), backend="memcompile", options=options)
    with pytest.raises(BudgetInfeasibleError) as refused:
        compiled(*ROWS)
    assert refused.value.floor_bytes > budget


@given(first=st.integers(1, 9), second=st.integers(1, 9))
def test_the_peak_with_an_arena_is_counted_anew(first: int, second: int) -> None:
    """Against the planner's own numbers, which the gate does not read."""
    step = step_peak(FORWARD, BACKWARD)
    lives = tuple(
        dataclasses.replace(life, size_bytes=life.size_bytes * (first if i % 2 else second))
        for i, life in enumerate(step.lives)
    )
    step = dataclasses.replace(step, lives=lives)
    found = plan_arena(step, ALL, None)
    counted = placed_peak(step, found.offsets, found.height, found.relays)
    assert (counted.peak_bytes, counted.forward_peak_bytes) == (found.peak_bytes, found.forward_peak_bytes)
    assert (counted.backward_peak_bytes, counted.held_bytes) == (found.backward_peak_bytes, found.held_bytes)


@pytest.mark.parametrize("make", [Mlp, Images])
@pytest.mark.parametrize("training", [True, False])
def test_the_bound_is_below_what_plain_code_and_the_smallest_plan_take(make: type[nn.Module], training: bool) -> None:
    inputs = ROWS if make is Mlp else IMAGES
    with torch.set_grad_enabled(training):
        (graphs,) = captured(make(), {}, args=inputs, training=training)
        lowered = lower_graphs(graphs)
        bound = least_bytes(graphs, lowered.peak.entry_bytes)
        best = plan(make(), inputs, memory_budget=1, on_infeasible="best_effort", patch=False)
    assert lowered.peak.entry_bytes < bound <= min(lowered.tight_peak.peak_bytes, best.planned_peak_bytes)


def test_a_room_is_a_share_of_the_graph_and_what_is_beside_it() -> None:
    outside, cpu = Outside(certain_bytes=10, held_bytes=30), torch.device("cpu")

    def rooms(budget: object, *known: Any) -> Rooms:
        return Rooms(Budget.parse(budget), outside, cpu, *known)

    room = rooms("50%").resolve(lambda: (160, 20))
    assert room is not None
    assert (room.total_bytes, room.graph_bytes) == (100, 60)
    assert rooms(None).resolve(lambda: (160, 20)) is None
    asked: list[int] = []

    def peak() -> tuple[int, int]:
        count = len(asked)
        asked.append(1)
        return count, 0

    room = rooms(25).resolve(peak)
    assert room is not None and not asked, "nobody has to know the peak for a budget in bytes"
    assert room.graph_bytes == 1
    assert (rooms("50%", None, 130).resolve(lambda: (160, 20)) or room).total_bytes == 130, (
        "what the model's largest step came to"
    )
    assert (rooms("50%", None, 90).resolve(lambda: (160, 20)) or room).total_bytes == 100
    assert (rooms("50%", LEAST).resolve(lambda: (160, 20)) or room).total_bytes == 200, "nobody knows the step yet"
    assert (rooms(500, Share(120, 30)).resolve(lambda: (160, 20)) or room).graph_bytes == 120
