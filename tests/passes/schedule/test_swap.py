"""Swap end to end: steps that move storages to a disk keep their budget and their numbers."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn

import memcompile
from memcompile.errors import BudgetInfeasibleError, InvalidOptionError, TierFullError, UnknownOptionError
from memcompile.machine.device import device_model
from memcompile.report.data import DecisionRow, Report
from memcompile.runtime.transfers.speed import TierModel
from tests.steps import assert_promise, assert_same_step, compiled, loss_of, own, run_inductor, run_memcompile, train


@pytest.fixture(autouse=True)
def _a_fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans depend on what a tier can do: here, more than recomputation on any machine."""
    gc.collect()
    torch._dynamo.reset()  # other sizes of the same code would make the sizes symbols
    monkeypatch.setattr("memcompile.passes.schedule.tiers.measure_tier", lambda tier: TierModel(tier.name, 1e12, 1e12, 1e-9))
    monkeypatch.setattr("memcompile.passes.schedule.tiers.busy_s_per_byte", lambda _tier: 0.0)
    model = device_model(torch.device("cpu"))
    fixed = dataclasses.replace(model, fresh_memory_s_per_byte=0.0)
    monkeypatch.setattr("memcompile.passes.schedule.tiers.device_model", lambda _device: fixed)


class Mlp(nn.Module):
    """Layers with dropout: masks are drawn once, so moving is the only way to be rid of them."""

    def __init__(self, layers: int = 4, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = nn.functional.dropout(nn.functional.gelu(layer(x)), self.dropout)
        return x.square().mean()


class Convolutions(nn.Module):
    """Images, whose layout Inductor chooses; batch norm, a skip, a view that is saved."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.rest = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.last = nn.Linear(16 * 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv, norm in zip(self.rest, self.norms, strict=True):
            x = x + norm(conv(x)).relu()
        rows = x.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)
        loss: Tensor = self.last(rows).square().mean()
        return loss


def moves(report: Report) -> list[DecisionRow]:
    return [row for graph in report.graphs for row in graph.decisions if row.kind == "move"]


def rows(count: int = 4096, width: int = 64) -> tuple[Tensor, ...]:
    return (torch.randn(count, width, generator=torch.Generator().manual_seed(1)),)


def test_a_step_below_the_floor_of_recomputation(tmp_path: Path) -> None:
    """It is refused without a disk, kept with one: the peak as planned, the gradients those of plain torch.compile."""
    model, inputs = Mlp(), rows()
    plain = run_inductor(model, inputs)
    with pytest.raises(BudgetInfeasibleError) as refused:
        run_memcompile(model, inputs, 1)
    budget = int(0.85 * refused.value.floor_bytes)
    run = run_memcompile(model, inputs, budget, swap={"disk": str(tmp_path)})
    assert_promise(run)
    assert moves(run.planned)
    assert_same_step(run.step, plain.step)
    assert list(tmp_path.iterdir()) == []


def test_convolutions(tmp_path: Path) -> None:
    model, inputs = Convolutions(), (torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)
    plain = run_inductor(model, inputs)
    run = run_memcompile(model, inputs, int(0.75 * plain.measured.peak_bytes), swap={"disk": str(tmp_path)})
    assert_promise(run)
    assert_same_step(run.step, plain.step, tolerance=1e-5)


def test_moves_alone(tmp_path: Path) -> None:
    """Without recomputation storages still move, and no op runs twice."""
    model, inputs = Mlp(), rows()
    plain = run_inductor(model, inputs)
    options = {"swap": {"disk": str(tmp_path)}, "rematerialize": False}
    run = run_memcompile(model, inputs, int(0.6 * plain.measured.peak_bytes), **options)
    assert_promise(run)
    kinds = {row.kind for graph in run.planned.graphs for row in graph.decisions}
    assert "move" in kinds and "recompute" not in kinds
    assert_same_step(run.step, plain.step)


def test_a_tier_that_is_never_needed_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fits is that of plain torch.compile; nothing is measured, nothing is opened."""
    opened: list[object] = []
    monkeypatch.setattr("memcompile.passes.schedule.tiers.Engine", opened.append)
    monkeypatch.setattr("memcompile.passes.schedule.tiers.measure_tier", opened.append)
    run = run_memcompile(Mlp(2), rows(512), "1GiB", swap={"disk": str(tmp_path)})
    assert moves(run.planned) == [] and opened == []


@torch._functorch.config.patch(donated_buffer=False)  # type: ignore[untyped-decorator]
def test_two_backwards_and_none(tmp_path: Path) -> None:
    """A graph that is kept goes back twice; one that is dropped leaves its room to the next."""
    mine, function = compiled(Mlp(), "40%", swap={"disk": f"{tmp_path}:16MiB"})
    inputs = own(rows())
    for _ in range(3):  # more than there is room for, were they kept
        torch.manual_seed(7)
        function(*inputs)
    torch.manual_seed(7)
    loss = loss_of(function(*inputs))
    assert moves(memcompile.report(function))
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in mine.named_parameters() if p.grad is not None}
    loss.backward()
    for name, p in mine.named_parameters():
        assert p.grad is not None and torch.equal(p.grad, once[name] * 2)


def test_a_full_tier_stops_the_step_not_the_next(tmp_path: Path) -> None:
    """Forwards that are all kept fill the tier: the error says so; once they are gone, steps go on."""
    mine, function = compiled(Mlp(), "40%", swap={"disk": f"{tmp_path}:12MiB"})
    inputs = own(rows())
    expected = train(function, mine, inputs)
    assert moves(memcompile.report(function))
    kept = []
    with pytest.raises(TierFullError):
        for _ in range(20):
            kept.append(function(*inputs))
    kept.clear()
    assert_same_step(train(function, mine, inputs), expected, tolerance=0.0)


def test_gradients_accumulate(tmp_path: Path) -> None:
    model, inputs = Mlp(), rows()
    mine, function = compiled(model, "60%", swap={"disk": str(tmp_path)})
    once = train(function, mine, inputs).gradients
    torch.manual_seed(7)
    loss_of(function(*own(inputs))).backward()  # planned again: gradients are alive at entry now
    named = dict(mine.named_parameters())
    for name, gradient in once.items():
        found = named[name].grad
        assert found is not None and torch.allclose(found, 2 * gradient, rtol=1e-5, atol=1e-7)


def test_an_error_between_out_and_in(tmp_path: Path) -> None:
    """A backward that fails in the middle leaves nothing behind, and the next step is right."""

    class Failing(torch.autograd.Function):
        armed = True

        @staticmethod
        def forward(_ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: object, gradient: Tensor) -> Tensor:
            if Failing.armed:
                raise RuntimeError("the disk of somebody else")
            return gradient

    failing: Any = Failing
    mine, function = compiled(Mlp(), "40%", swap={"disk": f"{tmp_path}:16MiB"})
    for _ in range(4):
        with pytest.raises(RuntimeError, match="somebody else"):
            failing.apply(function(*own(rows()))).backward()
    Failing.armed = False
    assert moves(memcompile.report(function))
    assert_same_step(train(function, mine, rows()), train(function, mine, rows()), tolerance=0.0)


def test_the_dry_run_plans_the_same_and_writes_nothing(tmp_path: Path) -> None:
    budget = 7 * 2**19
    options = {"memory_budget": budget, "swap": {"disk": str(tmp_path)}, "inductor": {"cpp.simdlen": 1}}
    planned = memcompile.plan(Mlp(), *rows(), options=options)
    assert moves(planned) and 0.85 * budget <= planned.planned_peak_bytes <= budget


def test_sizes_that_vary_do_not_move(tmp_path: Path) -> None:
    """And the report says so; recomputation does what it can."""
    mine, function = compiled(Mlp(), "70%", swap={"disk": str(tmp_path)})
    batch = rows()[0]
    torch._dynamo.mark_dynamic(batch, 0)
    function(batch).backward()
    report = memcompile.report(function)
    assert moves(report) == []
    assert any("dynamic shapes" in row.why for row in report.decisions)
    assert all(p.grad is not None for p in mine.parameters())


def test_the_report_tells(tmp_path: Path) -> None:
    run = run_memcompile(Mlp(), rows(), "40%", swap={"disk": str(tmp_path)})
    graph = run.planned.graphs[0]
    swap = next(item for item in graph.passes if item.name == "swap")
    assert swap.peak_after_bytes < swap.peak_before_bytes and "hidden" in swap.summary
    assert {move["storage"] for move in graph.plan["moves"]} == {row.storage for row in moves(run.planned)}
    assert "swap_out_wait" in graph.graphs["joint after rematerialize"]
    assert Report.from_json(run.planned.to_json()).to_dict() == run.planned.to_dict()


@pytest.mark.parametrize(
    ("swap", "error"),
    [
        ({"host": "1GiB"}, InvalidOptionError),
        ({"tape": "1GiB"}, UnknownOptionError),
        ({"disk": 7}, InvalidOptionError),
        ("disk", InvalidOptionError),
    ],
)
def test_bad_tiers_are_refused(swap: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_memcompile(Mlp(2), rows(64), "50%", swap=swap)
