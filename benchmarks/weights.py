"""Weights that do not fit: a decoder in a quarter of the bytes of its weights, which are read from disk in every step.

    python benchmarks/weights.py                                # both cases, about half an hour on two cores
    python benchmarks/weights.py --cases "decoder, 4 tokens" --shares 0.25 0.5
    python benchmarks/weights.py --scale 16 --rounds 2 --results trial.csv
    python benchmarks/weights.py --table                        # write the table in benchmarks/README.md

Every way runs in a process of its own; all ways of a case stay alive and take turns, step by step. Before and after the rounds
the disk is measured alone. The file of the weights is dropped from the page cache before each step: where weights exceed the
memory it would not be there. A process that maps it keeps its pages all the same ("mmap" is in memory after its first step).
"hooks" does what accelerate's disk offload does; accelerate itself runs where it is installed.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

from benchmarks.core.command import Benchmark
from benchmarks.core.rows import Kept, Setting
from benchmarks.core.steps import Arrays, max_error
from benchmarks.core.turns import Turns
from benchmarks.core.ways import Way
from benchmarks.core.workers import Remote
from benchmarks.weights_running import CASES, PLAIN, Bound, Case, Running, ways_of, write_checkpoint
from benchmarks.weights_table import Row, said, tables

BENCHMARK = Benchmark("weights", Row, tables, said)


class Ways(Turns[Row]):
    """The ways of one case."""

    def __init__(self, case: Case, scale: int, setting: Setting, kept: Kept[Row], checkpoint: Path) -> None:
        super().__init__(kept, setting, PLAIN.name)
        self.case, self.scale, self.checkpoint = case, scale, checkpoint
        self.weight_bytes = write_checkpoint(case, checkpoint)
        self.bound = Bound(checkpoint)
        self.best_bytes_per_s = 0.0
        self.plain: Arrays = {}

    def run(self, ways: Sequence[Way], rounds: int) -> None:
        """Prepare and time."""
        for way in ways:
            own = way if way.share is None else way.within(int(way.share * self.weight_bytes))
            self.prepare(own, functools.partial(Running, self.case, own, self.checkpoint))
        self._measure_disk()
        self.time(rounds)
        self._measure_disk()
        for way_name, row in list(self.rows.items()):
            self.put(way_name, row, bound_bytes_per_s=self.best_bytes_per_s)

    def _measure_disk(self) -> None:
        self.best_bytes_per_s = max(self.best_bytes_per_s, self.bound.bytes_per_s())

    def row(self, way: Way) -> Row:
        """Of the case, at its scale."""
        columns = {"case": self.case.name, "scale": self.scale, "tokens": self.case.tokens, "way": way.name}
        sizes = {"weight_bytes": self.weight_bytes, "budget_bytes": way.budget_bytes}
        return self.setting.row(Row, ours=way.ours, **columns, **sizes)

    def completed(self, way: Way, worker: Remote, row: Row) -> Row:
        """Its error beside plain."""
        results: Arrays = worker.ask("results")
        if way == PLAIN:
            self.plain = results
        self._measure_disk()
        return replace(row, max_error=max_error(self.plain, results) if self.plain else None)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = BENCHMARK.parser(__doc__, "rounds", "threads")
    parser.set_defaults(rounds=9)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25], help="budgets, as shares of the weights' bytes")
    parser.add_argument("--scale", type=int, default=1, help="divides the sides of the weights, for a trial")
    parser.add_argument("--directory", type=Path, default=None, help="where the weights are; it needs twice their bytes")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or write the table."""
    args = _arguments(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    setting = Setting.here()
    for name in args.cases:
        case = CASES[name].scaled(args.scale) if args.scale > 1 else CASES[name]
        with tempfile.TemporaryDirectory(prefix="memcompile-weights-", dir=args.directory) as folder:
            ways = Ways(case, args.scale, setting, kept, Path(folder) / "model.safetensors")
            with closing(ways):
                ways.run(ways_of(args.shares), args.rounds)


if __name__ == "__main__":
    main()
