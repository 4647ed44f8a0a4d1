"""Dry runs: nothing allocated, nothing run, and the numbers of a real compile."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import memcompile
from memcompile.commands import cli
from memcompile.compiling import dryrun
from memcompile.compiling.dryrun import PREDICTED, predict_graphs
from memcompile.errors import BudgetInfeasibleError, DryRunError, NoReportError, UnknownOptionError
from memcompile.passes.schedule import fit
from memcompile.report.data import Report
from memcompile.step.facts import UNPLANNED, StepGraphs
from memcompile.step.lowered import Lowered

MLP_SCRIPT = """
import torch

def make():
    model = torch.nn.Sequential(*[layer for _ in range(4) for layer in (torch.nn.Linear(32, 32), torch.nn.GELU())])
    return model, (torch.randn(512, 32),)
"""


class Mlp(nn.Module):
    """Layers whose activations dwarf their weights."""

    def __init__(self, depth: int = 5, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.dropout(F.gelu(layer(x)), 0.1)
        return x.square().mean()


class LlamaBlock(nn.Module):
    """One block in the shapes of a Llama of 70 B parameters: grouped-query attention and a gated MLP."""

    def __init__(self, width: int = 8192, hidden: int = 28672, heads: int = 64, groups: int = 8) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(width, width // heads * groups, bias=False) for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            f(y).unflatten(-1, (n, -1)).transpose(1, 2)
            for f, n in ((self.query, self.heads), (self.key, self.groups), (self.value, self.groups))
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(a.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        total: Tensor = (x + self.down(F.silu(self.gate(y)) * self.up(y))).square().mean()
        return total


class Breaks(nn.Module):
    """Two graphs in one step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Mlp(2), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([layer(x) for layer in self.first.layers]).tanh()
        torch._dynamo.graph_break()
        total: Tensor = self.second(y).square().mean()
        return total


def batch() -> Tensor:
    return torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))


def compiled_report(model: nn.Module, options: dict[str, Any]) -> Report:
    """The report of the same step, compiled and run."""
    torch._dynamo.reset()
    torch.compile(model, backend="memcompile", options=options)(batch()).backward()
    report = memcompile.report(model)
    torch._dynamo.reset()
    return report


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"memory_budget": "60%"}], ids=str)
def test_a_dry_run_plans_what_compiling_plans(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = Mlp()
    planned = memcompile.plan(model, batch(), options=options)
    assert all(parameter.grad is None for parameter in model.parameters())
    real = compiled_report(model, options)
    for name in ("unplanned_peak_bytes", "budget_bytes"):
        assert getattr(planned, name) == getattr(real, name), name
    assert planned.planned_peak_bytes == pytest.approx(real.planned_peak_bytes, rel=1e-3), "the arena aligns its buffers"
    mine, theirs = planned.graphs[0], real.graphs[0]
    assert (mine.kind, mine.device, mine.entry_bytes, mine.saved_bytes) == (
        "train",
        "cpu",
        theirs.entry_bytes,
        theirs.saved_bytes,
    )
    assert mine.plan["lowered"]
    assert mine.plan["nodes"] > mine.plan["ops"] > 0
    assert mine.plan["plan_seconds"] < 5
    assert mine.kernels == ()


def test_a_predicted_plan_keeps_the_budget_and_says_that_it_is_one() -> None:
    report = memcompile.plan(Mlp(), batch(), options={"memory_budget": "60%", "lower": False})
    graph = report.graphs[0]
    assert report.fits
    assert report.budget_bytes == int(0.6 * report.unplanned_peak_bytes)
    assert any(row.kind == "recompute" for row in graph.decisions)
    assert PREDICTED in graph.notes
    assert not graph.plan["lowered"]
    assert report.options["lower"] is False
    assert report.model == "Mlp"


def test_a_plan_that_misses_again_and_again_is_made_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code takes more than every plan, and comparing the two explains nothing."""

    def more(graphs: StepGraphs, budget_bytes: int | None = None) -> Lowered:
        lowered = predict_graphs(graphs, budget_bytes)
        peak = dataclasses.replace(lowered.peak, peak_bytes=lowered.peak.peak_bytes * 11 // 10)
        return lowered if graphs.planned is UNPLANNED else dataclasses.replace(lowered, peak=peak)

    monkeypatch.setattr(dryrun, "predict_graphs", more)
    monkeypatch.setattr(fit, "calibrated", lambda facts, *_: dataclasses.replace(facts))
    assert memcompile.plan(Mlp(), batch(), options={"memory_budget": "80%", "lower": False}).fits


def test_a_model_larger_than_the_machine() -> None:
    with torch.device("meta"):
        model, x = LlamaBlock().to(torch.bfloat16), torch.empty(64, 4096, 8192, dtype=torch.bfloat16)
    start = time.perf_counter()
    report = memcompile.plan(model, x, options={"memory_budget": "97%", "lower": False})
    assert time.perf_counter() - start < 120
    parameters = sum(p.numel() for p in model.parameters())
    assert report.unplanned_peak_bytes > 64 * 4096 * 28672 * 2 * 3 + 2 * parameters
    assert report.fits
    assert report.budget_bytes == int(0.97 * report.unplanned_peak_bytes)
    assert report.graphs[0].device == "cpu"
    assert all(parameter.device.type == "meta" for parameter in model.parameters()), "the model is as it was"


def test_chains_of_virtual_nodes_may_be_longer_than_python_recurses() -> None:
    class Deep(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            total = super().forward(x)
            for _ in range(500):
                total = total * 1.01 + 0.01
            return total

    report = memcompile.plan(Deep(), batch(), options={"memory_budget": "60%", "lower": False})
    assert report.fits
    assert any(row.kind == "recompute" for row in report.graphs[0].decisions)


def test_inference() -> None:
    model = Mlp().eval()
    with torch.no_grad():
        report = memcompile.plan(model, batch(), options={"lower": False})
    assert [graph.kind for graph in report.graphs] == ["inference"]
    assert report.graphs[0].saved_bytes == 0


def test_graph_breaks_share_one_ledger() -> None:
    model, options = Breaks(), {"lower": False}
    report = memcompile.plan(model, batch(), options=options)
    assert [graph.kind for graph in report.graphs] == ["train", "train"]
    assert [graph.graph_id for graph in report.graphs] == ["0", "1"]
    first, second = report.graphs
    assert second.entry_bytes > first.entry_bytes, "what the first graph holds is alive beside the second"
    assert report.planned_peak_bytes >= max(graph.planned_peak_bytes for graph in report.graphs)


def test_below_the_floor() -> None:
    with pytest.raises(BudgetInfeasibleError) as caught:
        memcompile.plan(Mlp(), batch(), options={"memory_budget": 1000, "lower": False})
    assert caught.value.floor_bytes > 1000
    best = memcompile.plan(Mlp(), batch(), options={"memory_budget": 1000, "lower": False, "on_infeasible": "best_effort"})
    assert not best.fits
    assert best.planned_peak_bytes == caught.value.floor_bytes


def test_tied_weights_count_once_and_existing_gradients_count() -> None:
    with torch.device("meta"):
        meta = Mlp(depth=2)
    meta.layers[1].weight = meta.layers[0].weight
    model = Mlp(depth=2)
    free = memcompile.plan(model, batch(), options={"lower": False})
    model.layers[1].weight = model.layers[0].weight
    tied = memcompile.plan(model, batch(), options={"lower": False})
    assert free.graphs[0].entry_bytes - tied.graphs[0].entry_bytes == 16 * 16 * 4
    assert memcompile.plan(meta, batch(), options={"lower": False}).graphs[0].entry_bytes == tied.graphs[0].entry_bytes
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    grown = memcompile.plan(model, batch(), options={"lower": False})
    assert grown.graphs[0].entry_bytes - tied.graphs[0].entry_bytes == (16 * 16 + 2 * 16) * 4


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_keeps_alive_what_it_was_split_from(training: bool) -> None:
    model = Mlp()
    batches = torch.randn(4, *batch().shape)
    with torch.set_grad_enabled(training):
        own, split = (memcompile.plan(model, x) for x in (batches[0].clone(), batches[0]))
    assert split.planned_peak_bytes - own.planned_peak_bytes == 3 * batch().nbytes
    assert split.steps[0].planned_peak_bytes - own.steps[0].planned_peak_bytes == 3 * batch().nbytes


def test_a_value_that_the_step_reads_is_a_clear_error() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()
            torch._dynamo.graph_break()
            return y * 2 if y.sum().item() > 0 else y

    with pytest.raises(DryRunError, match="reads a value from a tensor"):
        memcompile.plan(Reads(), torch.ones(3, requires_grad=True), options={"lower": False})


def test_a_wrong_option_is_an_error_before_anything_is_traced() -> None:
    with pytest.raises(UnknownOptionError, match="memory_budget"):
        memcompile.plan(lambda: pytest.fail("traced"), options={"memory_budgt": 1})


def test_functions_and_the_random_state() -> None:
    state = torch.get_rng_state()
    report = memcompile.plan(
        lambda x: F.dropout(x.exp(), 0.5).sum(), torch.ones(8, requires_grad=True), options={"lower": False}
    )
    assert [graph.kind for graph in report.graphs] == ["train"]
    assert torch.equal(state, torch.get_rng_state())


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(MLP_SCRIPT)
    assert cli.main(["plan", f"{script}:make", "--budget", "90%", "--option", "lower=false", "--json"]) == 0
    report = Report.from_json(capsys.readouterr().out)
    assert report.planned_peak_bytes <= (report.budget_bytes or 0)
    assert cli.main(["plan", f"{script}:make", "--budget", "1", "--option", "lower=false"]) == 1
    assert "does not fit in 1 B" in capsys.readouterr().err


def test_a_step_that_is_not_captured_has_no_report() -> None:
    """Dynamo gives up a function that breaks the graph in a loop: nothing was planned, so nothing fits."""

    def loop(x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = x.sin()
            torch._dynamo.graph_break()
        return x

    with pytest.raises(NoReportError, match="TORCH_LOGS=graph_breaks"):
        memcompile.plan(loop, torch.ones(4))
