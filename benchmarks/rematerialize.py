"""Models x budgets x peers: measured peak, step time, time of the first call, gradients. Rows go to one CSV, as they come.

    python benchmarks/rematerialize.py                                  # everything: hours on two cores
    python benchmarks/rematerialize.py --quick                          # two small models, two budgets
    python benchmarks/rematerialize.py --models gpt2 --budgets 60 35    # add or renew rows
    python benchmarks/rematerialize.py --resume                         # skip rows that the same versions measured
    python benchmarks/rematerialize.py --table                          # write the table in benchmarks/README.md

Every way runs in a process of its own, as it would for its user. All ways of a model stay alive and take turns, step by step,
so that the ratios are between neighbours in time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

from benchmarks.core.command import Benchmark
from benchmarks.core.rows import Kept, Setting
from benchmarks.core.steps import Arrays
from benchmarks.core.turns import Turns
from benchmarks.core.ways import EAGER, PLAIN, Way
from benchmarks.core.workers import Remote
from benchmarks.models import CASES
from benchmarks.peers import LOSS, PEERS, Running, found_by, gradient_gap, memcompile_way, overhead
from benchmarks.rematerialize_table import Row, said, tables

BENCHMARK = Benchmark("rematerialize", Row, tables, said)
BUDGETS = (80, 60, 45, 35, 25)
DEFAULT_MODELS = ("gpt2", "bert", "llama", "vit", "resnet50", "unet", "lstm")
KEPT_HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
"""The C library's settings under which no step faults its memory in again, as under allocators that keep what is freed."""
QUICK_MODELS = ("llama", "unet")
QUICK_BUDGETS = (60, 35)


class Training(Running[Row]):
    """A training step that fills its row."""

    def measured(self, row: Row) -> Row:
        """Peak, first call, and memcompile's plan."""
        first_call_seconds, peak = self.first_call(), self.peak()
        row = dataclasses.replace(
            row,
            measured_peak_bytes=peak.peak_bytes,
            entry_bytes=peak.entry_bytes,
            nodes=self.joint_nodes or None,
            first_call_seconds=None if self.way == EAGER else first_call_seconds,
        )
        if not self.way.ours:
            return row
        report = self.report()
        return dataclasses.replace(
            row,
            planned_peak_bytes=report.planned_peak_bytes,
            lower_bound_bytes=report.lower_bound_bytes,
            plan_seconds=sum(item.compile_seconds for item in report.passes),
            planned_overhead=overhead(report, report.planned_seconds),
            bound_overhead=overhead(report, report.lower_bound_seconds),
            note=found_by(report),
        )


class Ways(Turns[Row]):
    """The ways of one model."""

    SECONDS: ClassVar = "step_seconds"

    def __init__(self, model: str, setting: Setting, kept: Kept[Row], args: argparse.Namespace) -> None:
        super().__init__(kept, setting)
        self.model, self.args = model, args
        self.gradients: Arrays = {}

    def run(self) -> None:
        """Plain torch.compile first: everything else is measured against it."""
        wanted = [way for way in PEERS if way != PLAIN and self._wanted(way)]
        if not wanted and not self._wanted(PLAIN) and not any(map(self._missing, self.args.budgets)):
            return
        if self._start(PLAIN).status != "ok":
            return
        for way in wanted:
            self._start(way)
        for percent in self.args.budgets:
            row = self._start(self._budgeted(percent)) if self._wanted(self._budgeted(percent)) else self._found(percent)
            best_effort = self._budgeted(percent, best_effort=True)
            if row is not None and row.status == "infeasible" and self._wanted(best_effort):
                self._start(best_effort)
        if self.args.timings:
            self.time(self.args.rounds)

    def _budgeted(self, percent: int, best_effort: bool = False) -> Way:
        """memcompile at a share of plain torch.compile's measured peak, as far as that is known."""
        name = f"memcompile {percent}%" + (" best effort" if best_effort else "")
        plain = self.rows.get(PLAIN.name)
        budget_bytes = (plain.measured_peak_bytes or 0) * percent // 100 if plain else None
        return memcompile_way(name, budget_bytes, **({"on_infeasible": "best_effort"} if best_effort else {}))

    def _found(self, percent: int) -> Row | None:
        return self.kept.find(self.row(self._budgeted(percent)))

    def _missing(self, percent: int) -> bool:
        """Whether a row at this budget, or the best effort where it is infeasible, is still to be measured."""
        found = self._found(percent)
        infeasible = found is not None and found.status == "infeasible"
        return self._wanted(self._budgeted(percent)) or (infeasible and self._wanted(self._budgeted(percent, best_effort=True)))

    def _wanted(self, way: Way) -> bool:
        if not any(way.name.startswith(each) for each in self.args.ways):
            return False
        old = self.kept.find(self.row(way)) if self.args.resume else None
        if old is None or not self.setting.same_versions(old) or old.status == "failed":
            return True
        return old.status == "ok" and self.args.timings and old.ratio is None

    def row(self, way: Way) -> Row:
        """With the budget's share of plain's peak."""
        row = self.setting.row(Row, ours=way.ours, model=self.model, way=way.name, budget_bytes=way.budget_bytes)
        if way.budget_bytes is None:
            return row
        return dataclasses.replace(row, budget_share=way.budget_bytes / self.of_reference("measured_peak_bytes", row))

    def _start(self, way: Way) -> Row:
        make = functools.partial(Training, CASES[self.model], way, self.args.device, self.args.batch_scale)
        return self.prepare(way, make)

    def completed(self, way: Way, worker: Remote, row: Row) -> Row:
        """Beside plain: peak, first call, gradients."""
        found: Arrays = worker.ask("results")
        if way == PLAIN:
            self.gradients = found
        return dataclasses.replace(
            row,
            peak_share=self.to_reference("measured_peak_bytes", row),
            first_call_ratio=self.to_reference("first_call_seconds", row),
            gradient_gap=None if way in (EAGER, PLAIN) else gradient_gap(self.gradients, found),
            loss=float(found[LOSS]),
        )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = BENCHMARK.parser(__doc__, "rounds", "resume", "device", "batch-scale", "threads", "readme")
    parser.add_argument("--models", nargs="+", choices=CASES, default=None, metavar="MODEL", help=f"of {', '.join(CASES)}")
    parser.add_argument("--budgets", nargs="*", type=int, default=None, metavar="PERCENT", help="of plain's measured peak")
    parser.add_argument("--ways", nargs="+", default=("eager", "compile", "budget", "checkpoint", "memcompile"))
    parser.add_argument("--timings", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="two small models, two budgets, five rounds")
    parser.add_argument(
        "--keep-heap", action="store_true", help="all ways: the C library keeps freed memory (rows of their own)"
    )
    args = parser.parse_args(argv)
    args.models = args.models or (QUICK_MODELS if args.quick else DEFAULT_MODELS)
    args.budgets = args.budgets if args.budgets is not None else list(QUICK_BUDGETS if args.quick else BUDGETS)
    args.rounds = min(args.rounds, 5) if args.quick else args.rounds
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    args = _arguments(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    setting = Setting.here(args.device)
    if args.keep_heap:
        os.environ.update(KEPT_HEAP)  # for the ways' processes
        setting = dataclasses.replace(setting, device=f"{setting.device}, heap kept")
    for name in args.models:
        with contextlib.closing(Ways(name, setting, kept, args)) as ways:
            ways.run()
    if args.results == BENCHMARK.results:
        BENCHMARK.tabulate(kept, args.readme)


if __name__ == "__main__":
    main()
