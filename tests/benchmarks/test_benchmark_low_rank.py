"""The low-rank benchmark's layers, cases, rows and table, at sizes that take no time."""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
import types
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmarks are no installed package

from benchmarks import low_rank, low_rank_nets, low_rank_peers
from benchmarks.core import steps, turns
from benchmarks.core.rows import Kept, Setting, read_rows
from benchmarks.core.table import between
from benchmarks.core.ways import EAGER, PLAIN, Way
from benchmarks.core.workers import Remote, WayFailedError
from benchmarks.low_rank_cases import CASES, Case, Size
from benchmarks.low_rank_running import DENSE, MEMCOMPILE, PEERS, UNSTREAMED, WAYS, Running
from benchmarks.low_rank_table import Row, tables

pytestmark = pytest.mark.usefixtures("cold_workers")

TINY = Size(scale=1, layers=1)
CHOSEN = low_rank.Chosen("cpu", TINY, torch.float32, rounds=2, ways=("dense", "memcompile"))


def row(way: str, **fields: Any) -> Row:
    return Row("2026-01-01", "cpu", 2, "2.13.0", "", "net", "float32", 1, 4, way, **fields)


def case(module: Callable[[], nn.Module], *shape: int, **fields: Any) -> Case:
    """A case of ``module(x)``, made anew at every call."""
    return Case("small", "", lambda _size: (module(), {"x": torch.randn(shape)}), **fields)


def feed_forward() -> nn.Module:
    return low_rank_nets.FeedForward(32, 64, 4)


def running(of: Case, way: Way) -> Running:
    return Running(of, way, "cpu", TINY, torch.float32)


def measured(each: Running) -> Row:
    return each.measured(row(each.way.name))


@pytest.mark.parametrize(
    "layer",
    [
        low_rank_nets.Monarch(12, 20, 4, 6),
        low_rank_nets.Blast(12, 20, 4, 6),
        low_rank_nets.Lora(12, 20, 3, adapters=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_dense_layer_is_the_factored_one(layer: nn.Module) -> None:
    x = torch.randn(5, 3, 12)
    with torch.no_grad():
        expected = layer(x)
        assert expected.shape == (5, 3, 20)
        dense = low_rank_nets.densified(layer)
        assert type(dense) is nn.Linear
        torch.testing.assert_close(dense(x), expected)


def test_monarch_is_two_block_diagonal_factors_with_a_permutation_between() -> None:
    layer = low_rank_nets.Monarch(12, 20, 4, 6)
    block_diag: Any = torch.block_diag
    first, second = (block_diag(*factor.detach()) for factor in (layer.first, layer.second))
    x = torch.randn(5, 12)
    middle = (first @ x.T).view(6, 4, 5).transpose(0, 1).reshape(24, 5)
    expected = (second @ middle).view(4, 5, 5).transpose(0, 1).reshape(20, 5).T
    torch.testing.assert_close(layer(x).detach(), expected)


def test_blast_is_blocks_with_shared_factors() -> None:
    layer = low_rank_nets.Blast(12, 20, 4, 6)
    first, scales, second = (t.detach() for t in (layer.first, layer.scales, layer.second))
    blocks = [torch.cat([second[i] @ scales[i, j].diag() @ first[j] for j in range(4)], 1) for i in range(4)]
    torch.testing.assert_close(layer.to_linear().weight.detach(), torch.cat(blocks))


def test_the_published_rank_halves_the_parameters() -> None:
    with torch.device("meta"):
        gate = low_rank_nets.Monarch(4096, 11008, 16, 1488)
    assert math.isclose(sum(p.numel() for p in gate.parameters()) / (4096 * 11008), 0.5, abs_tol=0.01)


@pytest.mark.parametrize(
    "name", ["ffn-r64-L256", "attention-r64", "monarch-vit", "blast-vit", "lora-training-2", "bert-r64-L256"]
)
def test_a_case_is_the_same_at_every_call(name: str) -> None:
    if name.startswith("bert"):
        pytest.importorskip("transformers")
    first, second = (CASES[name].make(Size(scale=64, layers=1)) for _ in range(2))
    assert all(map(torch.equal, first[0].state_dict().values(), second[0].state_dict().values()))
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])
    assert first[0].training == CASES[name].training


def test_a_case_keeps_its_own_dtype() -> None:
    module, batch = CASES["ffn-r256-bf16"].make(Size(scale=64), dtype=torch.float16)
    assert {p.dtype for p in module.parameters()} == {batch["x"].dtype} == {torch.bfloat16}


def test_layers_that_would_not_get_smaller_stay_dense() -> None:
    pytest.importorskip("transformers")
    module, _ = CASES["bert-r384-L256"].make(Size(scale=64, layers=1))
    kinds = {name.split(".")[-2]: type(layer).__name__ for name, layer in module.named_modules() if name.endswith("dense")}
    assert kinds["intermediate"] == "LowRankLinear"
    query = next(layer for name, layer in module.named_modules() if name.endswith("query"))
    assert type(query) is nn.Linear


def test_all_ways_agree(fresh_dynamo: None) -> None:
    """Their outputs, and their transient bytes above the same entry."""
    of = case(feed_forward, 128, 32)
    ways = {way.name: running(of, way) for way in (EAGER, PLAIN, DENSE, MEMCOMPILE)}
    found: dict[str, Any] = {name: measured(each) for name, each in ways.items()}
    reference = ways["eager"].results()
    assert reference["output"].shape == (128, 32)
    for each in ways.values():
        assert low_rank.error(reference, each.results(), each.way) < 1e-5
    factors = 2 * 4 * (32 + 64) + 32 + 64
    assert found["eager"].entry_bytes == found["memcompile"].entry_bytes == 4 * (factors + 128 * 32)
    assert found["dense"].entry_bytes == 4 * (2 * 32 * 64 + 32 + 64 + 128 * 32)
    least = 4 * 128 * (64 + 4)  # the hidden, and what it is made of or contracted to
    assert all(prepared.peak_bytes - prepared.entry_bytes >= least for prepared in found.values())
    assert found["memcompile"].planned_peak_bytes == found["memcompile"].peak_bytes
    assert found["memcompile"].blocks == ""  # too small for blocks
    assert found["eager"].first_call_seconds is None
    assert found["compile"].first_call_seconds > 0


def test_a_layer_alone_can_be_dense(fresh_dynamo: None) -> None:
    of = case(lambda: low_rank_nets.Monarch(12, 20, 4, 6), 5, 12)
    first, second = (running(of, way) for way in (EAGER, DENSE))
    assert low_rank.error(first.results(), second.results(), DENSE) < 1e-5


def test_what_runs_in_blocks_is_read_off_the_report(fresh_dynamo: None) -> None:
    found: Any = measured(running(case(lambda: low_rank_nets.FeedForward(8, 2048, 2), 2048, 8), MEMCOMPILE))
    blocks, rows = int(found.blocks), int(found.block_rows)
    assert blocks > 1
    assert rows * (blocks - 1) < 2048 <= rows * blocks
    assert found.peak_bytes - found.entry_bytes < 4 * 2048 * 2048  # the hidden is never whole


def test_a_training_step_compares_gradients(fresh_dynamo: None) -> None:
    def module() -> nn.Module:
        return low_rank_nets.WithLoss(low_rank_nets.Residual(32, feed_forward()))

    of = Case("small", "", lambda _size: (module(), {"x": torch.randn(64, 32), "target": torch.randn(64, 32)}), training=True)
    eager, ours = running(of, EAGER), running(of, MEMCOMPILE)
    peak = measured(ours).peak_bytes
    assert peak is not None and peak > 0
    reference = eager.results()
    assert reference.keys() == {"output", *dict(eager.module.named_parameters())}
    assert low_rank.error(reference, ours.results(), MEMCOMPILE) < 1e-5
    assert all(p.grad is None for p in eager.module.parameters())


def test_a_planned_case_allocates_nothing() -> None:
    def build(size: Size) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        with torch.device("meta"):
            module = low_rank_nets.GatedFeedForward(64, 4096, 4)
        return module, {"x": torch.randn(1024, 64)}

    of = Case("small", "", build, planned=True)
    whole: Any
    ours: Any
    whole, ours = (measured(running(of, way)) for way in (UNSTREAMED, MEMCOMPILE))
    assert whole.peak_bytes is ours.peak_bytes is None
    assert whole.entry_bytes == ours.entry_bytes == 4 * (3 * 4 * (64 + 4096) + 1024 * 64)
    assert whole.blocks == "" != ours.blocks
    assert ours.planned_peak_bytes < whole.planned_peak_bytes


def test_the_error_is_the_worst_tensor() -> None:
    reference = {"output": np.array([4.0, -2.0]), "weight": np.array([1.0])}
    candidate = {"output": np.array([4.0, -1.0]), "weight": np.array([1.5])}
    assert steps.max_error(reference, candidate) == 0.5
    assert math.isnan(steps.max_error(reference, {**candidate, "output": np.array([math.nan, 0.0])}))
    with pytest.raises(ValueError, match="weight"):
        steps.max_error(reference, {"output": candidate["output"]})
    assert low_rank.error(reference, {"output": candidate["output"]}, DENSE) == 0.25


def test_ways_of_a_case() -> None:
    every = dataclasses.replace(CHOSEN, ways=tuple(way.name for way in (*WAYS, *PEERS)))
    on_cuda = dataclasses.replace(every, device="cuda")
    names = {
        "ffn-r64-L256": ["eager", "compile", "compile max-autotune", "dense", "memcompile"],
        "lora-training-1": ["eager", "compile", "compile max-autotune", "memcompile"],
        "llama-7b-ffn-planned": ["memcompile low_rank=False", "memcompile"],
    }
    assert {name: [way.name for way in low_rank.ways_of(CASES[name], every)] for name in names} == names
    assert low_rank.ways_of(CASES["ffn-r64-L256"], on_cuda)[-1].name == "flashsvd"
    assert low_rank.ways_of(CASES["blast-vit"], on_cuda)[-1].name == "blr"
    assert [way.name for way in low_rank.ways_of(CASES["vit"], dataclasses.replace(CHOSEN, ways=()))] == ["eager", "compile"]


def test_a_missing_peer_says_where_it_is_from() -> None:
    assert "FlashSVD" in low_rank_peers.missing("flashsvd")
    with pytest.raises(ImportError):
        low_rank_peers.adapted("flashsvd", feed_forward())
    with pytest.raises(ValueError, match="no kernel for Linear"):
        low_rank_peers.adapted("blr", nn.Linear(2, 2))


def test_a_peer_gets_the_factors_in_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins that compute what the packages document, from factors as their documentation has them."""

    def ffn(
        p: torch.Tensor, v1: torch.Tensor, u2: torch.Tensor, v2: torch.Tensor, b1: torch.Tensor, b2: torch.Tensor
    ) -> torch.Tensor:
        return torch.nn.functional.gelu(p @ v1 + b1) @ u2 @ v2 + b2

    def monarch(x: Any, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, None]:
        blocked = x[0].unflatten(1, (len(first), -1)).transpose(0, 1) @ first
        middle = blocked.unflatten(2, (len(first), -1)).permute(2, 1, 0, 3).flatten(2)
        return (middle @ second).permute(1, 2, 0).flatten(1)[None], None

    def blast(x: Any, u: torch.Tensor, v: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, None]:
        inner = x[0].unflatten(1, (len(v), -1)).transpose(0, 1) @ v
        return torch.cat([(inner * s[:, i, None]).sum(0) @ u[i] for i in range(len(u))], 1)[None], None

    package = types.SimpleNamespace(
        flashsvd_ffn_v1=ffn, triton_monarch_right_left_fp32=monarch, triton_blast_partial_grouped_fp32=blast
    )
    monkeypatch.setattr(importlib, "import_module", lambda _name: package)
    layers = {
        feed_forward(): ("flashsvd", torch.randn(2, 5, 32)),
        low_rank_nets.Monarch(12, 20, 4, 8): ("blr", torch.randn(5, 12)),
        low_rank_nets.Blast(12, 20, 4, 6): ("blr", torch.randn(5, 12)),
    }
    for layer, (peer, x) in layers.items():
        adapted = low_rank_peers.adapted(peer, layer)
        torch.testing.assert_close(adapted(x), layer(x).detach())
        assert sum(p.numel() for p in adapted.parameters()) == sum(p.numel() for p in layer.parameters())
    with pytest.raises(ValueError, match="only for fp32 and fp16"):
        low_rank_peers.adapted("blr", low_rank_nets.Blast(12, 20, 4, 6).bfloat16())


class Fake:
    """A worker whose answers are given; it steps ``steps`` times and then fails."""

    def __init__(self, way: str, steps: int = 1000, refuses: bool = False) -> None:
        self.way, self.steps, self.refuses = way, steps, refuses

    def ask(self, what: str, *rows: Row) -> Any:
        if self.refuses:
            raise WayFailedError("RuntimeError: no such kernel")
        if what == "results":
            return {"output": np.ones(3, dtype=np.float32)}
        found: dict[str, Any] = {"entry_bytes": 100, "peak_bytes": 300, "transient_bytes": 200, "first_call_seconds": 2.0}
        return dataclasses.replace(rows[0], planned_peak_bytes=290, blocks="3", block_rows="352", **found)

    def warm_up(self) -> None:
        self.timed_step()

    def timed_step(self) -> float:
        self.steps -= 1
        if self.steps < 0:
            raise WayFailedError("its process ended with exit code -9")
        return 0.5 if self.way == "memcompile" else 1.0

    def close(self) -> None:
        self.steps = 0


@pytest.mark.parametrize("dying", [Fake("dense", refuses=True), Fake("dense", steps=2)], ids=["compiling", "timing"])
def test_a_failing_way_is_a_row_and_stops_no_other(dying: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"dense": dying}
    monkeypatch.setattr(turns, "Remote", lambda way, *_rest: made.setdefault(way, Fake(way)))
    path = tmp_path / "rows.csv"
    of = CASES["ffn-r64-L256"]
    with closing(low_rank.Ways(of, Setting("cpu", 2, "2.13.0", "abc"), Kept(Row, path), CHOSEN)) as ways:
        ways.run()
    found = {each.way: each for each in read_rows(Row, path)}
    assert found["dense"].status == "failed"
    assert found["dense"].note
    ours = found["memcompile"]
    assert (ours.status, ours.transient_bytes, ours.planned_peak_bytes, ours.code) == ("ok", 200, 290, "abc")
    assert (ours.ratio, ours.seconds, ours.first_call_ratio, ours.max_error) == (0.5, 0.5, 1.0, 0.0)
    assert (ours.blocks, ours.block_rows) == ("3", "352")
    assert found["compile"].ratio == 1.0
    assert found["eager"].max_error is None


def test_the_table_has_a_line_for_each_case() -> None:
    rows = [
        row("eager", transient_bytes=2**21, ratio=1.5),
        row("compile", transient_bytes=2**20, seconds=0.25, ratio=1.0),
        row("dense", status="failed", note="no"),
        row(
            "memcompile",
            entry_bytes=2**20,
            transient_bytes=2**18,
            planned_peak_bytes=5 * 2**18,
            ratio=0.9,
            ratio_q1=0.8,
            ratio_q3=1.0,
            blocks="3 3 2",
            block_rows="352 352 16",
            max_error=4e-7,
        ),
    ]
    planned = [
        dataclasses.replace(row(way, status="planned", entry_bytes=2**20, transient_bytes=size), case="large")
        for way, size in (("memcompile low_rank=False", 2**22), ("memcompile", 2**20))
    ]
    page = "above\n<!-- results: written by low_rank.py -->\nold\n<!-- end of low_rank results -->\nbelow\n"
    text = between(page, "low_rank", tables([*rows, *planned]))
    assert "old" not in text
    assert "| net | 1.0 MiB | 0.250 s | 2.00 at 1.50 | failed | 0.2 MiB (25 %) | 0.2 | x 0.900 | 0.800 to 1.000 |" in text
    assert "| 2: 3 x 352, 2 x 16 | - | 4e-07 |" in text
    assert "| large | 1.0 MiB | 4.0 | 1.0 (25 %) | - |" in text


def test_an_empty_table_can_be_written() -> None:
    assert tables([]) == ""


@pytest.mark.slow
def test_a_way_in_a_process_of_its_own() -> None:
    make = partial(Running, CASES["monarch-vit"], PLAIN, "cpu", Size(scale=64), torch.float32)
    with closing(Remote("compile", make, 1)) as worker:
        found = worker.ask("measured", row("compile"))
        assert found.peak_bytes > found.entry_bytes > 0
        assert worker.ask("results")["output"].shape == (3, 3072)
        assert worker.timed_step() > 0
