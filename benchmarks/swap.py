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
import functools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

from benchmarks.core.command import Benchmark
from benchmarks.core.rows import Kept, Setting
from benchmarks.core.steps import Arrays
from benchmarks.core.table import difference, quotient
from benchmarks.core.turns import Turns
from benchmarks.core.ways import PLAIN, Way
from benchmarks.core.workers import Remote
from benchmarks.models import CASES, Case
from benchmarks.peers import CHECKPOINT, Running, found_by, gradient_gap, memcompile_way, overhead
from benchmarks.swap_table import Row, said, tables

BENCHMARK = Benchmark("swap", Row, tables, said)


class Training(Running[Row]):
    """A training step that fills its row. ``activations_bytes``: what plain's peak has above parameters and batch."""

    def __init__(self, activations_bytes: int | None, case: Case, way: Way, device: str, batch_scale: int) -> None:
        super().__init__(case, way, device, batch_scale)
        self.activations_bytes = activations_bytes

    def measured(self, row: Row) -> Row:
        """Peak, first call, and memcompile's plan; of the first graph that moves storages, what its plan says of that."""
        first_call_seconds, peak = self.first_call(), self.peak()
        row = replace(row, entry_bytes=peak.entry_bytes, peak_bytes=peak.peak_bytes, first_call_seconds=first_call_seconds)
        if not self.way.ours:
            return row
        report = self.report()
        row = replace(
            row,
            planned_peak_bytes=report.planned_peak_bytes,
            planned_overhead=overhead(report, report.planned_seconds),
            plan_seconds=sum(item.compile_seconds for item in report.passes),
            note=found_by(report),
        )
        moving = next((graph.plan for graph in report.graphs if "moves" in graph.plan), None)
        if moving is None:
            return row
        return replace(
            row,
            moved_bytes=int(moving["moved_bytes"]),
            away_share=quotient(moving["away_bytes"], self.activations_bytes),
            link_seconds=moving["link_seconds"],
            hidden_planned=moving["hidden_share"],
        )


class Ways(Turns[Row]):
    """The ways of one model. Plain torch.compile first: everything else is measured against it."""

    def __init__(self, model: str, setting: Setting, kept: Kept[Row], args: argparse.Namespace) -> None:
        super().__init__(kept, setting)
        self.model, self.args = model, args
        self.gradients: Arrays = {}

    def run(self) -> None:
        """All ways, then their steps in turns."""
        plain = self._start(PLAIN)
        if plain.status != "ok":
            return
        self._start(CHECKPOINT)
        peak, tiers = plain.peak_bytes or 0, self.args.tiers
        for percent in self.args.budgets:
            self._start(memcompile_way(f"recompute {percent}%", peak * percent // 100))
            self._start(memcompile_way(f"swap {percent}%", peak * percent // 100, swap=tiers))
        for percent in self.args.alone:
            self._start(memcompile_way(f"moves alone {percent}%", peak * percent // 100, swap=tiers, rematerialize=False))
        if self.args.floors:
            floor = self._start(memcompile_way("recompute floor", 1)).floor_bytes  # refused: the floor is what it says
            for share in self.args.floors if floor else ():
                self._start(memcompile_way(f"swap {share:g} floor", int((floor or 0) * share), swap=tiers))
        if self.args.rounds:
            before = self._waited()
            self.time(self.args.rounds)
            for name, waited_s in self._waited().items():
                self._hidden(name, (waited_s - before[name]) / (self.args.rounds + 1))

    def _start(self, way: Way) -> Row:
        plain = self.rows.get(PLAIN.name)
        activations_bytes = difference(plain.peak_bytes, plain.entry_bytes) if plain else None
        args = activations_bytes, CASES[self.model], way, self.args.device, self.args.batch_scale
        return self.prepare(way, functools.partial(Training, *args))

    def row(self, way: Way) -> Row:
        """Of the model."""
        return self.setting.row(Row, ours=way.ours, model=self.model, way=way.name, budget_bytes=way.budget_bytes)

    def completed(self, way: Way, worker: Remote, row: Row) -> Row:
        """Beside plain: peak and gradients."""
        if way == PLAIN:
            self.gradients = worker.ask("results")
        return replace(
            row,
            peak_share=self.to_reference("peak_bytes", row),
            gradient_gap=gradient_gap(self.gradients, worker.ask("results")),
        )

    def _waited(self) -> dict[str, float]:
        return {name: worker.ask("waited_s") for name, worker in self.alive.items()}

    def _hidden(self, name: str, waited_s: float) -> None:
        row = self.rows[name]
        if row.link_seconds:
            self.put(name, row, waited_seconds=waited_s, hidden=max(0.0, 1 - waited_s / row.link_seconds))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = BENCHMARK.parser(__doc__, "rounds", "device", "batch-scale")
    parser.set_defaults(rounds=7)
    parser.add_argument("--models", nargs="+", choices=CASES, default=["gpt2", "resnet50"], metavar="MODEL")
    parser.add_argument(
        "--budgets", nargs="*", type=int, default=[60, 45, 35], metavar="PERCENT", help="of plain's measured peak"
    )
    parser.add_argument(
        "--floors", nargs="*", type=float, default=[0.9, 0.75], metavar="SHARE", help="of recomputation's floor"
    )
    parser.add_argument("--alone", nargs="*", type=int, default=[45], metavar="PERCENT", help="the same, nothing is recomputed")
    parser.add_argument("--disk", default="", help="directory to move to; default: a temporary one")
    parser.add_argument("--host", default="16GiB", help="pinned memory to move to, on a GPU")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    args = _arguments(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        args.tiers = {"disk": args.disk or folder, **({"host": args.host} if args.device != "cpu" else {})}
        for model in args.models:
            with contextlib.closing(Ways(model, Setting.here(args.device), kept, args)) as ways:
                ways.run()


if __name__ == "__main__":
    main()
