"""What the benchmarks share: rows that know where they come from, tables, and what a resumed run leaves out."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rematerialize
from benchmarks.core import turns
from benchmarks.core.rows import Kept, PlanRow, Setting, SolverRow, StepRow
from benchmarks.core.table import between, by_case, by_setting, table
from benchmarks.core.workers import WayFailedError
from benchmarks.peers import LOSS
from benchmarks.rematerialize_table import Row

SETTING = Setting("cpu", 2, "2.13.0", "abc")


def test_a_row_has_what_its_kind_asks_for() -> None:
    step, plan, solver = SETTING.row(StepRow), SETTING.row(PlanRow), SETTING.row(SolverRow)
    assert step.setting == ("cpu", 2, "2.13.0")
    assert (plan.torch, plan.code) == ("2.13.0", "abc")
    assert (solver.machine, solver.code) == ("cpu", "abc")
    assert SETTING.row(StepRow, ours=False).code == ""
    assert SETTING.same_versions(step) and SETTING.same_versions(replace(step, code=""))
    assert not SETTING.same_versions(replace(step, code="older"))


def test_what_failed_is_a_short_line() -> None:
    columns = (("name", str), ("twice", lambda item: str(2 * item)), ("half", lambda item: str(item / 2)))
    lines = table(columns, (1, 2), lambda item: ("failed",) if item == 1 else ()).splitlines()
    assert lines == ["| name | twice | half |", "| --- | --- | --- |", "| 1 | failed | - |", "| 2 | 4 | 1.0 |"]


def test_rows_stand_under_their_machines_and_cases() -> None:
    rows = [replace(SETTING.row(Row, model=model, way=way), date="2026-01-01") for model in "ab" for way in ("x", "y")]
    rows.append(replace(rows[0], device="gpu"))
    text = by_setting(rows, lambda here: [str(len(here))])
    assert text.split("\n\n")[1::2] == ["4", "1\n"]
    assert text.startswith("### cpu, 2 threads, torch 2.13.0, 2026-01-01 to 2026-01-01\n")
    assert [list(ways) for ways in by_case(rows[:4], "model")] == [["x", "y"], ["x", "y"]]
    with pytest.raises(ValueError, match="missing"):
        between("no markers", "arena", "new")


class Fake:
    """A way of a plain peak of 100 bytes. memcompile refuses less than 50."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def ask(self, what: str, *rows: Row) -> object:
        if what == "results":
            return {LOSS: np.float32(2.0), "weight": np.ones(3)}
        if self.name == "memcompile 40%":
            raise WayFailedError("BudgetInfeasibleError: 50 bytes", floor_bytes=50, lower_bound_bytes=45)
        return replace(rows[0], measured_peak_bytes=60 if "memcompile" in self.name else 100, first_call_seconds=3.0)

    def warm_up(self) -> None:
        """Nothing."""

    def timed_step(self) -> float:
        return 1.5 if "memcompile" in self.name else 1.0

    def close(self) -> None:
        """Nothing."""


def run(path: Path, **changes: object) -> list[str]:
    """What a run adds or renews, in order."""
    chosen = {"budgets": [60, 40], "ways": ["compile", "memcompile"], "rounds": 2, "timings": True, "resume": True}
    args = argparse.Namespace(device="cpu", batch_scale=1, **{**chosen, **changes})
    added: list[str] = []

    def said(row: Row) -> str:
        added.append(row.way)
        return row.way

    kept = Kept(Row, path, said)
    with closing(rematerialize.Ways("unet", SETTING, kept, args)) as ways:
        ways.run()
    return list(dict.fromkeys(added))


def test_a_resumed_run_measures_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "Remote", Fake)
    path = tmp_path / "rows.csv"
    assert run(path, timings=False) == ["compile", "memcompile 60%", "memcompile 40%", "memcompile 40% best effort"]
    rows = {row.way: row for row in Kept(Row, path)}
    refused, ours = rows["memcompile 40%"], rows["memcompile 60%"]
    assert (refused.status, refused.floor_bytes, refused.lower_bound_bytes) == ("infeasible", 50, 45)
    assert (ours.budget_bytes, ours.budget_share, ours.peak_share, ours.first_call_ratio) == (60, 0.6, 0.6, 1.0)
    assert (ours.gradient_gap, ours.loss, ours.ratio) == (0.0, 2.0, None)
    assert run(path, timings=False) == []
    assert run(path) == ["compile", "memcompile 60%", "memcompile 40% best effort"], "those that are not timed"
    assert {row.ratio for row in Kept(Row, path)} == {1.0, 1.5, None}
    assert run(path) == []
    assert run(path, budgets=[80]) == ["compile", "memcompile 80%"]
