"""Programs at many budgets: kept, monotone, refused with numbers that hold. Planned by the model of Inductor's fusion, which is
quick; ``benchmarks/budgets.py`` does the same with compiled code and the profiler."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import nn

from benchmarks.budget_nets import NETS, random_net
from benchmarks.budgets import BudgetRow, faults, tables
from memcompile.compiling.dryrun import captured, predict_graphs
from memcompile.passes.schedule import front as schedule
from memcompile.passes.schedule.fit import Outcome, fit
from memcompile.passes.schedule.front import front
from memcompile.solvers.calls.choose import UNPLANNED, Point
from memcompile.step.bound import least_bytes
from memcompile.step.lowered import Lowered
from tests.planned_eagerly import COSTS

ONE_GRAPH = {net.name: net for net in NETS if not net.breaks} | {f"random {seed}": random_net(seed) for seed in (0, 1)}


@functools.cache
def lowered(name: str) -> Lowered:
    model, inputs = ONE_GRAPH[name].make()
    torch._dynamo.reset()
    (graphs,) = captured(model, {}, args=inputs, training=ONE_GRAPH[name].training)
    return predict_graphs(graphs)


def planned(name: str, budget_bytes: int, held_bytes: int | None = None) -> Outcome:
    return fit(lowered(name), budget_bytes, lambda: COSTS, 10.0, predict_graphs, held_bytes=held_bytes)


@pytest.mark.parametrize("name", ["mlp", "attention", "checkpointed", "random 0"])
def test_more_memory_is_no_slower_and_refusals_hold(name: str) -> None:
    free = lowered(name).peak.peak_bytes
    outcomes = [planned(name, free * percent // 100) for percent in (1, 50, 62, 84, 100)]
    kept = [outcome for outcome in outcomes if outcome.fitted.fits]
    refused = [outcome for outcome in outcomes if not outcome.fitted.fits]
    seconds = [0.0 if o.chosen is None else o.chosen.solution.extra_seconds for o in kept]
    assert seconds == sorted(seconds, reverse=True)
    assert kept and all(o.budget_bytes is not None and o.final.peak.peak_bytes <= o.budget_bytes for o in kept)
    (floor,) = {outcome.floor_bytes for outcome in refused}
    (bound,) = {outcome.lower_bound_bytes for outcome in refused}
    assert floor is not None and bound is not None
    advised = planned(name, floor)
    assert advised.fitted.fits and advised.final.peak.peak_bytes <= floor
    assert 0 < bound <= min(outcome.final.peak.peak_bytes for outcome in outcomes)
    assert bound == least_bytes(lowered(name).graphs, lowered(name).peak.entry_bytes)


def test_what_is_held_between_the_halves_keeps_its_own_limit() -> None:
    """A step that fits as it is holds less for its backward when other graphs run in between."""
    free = lowered("mlp").peak
    assert planned("mlp", free.peak_bytes).chosen is None
    sparing = planned("mlp", free.peak_bytes, free.held_bytes - 150_000)
    assert sparing.fitted.fits and sparing.chosen is not None
    assert sparing.final.peak.held_bytes <= free.held_bytes - 150_000
    least = [planned("mlp", budget, 0) for budget in (free.peak_bytes, 2 * free.peak_bytes)]
    assert all(outcome.fitted.fits for outcome in least)
    assert {outcome.final.peak.held_bytes for outcome in least} == {least[0].final.peak.held_bytes}, "whatever the budget"
    assert least[0].final.peak.held_bytes < sparing.final.peak.held_bytes


def test_the_least_is_held_that_a_budget_has_a_plan_for() -> None:
    """Near the floor, too, where the plan that holds least of all takes more inside than there is."""
    smallest = planned("mlp", 1)
    assert smallest.floor_bytes is not None
    near = planned("mlp", int(1.05 * smallest.floor_bytes), 0)
    assert near.fitted.fits and near.final.peak.held_bytes < smallest.final.peak.held_bytes


def test_the_front_is_what_is_planned_for() -> None:
    """No point is worse than another in all; what is asked for is kept; the model's numbers are those of the plans."""
    base = lowered("attention")
    points = front(base, lambda: COSTS, 5.0)
    assert points[0][0] == UNPLANNED and len(points) > 3
    for (share, point), (_, other) in itertools.permutations(points, 2):
        assert share.held_bytes is None or point.held_bytes <= share.held_bytes
        assert share.peak_bytes is None or base.peak.entry_bytes + point.backward_bytes <= share.peak_bytes
        better = (point.held_bytes, point.forward_bytes, point.backward_bytes, point.seconds)
        than = (other.held_bytes, other.forward_bytes, other.backward_bytes, other.seconds)
        assert better != than and not all(a <= b for a, b in zip(better, than, strict=True))


def test_the_front_of_equal_steps_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one kind, captured one after the other; not so for what differs in a size or an operator."""
    searched = itertools.count()
    monkeypatch.setattr(schedule, "_front", lambda *_: ((UNPLANNED, Point(next(searched), 0, 0, 0.0)),))
    monkeypatch.setattr(schedule, "_known", {})

    def found(width: int, activation: type[nn.Module]) -> object:
        torch._dynamo.reset()
        model = nn.Sequential(nn.Linear(width, width), activation(), nn.Linear(width, width))
        (graphs,) = captured(model, {}, args=(torch.randn(8, width),), training=True)
        return front(predict_graphs(graphs), lambda: COSTS, 5.0)

    kinds = [(16, nn.Tanh), (16, nn.Tanh), (16, nn.Sigmoid), (24, nn.Tanh), (16, nn.Tanh)]
    fronts = [found(width, activation) for width, activation in kinds]
    assert fronts[0] == fronts[1] == fronts[4]
    assert len({str(each) for each in fronts}) == next(searched) == 3


def row(asked: str, status: str, budget: int, measured: int, seconds: float = 0.0, **more: int) -> BudgetRow:
    return BudgetRow("2026", "2.13", "c", "net", asked, status, budget, measured, measured, seconds, **more)


GOOD = (
    row("100 %", "kept", 100, 100),
    row("80 %", "kept", 80, 79, 2.0),
    row("1 byte", "refused", 1, 60, 5.0, floor_bytes=60, lower_bound_bytes=40),
    row("advised for 1 byte", "kept", 60, 60, 5.0),
)


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (row("90 %", "kept", 90, 91), "measured above the budget"),
        (row("90 %", "kept", 90, 85, 3.0), "slower than at 80 %"),
        (row("advised for 1 byte", "refused", 60, 62, floor_bytes=60), "refused what was advised"),
        (row("2 bytes", "refused", 2, 60, floor_bytes=60, lower_bound_bytes=61), "the bound is not below"),
        (row("2 bytes", "refused", 2, 60, floor_bytes=70, lower_bound_bytes=40), "2 different floors"),
    ],
)
def test_the_benchmark_sees_what_is_wrong(wrong: BudgetRow, fault: str) -> None:
    assert faults(GOOD) == []
    assert any(fault in found for found in faults([*GOOD, wrong]))
    assert fault in tables([*GOOD, wrong])


def test_where_the_step_goes_on_a_refusal_promises_nothing() -> None:
    going = [row("2 bytes", "goes on", 2, 60, floor_bytes=40, lower_bound_bytes=30)]
    going.append(row("advised for 2 bytes", "refused", 40, 60, floor_bytes=60, lower_bound_bytes=40))
    assert faults([*GOOD, *going]) == []
    assert faults([*GOOD, *going, row("advised for advised for 2 bytes", "refused", 60, 60, floor_bytes=60)])


def test_planned_and_measured_must_agree() -> None:
    import dataclasses

    away = dataclasses.replace(GOOD[1], planned_bytes=70)
    assert faults([GOOD[0], away]) == ["80 %: planned more than 1 % from measured"]


def test_every_program_makes_a_scalar_or_infers() -> None:
    for net in (*NETS, random_net(3)):
        model, inputs = net.make()
        assert isinstance(model, nn.Module)
        output = model(*inputs)
        assert output.requires_grad == net.training or not net.training
        assert not net.training or output.dim() == 0
