"""Training steps whose storages move to a disk, beside recomputation alone: peaks, step time, what is hidden, gradients.

    python benchmarks/swap.py                                   # everything: an hour on two cores
    python benchmarks/swap.py --models gpt2 --budgets 45 --rounds 5
    python benchmarks/swap.py --models gpt2 --floors 0.9        # below the smallest peak that recomputation reaches
    python benchmarks/swap.py --table                           # write the table in benchmarks/README.md

Every way runs in a process of its own; all ways of a model stay alive and take turns, step by step. Budgets are percents of
plain torch.compile's measured peak, and shares of the floor of recomputation (``--floors``).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # the first call's seconds are those of compiling
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch

from benchmarks.models import CASES
from benchmarks.peers import CHECKPOINT, PLAIN, Gradients, Way, gradient_gap
from benchmarks.rows import KeptRows, Setting
from benchmarks.swap_table import Row, tables
from benchmarks.table import README, between
from benchmarks.turns import Turns
from benchmarks.workers import Prepared, Remote, Worker

RESULTS = Path(__file__).resolve().parent / "results" / "swap.csv"
START, END = "<!-- results: written by swap.py -->", "<!-- end of swap results -->"


class Benchmark:
    """One model. Plain torch.compile first: everything else is measured against it."""

    def __init__(self, model: str, setting: Setting, results: KeptRows[Row], args: argparse.Namespace) -> None:
        self.model, self.setting, self.results, self.args = model, setting, results, args
        self.turns: Turns[Row] = Turns(self._put, PLAIN.name)
        self.plain: Prepared | None = None
        self.gradients: Gradients | None = None
        self.waited_s: dict[str, float] = {}

    def run(self) -> None:
        """All ways, then their steps in turns."""
        self._prepare(PLAIN)
        if self.plain is None:
            return
        self._prepare(CHECKPOINT)
        peak = self.plain.peak.peak_bytes
        for percent in self.args.budgets:
            self._at_budget(f"{percent}%", peak * percent // 100)
        for percent in self.args.alone:
            budget = peak * percent // 100
            way = Way(f"moves alone {percent}%", "memcompile", memory_budget=budget, tiers=self.args.tiers, recompute=False)
            self._prepare(way)
        if self.args.floors:
            self._prepare(Way("recompute floor", "memcompile", memory_budget=1))  # refused: the floor is what it says
        floor = self.turns.rows["recompute floor"].floor_bytes if self.args.floors else None
        for share in self.args.floors if floor else ():
            self._prepare(Way(f"swap {share:g} floor", "memcompile", memory_budget=int(floor * share), tiers=self.args.tiers))
        if self.args.rounds:
            before = {name: self._waited(worker) for name, worker in self.turns.alive.items()}
            self.turns.time(self.args.rounds)
            for name, worker in self.turns.alive.items():
                self._put(self._hidden(name, (self._waited(worker) - before[name]) / (self.args.rounds + 1)))

    def close(self) -> None:
        """End the ways' processes."""
        self.turns.close()

    def _at_budget(self, name: str, budget_bytes: int) -> None:
        self._prepare(Way(f"recompute {name}", "memcompile", memory_budget=budget_bytes))
        self._prepare(Way(f"swap {name}", "memcompile", memory_budget=budget_bytes, tiers=self.args.tiers))

    def _prepare(self, way: Way) -> None:
        row = dataclasses.replace(self._row(way), budget_bytes=way.memory_budget)
        worker = Worker(self.model, way, self.args.device, self.args.batch_scale, self.setting.threads)
        self.turns.prepare(worker, row, self._measured)

    def _row(self, way: Way) -> Row:
        here = self.setting.row(self.model, way.name, uses_memcompile=way.kind == "memcompile")
        return Row(here.date, here.device, here.threads, here.torch, here.code, here.model, here.way)

    def _measured(self, remote: Remote, row: Row) -> Row:
        assert isinstance(remote, Worker)
        found = remote.prepare()
        if remote.way is PLAIN:
            self.plain, self.gradients = found, remote.gradients()
        assert self.plain is not None
        assert self.gradients is not None
        gap = gradient_gap(self.gradients, remote.gradients())
        row = dataclasses.replace(
            row,
            entry_bytes=found.peak.entry_bytes,
            peak_bytes=found.peak.peak_bytes,
            peak_share=found.peak.peak_bytes / self.plain.peak.peak_bytes,
            first_call_seconds=found.first_call_seconds,
            gradient_gap=max(gap.worst, gap.loss),
        )
        plan = found.planned
        if plan is None:
            return row
        swap = plan.swap
        activations = self.plain.peak.peak_bytes - self.plain.peak.entry_bytes
        row = dataclasses.replace(
            row,
            planned_peak_bytes=plan.peak_bytes,
            planned_overhead=plan.overhead,
            plan_seconds=plan.plan_seconds,
            note=plan.how,
        )
        if not swap:
            return row
        return dataclasses.replace(
            row,
            moved_bytes=int(swap["moved_bytes"]),
            away_share=swap["away_bytes"] / activations,
            link_seconds=swap["link_seconds"],
            hidden_planned=swap["hidden_share"],
        )

    def _hidden(self, name: str, waited_s: float) -> Row:
        row = self.turns.rows[name]
        if not row.link_seconds:
            return row
        return dataclasses.replace(row, waited_seconds=waited_s, hidden=max(0.0, 1 - waited_s / row.link_seconds))

    def _waited(self, worker: Remote) -> float:
        return float(worker.ask("waited_s"))

    def _put(self, row: Row) -> None:
        self.results.put(row)
        print(" ".join(f"{field.name}={getattr(row, field.name)}" for field in dataclasses.fields(row)[5:]), flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=["gpt2", "resnet50"], metavar="MODEL")
    parser.add_argument(
        "--budgets", nargs="*", type=int, default=[60, 45, 35], metavar="PERCENT", help="of plain's measured peak"
    )
    parser.add_argument(
        "--floors", nargs="*", type=float, default=[0.9, 0.75], metavar="SHARE", help="of recomputation's floor"
    )
    parser.add_argument("--alone", nargs="*", type=int, default=[45], metavar="PERCENT", help="the same, nothing is recomputed")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each way; 0: no timing")
    parser.add_argument("--disk", default="", help="directory to move to; default: a temporary one")
    parser.add_argument("--host", default="16GiB", help="pinned memory to move to, on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-scale", type=int, default=1, help="multiplies every batch (a GPU wants more)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table from the CSV")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    args = _arguments(argv)
    results = KeptRows(Row, args.results)
    if args.table:
        README.write_text(between(README.read_text(), START, END, tables(list(results))))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.tiers = {"disk": args.disk or folder, **({"host": args.host} if args.device != "cpu" else {})}
        for model in args.models:
            with contextlib.closing(Benchmark(model, Setting.here(args.device), results, args)) as benchmark:
                benchmark.run()


if __name__ == "__main__":
    main()
