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
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # the first call's seconds are those of compiling
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch

from benchmarks.models import CASES
from benchmarks.peers import PEERS, PLAIN, Gradients, Way, gradient_gap, interleave
from benchmarks.rows import RESULTS, Results, Row, Setting
from benchmarks.table import README, write_table
from benchmarks.workers import Prepared, WayFailedError, Worker

BUDGETS = (80, 60, 45, 35, 25)
DEFAULT_MODELS = ("gpt2", "bert", "llama", "vit", "resnet50", "unet", "lstm")
KEPT_HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
"""The C library's settings under which no step faults its memory in again, as under allocators that keep what is freed."""
QUICK_MODELS = ("llama", "unet")
QUICK_BUDGETS = (60, 35)


def memcompile_way(percent: int, plain_peak_bytes: int, best_effort: bool = False) -> Way:
    """memcompile at a share of plain torch.compile's measured peak."""
    name = f"memcompile {percent}%" + (" best effort" if best_effort else "")
    return Way(name, "memcompile", memory_budget=plain_peak_bytes * percent // 100, best_effort=best_effort)


class Benchmark:
    """One model: prepares its ways one after the other, keeps them alive, then times them in turns."""

    def __init__(self, model: str, setting: Setting, results: Results, args: argparse.Namespace) -> None:
        self.model = model
        self.setting = setting
        self.results = results
        self.args = args
        self.alive: dict[str, Worker] = {}
        self.plain: Prepared | None = None
        self.plain_gradients: Gradients | None = None

    def run(self) -> None:
        """Plain torch.compile first: everything else is measured against it."""
        wanted = [way for way in PEERS if way is not PLAIN and self._wanted(way)]
        if not wanted and not self._wanted(PLAIN) and not any(self._missing(percent) for percent in self.args.budgets):
            return
        self._prepare(PLAIN)
        if self.plain is None:
            return
        for way in wanted:
            self._prepare(way)
        for percent in self.args.budgets:
            self._at_budget(percent, self.plain.peak.peak_bytes)
        if self.args.timings:
            self._time()

    def close(self) -> None:
        """End the ways' processes."""
        for worker in self.alive.values():
            worker.close()

    def _at_budget(self, percent: int, plain_peak_bytes: int) -> None:
        way = memcompile_way(percent, plain_peak_bytes)
        best_effort = memcompile_way(percent, plain_peak_bytes, best_effort=True)
        row = self._prepare(way) if self._wanted(way) else self.results.find(self._row(way))
        if row is not None and row.status == "infeasible" and self._wanted(best_effort):
            self._prepare(best_effort)

    def _missing(self, percent: int) -> bool:
        """Whether a row at this budget, or the best effort where it is infeasible, is still to be measured."""
        way = memcompile_way(percent, 1)
        found = self.results.find(self._row(way))
        infeasible = found is not None and found.status == "infeasible"
        return self._wanted(way) or (infeasible and self._wanted(memcompile_way(percent, 1, best_effort=True)))

    def _wanted(self, way: Way) -> bool:
        if not any(way.kind == each or way.name.startswith(each) for each in self.args.ways):
            return False
        old = self.results.find(self._row(way)) if self.args.resume else None
        if old is None or not self.setting.same_versions(old) or old.status == "failed":
            return True
        return old.status == "ok" and self.args.timings and not old.timed

    def _row(self, way: Way) -> Row:
        return self.setting.row(self.model, way.name, uses_memcompile=way.kind == "memcompile")

    def _prepare(self, way: Way) -> Row:
        row = self._row(way)
        if way.memory_budget is not None and self.plain is not None:
            share = way.memory_budget / self.plain.peak.peak_bytes
            row = dataclasses.replace(row, budget_bytes=way.memory_budget, budget_share=share)
        worker = Worker(self.model, way, self.args.device, self.args.batch_scale, self.setting.threads)
        try:
            row = self._measured(worker, row)
            self.alive[way.name] = worker
        except WayFailedError as error:
            worker.close()
            row = _refused(row, error)
        self.results.put(row)
        _say(row)
        return row

    def _measured(self, worker: Worker, row: Row) -> Row:
        found, way = worker.prepare(), worker.way
        if way is PLAIN:
            self.plain, self.plain_gradients = found, worker.gradients()
        assert self.plain is not None
        assert self.plain_gradients is not None
        row = dataclasses.replace(
            row,
            measured_peak_bytes=found.peak.peak_bytes,
            peak_share=found.peak.peak_bytes / self.plain.peak.peak_bytes,
            entry_bytes=found.peak.entry_bytes,
            nodes=found.joint_nodes or None,
            loss=found.loss,
        )
        if way.kind != "eager":
            ratio = found.first_call_seconds / self.plain.first_call_seconds
            row = dataclasses.replace(row, first_call_seconds=found.first_call_seconds, first_call_ratio=ratio)
        if way.kind not in ("eager", "compile"):
            gap = gradient_gap(self.plain_gradients, worker.gradients())
            row = dataclasses.replace(row, gradient_gap=max(gap.worst, gap.loss))
        return _planned(row, found)

    def _time(self) -> None:
        for name, timing in interleave(list(self.alive.values()), self.alive[PLAIN.name], self.args.rounds).items():
            row = self.results.find(self._row(self.alive[name].way))
            if row is None:
                continue
            row = dataclasses.replace(
                row,
                step_seconds=timing.seconds,
                ratio=timing.ratio,
                ratio_q1=timing.ratio_q1,
                ratio_q3=timing.ratio_q3,
            )
            self.results.put(row)
            _say(row)


def _planned(row: Row, found: Prepared) -> Row:
    """`row` with what memcompile's report says about its plan."""
    plan = found.planned
    if plan is None:
        return row
    return dataclasses.replace(
        row,
        planned_peak_bytes=plan.peak_bytes,
        lower_bound_bytes=plan.lower_bound_bytes,
        plan_seconds=plan.plan_seconds,
        planned_overhead=plan.overhead,
        bound_overhead=plan.bound_overhead,
        note=plan.how,
    )


def _refused(row: Row, error: WayFailedError) -> Row:
    """`row` of a way that raised: infeasible with its floor, or failed with the error's first line."""
    if error.floor_bytes is None:
        return dataclasses.replace(row, status="failed", note=error.message)
    return dataclasses.replace(
        row, status="infeasible", floor_bytes=error.floor_bytes, lower_bound_bytes=error.lower_bound_bytes
    )


def _say(row: Row) -> None:
    def show(value: Any, form: str) -> str:
        return "-" if value is None else format(value, form)

    peak_mib = None if row.measured_peak_bytes is None else row.measured_peak_bytes / 2**20
    print(
        f"{row.model:14} {row.way:26} {row.status:10} peak {show(peak_mib, '8.2f')} MiB {show(row.peak_share, '.3f'):>5}"
        f"  step {show(row.step_seconds, '.3f')} s x{show(row.ratio, '.3f')} [{show(row.ratio_q1, '.3f')}, "
        f"{show(row.ratio_q3, '.3f')}]  first call {show(row.first_call_seconds, '.1f')} s"
        f"  gradients {show(row.gradient_gap, '.1e')}  {row.note}",
        flush=True,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=None, metavar="MODEL", help=f"of {', '.join(CASES)}")
    parser.add_argument("--budgets", nargs="*", type=int, default=None, metavar="PERCENT", help="of plain's measured peak")
    parser.add_argument("--ways", nargs="+", default=("eager", "compile", "budget", "checkpoint", "memcompile"))
    parser.add_argument("--rounds", type=int, default=15, help="steps of each way (default 15)")
    parser.add_argument("--timings", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="two small models, two budgets, five rounds")
    parser.add_argument("--resume", action="store_true", help="skip rows that the same versions measured")
    parser.add_argument("--table", action="store_true", help="only write the table from the CSV")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-scale", type=int, default=1, help="multiplies every batch (a GPU wants more)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as torch chooses")
    parser.add_argument(
        "--keep-heap", action="store_true", help="all ways: the C library keeps freed memory (rows of their own)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    args = parser.parse_args(argv)
    args.models = args.models or (QUICK_MODELS if args.quick else DEFAULT_MODELS)
    args.budgets = args.budgets if args.budgets is not None else list(QUICK_BUDGETS if args.quick else BUDGETS)
    args.rounds = min(args.rounds, 5) if args.quick else args.rounds
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    args = _arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.table:
        setting, results = Setting.here(args.device), Results(args.results)
        if args.keep_heap:
            os.environ.update(KEPT_HEAP)  # for the ways' processes
            setting = dataclasses.replace(setting, device=f"{setting.device}, heap kept")
        for name in args.models:
            with contextlib.closing(Benchmark(name, setting, results, args)) as benchmark:
                benchmark.run()
    if args.table or args.results == RESULTS:
        write_table(list(Results(args.results)), args.readme)


if __name__ == "__main__":
    main()
