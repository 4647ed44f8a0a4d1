"""The budget of a whole run: several graphs, called several times, at several sizes, in training and in evaluation.

Each program is compiled, trained for some steps and measured; gradients are those of eager.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import memcompile
from benchmarks.budget_nets import NETS
from memcompile.errors import BudgetInfeasibleError
from memcompile.runtime.arena import BLOCKS
from memcompile.runtime.ledger import LEDGER
from memcompile.runtime.measure import measure_peak
from tests.steps import QUICK

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


ROWS, WIDTH = 512, 32
CLOSE = 0.01


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class Net(nn.Module):
    """``breaks``: the graph breaks in a loop, so that Dynamo leaves the function; or after it, so that the step is two
    graphs."""

    def __init__(self, blocks: int = 2, breaks: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.breaks = nn.ModuleList(Block() for _ in range(blocks)), breaks

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            if self.breaks == "inside":
                torch._dynamo.graph_break()
        if self.breaks == "after":
            torch._dynamo.graph_break()
        loss = x.pow(2).mean()
        if self.breaks == "at the end":
            torch._dynamo.graph_break()
        return loss


def options(budget: object, **others: Any) -> dict[str, Any]:
    return {"memory_budget": budget, "inductor": QUICK, **others}


def comp(model: Any, budget: object, **others: Any) -> Any:
    dynamic = others.pop("dynamic", None)
    return torch.compile(model, backend="memcompile", dynamic=dynamic, options=options(budget, **others))


def batch(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))


def stepping(model: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        out = loss(x)
        torch.autograd.backward(out)
        return out

    return step


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def measured(model: nn.Module, step: Callable[[], Tensor], x: Tensor) -> int:
    return measure_peak(step, model=model, inputs=x, warmup=0).peak_bytes


def held(model: nn.Module, report_of: Any, step: Callable[[], Tensor], x: Tensor, budget: int | None) -> int:
    """The measured peak, which is what was planned, within what was accepted."""
    peak, report = measured(model, step, x), memcompile.report(report_of)
    assert report.planned_peak_bytes == pytest.approx(peak, rel=CLOSE)
    if budget is not None:
        assert report.fits and report.budget_bytes == budget and peak <= budget
    return peak


def same_gradients(model: nn.Module, loss: Callable[[nn.Module], Callable[[Tensor], Tensor]], x: Tensor) -> None:
    other = copy.deepcopy(model)
    for module in other.modules():
        module._compiled_call_impl = None
    stepping(other, loss(other), x)()
    for ours, theirs in zip(gradients(model), gradients(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def regional(model: Net, budget: object) -> Callable[[Tensor], Tensor]:
    for block in model.blocks:
        block.compile(backend="memcompile", options=options(budget))
    return model


def whole(model: nn.Module, budget: object) -> Callable[[Tensor], Tensor]:
    compiled: Callable[[Tensor], Tensor] = comp(model, budget)
    return compiled


@functools.cache
def unplanned(make: Callable[[Net, object], Callable[[Tensor], Tensor]], breaks: str = "", blocks: int = 2) -> int:
    model, x = Net(blocks, breaks), batch()
    step = stepping(model, make(model, None), x)
    step()
    peak = measured(model, step, x)
    torch._dynamo.reset()
    memcompile.release()
    return peak


@pytest.mark.parametrize(
    ("make", "breaks"), [(regional, ""), (whole, "inside"), (whole, "after")], ids=["regional", "breaks inside", "breaks after"]
)
def test_several_graphs_make_one_step(make: Callable[[Net, object], Callable[[Tensor], Tensor]], breaks: str) -> None:
    """A budget in bytes, from the first step on; planned together once the step is known; a larger one is no slower."""
    free = unplanned(make, breaks, 3)
    seconds = []
    for share in (0.65, 0.8, 1.1) if make is regional else (0.65, 1.1):
        model, x, budget = Net(3, breaks), batch(), int(share * free)
        loss = make(model, budget)
        step = stepping(model, loss, x)
        for _ in range(3):
            step()
        held(model, loss, step, x, budget)
        same_gradients(model, lambda other: other, x)
        seconds.append(sum(run.entry.extra_seconds for run in calls()))
        torch._dynamo.reset()
        memcompile.release()
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] == 0


def test_what_is_advised_is_accepted() -> None:
    """The first graph holds the least that lets it keep the budget, so that what a refusal names is little. While the step
    goes on after the graph that is refused, that is said, and only part of what is needed."""
    (net,) = (net for net in NETS if net.name == "broken")
    budget, refusals = 1, list[tuple[int, bool]]()  # an error itself holds the step that failed, by its traceback
    while True:
        model, (x,) = net.make()
        loss = whole(model, budget)
        step = stepping(model, loss, x)
        try:
            step()
            break
        except BudgetInfeasibleError as error:
            assert error.floor_bytes > budget
            budget = error.floor_bytes
            refusals.append((budget, error.goes_on))
            torch._dynamo.reset()
    assert [goes_on for _, goes_on in refusals] == [True, False]
    assert budget < 1.05 * refusals[0][0]
    for _ in range(3):
        step()
    assert measured(model, step, x) <= budget


def calls() -> list[Any]:
    """Of the step that was planned last."""
    return list(LEDGER.tapes.courses[0].tape.calls)


@pytest.mark.parametrize("make", [regional, whole], ids=["regional", "breaks inside"])
def test_a_percentage_is_one_of_the_step(make: Callable[[Net, object], Callable[[Tensor], Tensor]]) -> None:
    model, x = Net(breaks="" if make is regional else "inside"), batch()
    loss = make(model, "70%")
    step = stepping(model, loss, x)
    for _ in range(3):
        step()
    report = memcompile.report(loss)
    assert report.budget_bytes is not None
    free = unplanned_bytes(report.budget_bytes)
    peak = held(model, loss, step, x, report.budget_bytes)
    torch._dynamo.reset()
    memcompile.release()
    assert free == pytest.approx(unplanned(make, model.breaks), rel=CLOSE)
    assert peak <= 0.7 * free * (1 + CLOSE)


def unplanned_bytes(budget: int) -> float:
    return budget / 0.7


def test_one_graph_that_is_called_three_times() -> None:
    """As a discriminator is, before its backward."""

    def three(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: function(x[0]) + function(x[1]) - function(x[2])

    model, x = Net(2), torch.stack([batch(512), batch(512) + 1, batch(512) * 2])
    free = comp(model, None)
    stepping(model, three(free), x)()
    budget = int(0.9 * measured(model, stepping(model, three(free), x), x))
    torch._dynamo.reset()
    memcompile.release()
    compiled = comp(model, budget, on_infeasible="best_effort")
    step = stepping(model, three(compiled), x)
    for _ in range(3):
        step()
    held(model, compiled, step, x, budget)
    same_gradients(model, three, x)


@pytest.mark.parametrize("first", ["training", "evaluation"])
def test_evaluation_fits_where_training_does(first: str) -> None:
    """A percentage is one of the step of training, whichever comes first."""
    model, x = Net(), batch()
    compiled = comp(model, "60%")
    step = stepping(model, compiled, x)

    def evaluate() -> Tensor:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            out: Tensor = compiled(x)
        return out

    for run in (step, evaluate) if first == "training" else (evaluate, step):
        for _ in range(2):
            run()
    report = memcompile.report(compiled)
    budgets = {graph.budget_bytes for graph in report.graphs}
    assert report.fits and len(report.graphs) == 2 and budgets == {report.budget_bytes}
    for run in (step, evaluate):
        assert measured(model, run, x) <= (report.budget_bytes or 0)


def test_sizes_that_grow_are_counted_before_they_run() -> None:
    """Peaks follow from the sizes of a call, to the byte; what does not fit is planned again, or refused."""
    model, sizes = Net(), (256, 512, 300, 1024)
    compiled = comp(model, None, dynamic=True)
    peaks = []
    for rows in sizes:
        step = stepping(model, compiled, batch(rows))
        step()
        peaks.append(measured(model, step, batch(rows)))
    assert memcompile.report(compiled).planned_peak_bytes == max(peaks)
    torch._dynamo.reset()
    memcompile.release()
    budget = int(0.6 * max(peaks))
    compiled = comp(model, budget, dynamic=True)
    for rows in (*sizes, *reversed(sizes), 700, 900, 1001):
        x = batch(rows)
        step = stepping(model, compiled, x)
        step()
        assert measured(model, step, x) <= budget
        same_gradients(model, lambda other: other, x)
    assert memcompile.report(compiled).fits
    assert len(LEDGER.entries) == 2  # without a plan, and with one for all that is too large for that
    with pytest.raises(BudgetInfeasibleError):
        compiled(batch(8 * 1024))
    assert not LEDGER.live and memcompile.report(compiled).fits


def test_a_short_last_batch_leaves_nothing_behind() -> None:
    model = Net()
    budget = int(0.7 * unplanned(whole))
    compiled = comp(model, budget)
    for rows in (ROWS, ROWS, 200, ROWS, 200, 150):
        x = batch(rows)
        step = stepping(model, compiled, x)
        step()
        assert measured(model, step, x) <= budget
    assert BLOCKS.reserved_bytes(torch.device("cpu")) <= budget


def test_nothing_comes_after_the_break() -> None:
    """What is safe while nobody knows is not what stays: a graph that turns out to be alone has the budget to itself."""
    model, x = Net(breaks="at the end"), batch()
    budget = int(0.8 * unplanned(whole))
    compiled = comp(model, budget)
    step = stepping(model, compiled, x)
    for _ in range(3):
        step()
    (call,) = calls()
    assert call.entry.share is None
    assert held(model, compiled, step, x, budget) > 0.9 * budget


def test_two_models_in_turns() -> None:
    """Steps that begin alike and differ later have a plan each; a step that nobody saw is planned safely."""
    models = [Net(2), Net(2)]
    x = batch()
    free = measured(models[0], stepping(models[0], comp(models[0], None), x), x)
    torch._dynamo.reset()
    memcompile.release()
    budget = 3 * free
    first, second = (comp(model, budget) for model in models)

    def both(x: Tensor) -> Tensor:
        out: Tensor = first(x) * second(x)
        return out

    alone, together = stepping(models[0], first, x), stepping(models[0], both, x)
    for step in (alone, together, together, alone, together, alone, together):
        models[1].zero_grad(set_to_none=True)
        step()
        assert measured(nn.ModuleList(models), step, x) <= budget
    assert memcompile.report(first).fits and not LEDGER.live


def test_a_step_that_fails_leaves_the_books_right() -> None:
    model, x = Net(breaks="after"), batch()
    budget = int(0.8 * unplanned(whole, "after"))
    compiled = comp(model, budget)
    step = stepping(model, compiled, x)

    class Stop(Exception):
        pass

    def fails(_gradient: Tensor) -> None:
        raise Stop

    for _ in range(2):
        step()
        hook = next(model.parameters()).register_hook(fails)  # type: ignore[no-untyped-call]
        with pytest.raises(Stop):
            step()
        hook.remove()
    step()
    assert not LEDGER.live
    held(model, compiled, step, x, budget)
