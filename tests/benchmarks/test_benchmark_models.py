"""The benchmark's cases, its arithmetic and its CSV, without compiling the large models."""

from __future__ import annotations

import dataclasses
import math
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmarks are no installed package

from benchmarks import models, nets, peers, rematerialize
from benchmarks.core.rows import Kept
from benchmarks.core.turns import Timing, interleave
from benchmarks.core.ways import EAGER, PLAIN
from benchmarks.core.workers import Remote, WayFailedError, prepare_process
from benchmarks.rematerialize_table import Row, best_peer

pytestmark = pytest.mark.usefixtures("cold_workers")


def row(way: str, **fields: Any) -> Row:
    return Row("2026-01-01", "cpu", 2, "2.13.0", "", "net", way, **fields)


def small_lstm(dropout: bool = True) -> models.Case:
    """Twelve steps of a narrow LSTM, four to a chunk."""

    def build(scale: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        tokens = models.windows(4 * scale, 13)
        model = nets.UnrolledLSTM(16, chunk=4)
        model.drop.p = 0.3 if dropout else 0.0
        return model, {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}

    return dataclasses.replace(models.CASES["lstm"], name="small", build=build)


@pytest.mark.parametrize("name", ["vit", "unet", "llama"])
def test_a_case_is_the_same_at_every_call(name: str) -> None:
    pytest.importorskip("transformers")
    first, second = (models.CASES[name].make() for _ in range(2))
    for ours, theirs in zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])
    assert first[0].training


def test_batch_scale_multiplies_the_batch() -> None:
    pytest.importorskip("transformers")
    _, batch = models.CASES["vit"].make(batch_scale=2)
    assert batch["pixel_values"].shape == (16, 3, 224, 224)
    assert batch["labels"].shape == (16,)


def test_the_text_is_text() -> None:
    assert "statement" in bytes(models.text().tolist()).decode()
    assert models.text().max() < models.BYTES
    assert (models.text() == models.MASK_BYTE).sum() == 0


def test_resnet50_is_the_published_one() -> None:
    """25,557,032 parameters, as in He et al. and every model zoo."""
    assert sum(p.numel() for p in nets.ResNet50().parameters()) == 25_557_032


def test_unrolled_lstm_is_torchs_lstm() -> None:
    torch.manual_seed(0)
    net = nets.UnrolledLSTM(16)
    reference: Any = torch.nn.LSTM(16, 16, batch_first=True)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(net.input_gates.weight)
        reference.bias_ih_l0.copy_(net.input_gates.bias)
        reference.weight_hh_l0.copy_(net.state_gates.weight)
        reference.bias_hh_l0.zero_()
    x = torch.randn(3, 7, 16)
    ours, h, c = net._steps(x, torch.zeros(3, 16), torch.zeros(3, 16))
    theirs, (last_h, last_c) = reference(x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close((h, c), (last_h[0], last_c[0]))


@pytest.mark.parametrize("net", [nets.UNet(4, 2), nets.ResNet50(4, 10)])
def test_checkpointing_changes_no_gradient(net: Any) -> None:
    pixels = models.images(2, 64)
    labels = torch.zeros(2, 64, 64, dtype=torch.long) if isinstance(net, nets.UNet) else torch.arange(2)
    found = []
    for net.checkpoint in (False, True):
        torch.manual_seed(0)
        net.zero_grad()
        net(pixels, labels).backward()
        found.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(found[0], found[1])


class Tower(torch.nn.Module):
    """Three residual blocks, (B, 64) -> loss: wide inside, so that a checkpointed one holds less."""

    checkpoint = False

    def __init__(self) -> None:
        super().__init__()
        linear = torch.nn.Linear
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(linear(64, 512), torch.nn.Tanh(), linear(512, 64), torch.nn.Tanh()) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpoint else block(x))
        return x.square().mean()


@pytest.mark.slow
# put back what the benchmark sets
@torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False)  # type: ignore[untyped-decorator]
def test_ways_compile_apart_and_take_turns() -> None:
    """Equal models must not share compiled code: with the checkpointed and the budgeted way, other peaks come out."""
    prepare_process()
    build = lambda scale: (Tower(), {"x": torch.randn(512 * scale, 64)})  # noqa: E731
    case = dataclasses.replace(models.CASES["lstm"], name="tower", build=build)
    ways = (PLAIN, peers.CHECKPOINT, peers.ACTIVATION_BUDGETS[-1])
    runnings: list[peers.Running[Any]] = [peers.Running(case, way) for way in ways]
    for running in runnings:
        assert running.first_call() > 0
    plain, checkpointed, budgeted = (running.peak().transient_bytes for running in runnings)
    assert runnings[0].joint_nodes > 30
    assert checkpointed < 0.7 * plain
    assert budgeted not in (plain, checkpointed)
    assert all(peers.gradient_gap(runnings[0].results(), other.results()) < 1e-4 for other in runnings[1:])
    timings = interleave({each.way.name: each for each in runnings}, PLAIN.name, rounds=3)
    assert timings["compile"].ratio == timings["compile"].ratio_q3 == 1.0
    assert set(timings) == {"compile", "checkpoint", "budget 0.1"}


def test_gradient_gap_sees_a_wrong_mask() -> None:
    plain: peers.Running[Any] = peers.Running(small_lstm(), EAGER)
    other: Any = peers.Running(small_lstm(), EAGER)
    assert peers.gradient_gap(plain.results(), other.results()) == 0.0
    other.module.drop.forward = lambda x: x * (torch.rand_like(x) > 0.3) / 0.7  # other masks, the same distribution
    assert peers.gradient_gap(plain.results(), other.results()) > 0.1


def test_timing_is_the_median_of_paired_ratios() -> None:
    """A slow third round hits both and leaves the ratio alone."""
    timing = Timing.of([2.2, 2.0, 40.0], [2.0, 2.0, 40.0])
    assert (timing.seconds, timing.ratio) == (2.2, 1.0)
    assert math.isclose(timing.ratio_q3, 1.05)


def test_results_survive_writing_and_reading(tmp_path: Path) -> None:
    results = Kept(Row, tmp_path / "deep" / "rows.csv")
    results.put(row("compile", measured_peak_bytes=1000, ratio=1.0))
    results.put(row("memcompile 60%", budget_bytes=600, budget_share=0.6, status="infeasible", note='a, "b"'))
    results.put(row("compile", measured_peak_bytes=1001, peak_share=1.0))
    again = list(Kept(Row, results.path))
    assert again == list(results)
    assert [each.measured_peak_bytes for each in again] == [1001, None]


def test_the_best_peer_keeps_the_budget() -> None:
    found = [
        row("compile", measured_peak_bytes=1000, ratio=1.0),
        row("checkpoint", measured_peak_bytes=330, ratio=1.04),
        row("budget 0.1", measured_peak_bytes=600, ratio=1.01),
        row("eager", measured_peak_bytes=100, ratio=0.5),
        row("memcompile 60%", measured_peak_bytes=300, ratio=0.9, budget_bytes=600),
    ]
    assert [getattr(best_peer(found, "net", size), "way", None) for size in (1000, 800, 599, 300)] == [
        "compile",
        "budget 0.1",
        "checkpoint",
        None,
    ]


def test_the_table_goes_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(
        "above\n<!-- results: written by rematerialize.py -->\nold\n<!-- end of rematerialize results -->\nbelow\n"
    )
    kept = Kept(Row, tmp_path / "rows.csv")
    found = [
        row("compile", measured_peak_bytes=2**30, ratio=1.0, peak_share=1.0, nodes=1000, step_seconds=1.5),
        row("checkpoint", measured_peak_bytes=2**29, ratio=1.04, peak_share=0.5),
        row("memcompile 25%", budget_bytes=2**28, budget_share=0.25, status="infeasible", floor_bytes=3 * 2**27),
        row("memcompile 60%", budget_bytes=6 * 2**27, budget_share=0.6, measured_peak_bytes=2**29, ratio=1.02),
    ]
    for each in found:
        kept.put(each)
    rematerialize.main(["--table", "--results", str(kept.path), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert "0.50 at 1.04" in text and "floor 384.0 MiB" in text and "checkpoint: 0.50 at 1.04" in text


@pytest.mark.slow
def test_a_way_in_a_process_of_its_own() -> None:
    """Its errors and its death come back as the failure of that way alone."""
    wrong = peers.memcompile_way("wrong", None, inductor={"no.such.setting": 1})
    remotes = [Remote(way.name, partial(rematerialize.Training, models.CASES["lstm"], way)) for way in (EAGER, wrong)]
    with closing(remotes[0]) as eager, closing(remotes[1]) as failing:
        measured = eager.ask("measured", row("eager"))
        assert measured.measured_peak_bytes > measured.entry_bytes > 0
        assert measured.planned_peak_bytes is measured.first_call_seconds is None
        assert eager.timed_step() > 0
        module, _ = models.CASES["lstm"].make()
        assert eager.ask("results").keys() == {peers.LOSS, *dict(module.named_parameters())}
        with pytest.raises(WayFailedError, match=r"no\.such\.setting") as caught:
            failing.ask("measured", row("wrong"))
        assert caught.value.floor_bytes is None
        eager._process.kill()
        with pytest.raises(WayFailedError, match="exit code -9"):
            eager.timed_step()
