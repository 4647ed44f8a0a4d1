"""The benchmark of weights that do not fit: its ways agree, its rows and its table."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmarks are no installed package

pytest.importorskip("transformers")

from benchmarks import weights
from benchmarks.core.rows import Kept, Setting, read_rows
from benchmarks.core.table import README, between
from benchmarks.core.ways import Way
from benchmarks.weights_running import (
    CASES,
    EAGER,
    PEERS,
    Bound,
    Running,
    has_accelerate,
    hook_loads,
    ways_of,
    write_checkpoint,
)
from benchmarks.weights_table import Row, tables

pytestmark = pytest.mark.usefixtures("cold_workers")

SMALL = CASES["decoder, 4 tokens"].scaled(16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    return path, write_checkpoint(SMALL, path)


def test_ways_without_a_compiler_agree(checkpoint: tuple[Path, int]) -> None:
    path, _ = checkpoint
    found = {way.variant: Running(SMALL, way, path) for way in (EAGER, *PEERS[:2])}
    results = [running.results()["output"] for running in found.values()]
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert all(p.device.type == "meta" for p in found["hooks"].module.parameters()), "weights are dropped again"
    assert found[""].timed_step() > 0 and all(size > 0 for size in found[""].process_bytes())


def test_hooks_read_each_module_once(checkpoint: tuple[Path, int]) -> None:
    path, _ = checkpoint
    model = SMALL.empty()
    hook_loads(model, path)
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.int64))
    assert all(p.device.type == "meta" for p in model.parameters())


def test_the_disk_alone_is_measured(checkpoint: tuple[Path, int]) -> None:
    assert Bound(checkpoint[0], threads=(1, 2)).bytes_per_s() > 0


def test_a_run_is_a_csv_of_rows(tmp_path: Path) -> None:
    kept = Kept(Row, tmp_path / "rows.csv")
    setting = Setting("cpu", 1, "2.13.0", "abc")
    chosen = [EAGER, Way("memcompile in 60 %", "memcompile", share=0.6)]
    with closing(weights.Ways(SMALL, 16, setting, kept, tmp_path / "m.safetensors")) as ways:
        ways.run(chosen, rounds=1)
    rows = {row.way: row for row in read_rows(Row, tmp_path / "rows.csv")}
    ours: Any = rows["memcompile in 60 %"]
    assert ours.status == "ok" and ours.peak_bytes <= ours.budget_bytes == int(0.6 * ours.weight_bytes)
    assert ours.planned_peak_bytes == pytest.approx(ours.peak_bytes, rel=0.01)
    assert ours.read_bytes + ours.resident_bytes >= ours.weight_bytes and ours.bound_share > 0
    assert rows["eager, in memory"].read_bytes_per_s is None


def test_the_table_has_a_line_for_each_way() -> None:
    common = ("2026-01-01", "cpu", 2, "2.13.0", "", "decoder", 1, 4)
    rows = [
        Row(*common, "eager", weight_bytes=2**30, peak_bytes=2**30, seconds=0.5),
        Row(*common, "ours", budget_bytes=2**28, peak_bytes=2**28, read_bytes=10**9, seconds=1.0, bound_bytes_per_s=2e9),
    ]
    lines = tables(rows).splitlines()
    assert "| decoder (1024.0 MiB) | eager |" in lines[4] and "8.0" in lines[4]
    assert "| 1.00 | 2.00 | 50 % |" in lines[5]
    assert between(README.read_text(), "weights", "new")


def test_accelerate_runs_where_it_is_installed() -> None:
    ways = ways_of([0.25])
    assert ways[0].compiler == "compile" and PEERS[1] in ways
    assert (PEERS[-1] in ways) == has_accelerate()
