"""The swap benchmark's rows and table, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.core.rows import Kept
from benchmarks.peers import memcompile_way
from benchmarks.swap_table import Row, tables

HERE = ("2026-01-01", "a processor", 2, "2.13.0", "")


def test_rows_survive_the_csv_and_become_lines(tmp_path: Path) -> None:
    rows = Kept(Row, tmp_path / "rows.csv")
    rows.put(Row(*HERE, "gpt2", "compile", peak_bytes=100 * 2**20, peak_share=1.0, ratio=1.0, ratio_q1=1.0, ratio_q3=1.0))
    rows.put(Row(*HERE, "gpt2", "recompute floor", "infeasible", budget_bytes=1, floor_bytes=30 * 2**20, note="does not fit"))
    moved: dict[str, Any] = {
        "away_share": 0.5,
        "planned_overhead": 0.1,
        "link_seconds": 2.0,
        "hidden_planned": 1.0,
        "hidden": 0.95,
    }
    rows.put(Row(*HERE, "gpt2", "swap 25%", budget_bytes=25 * 2**20, peak_bytes=24 * 2**20, ratio=1.2, **moved))
    lines = tables(list(Kept(Row, tmp_path / "rows.csv"))).splitlines()
    assert lines[0] == "### a processor, 2 threads, torch 2.13.0, 2026-01-01 to 2026-01-01"
    assert "| gpt2 | recompute floor | - | infeasible | floor 30.0 | - |" in lines[5]
    assert "| gpt2 | swap 25% | 25.0 | - | 24.0 (-) | 50 % | x 1.200 |" in lines[6]
    assert "| x 1.100 | 95 % (100 %) |" in lines[6]


def test_a_way_that_moves_names_its_tiers() -> None:
    way = memcompile_way("swap", 7, swap={"disk": "/scratch"})
    assert way.options == {"memory_budget": 7, "swap": {"disk": "/scratch"}}
