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
import dataclasses
import datetime
import functools
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # the first call's seconds are those of compiling
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch

from benchmarks.rows import KeptRows, Setting
from benchmarks.stepping import max_error
from benchmarks.table import README, between
from benchmarks.turns import Turns
from benchmarks.weights_running import CASES, Bound, Case, Prepared, Running, Way, has_accelerate, write_checkpoint
from benchmarks.weights_table import END, START, Row, table
from benchmarks.workers import Remote

RESULTS = Path(__file__).resolve().parent / "results" / "weights.csv"
EAGER, PLAIN = Way("eager, in memory", "eager"), Way("compile, in memory", "compile")
PEERS = (Way("eager, mmap", "mmap"), Way("hooks, safetensors", "hooks"), Way("accelerate", "accelerate"))


class Results(KeptRows[Row]):
    """The rows by what they measure; each is said as it comes."""

    def __init__(self, path: Path) -> None:
        super().__init__(Row, path)

    def put(self, row: Row) -> None:
        """Add it, and write the file."""
        super().put(row)
        share = "-" if row.bound_share is None else f"{row.bound_share:.2f}"
        print(
            f"{row.case:20} {row.way:24} {row.status:8} peak {row.peak_bytes} of {row.budget_bytes}, planned "
            f"{row.planned_peak_bytes}, step {row.seconds} s, reads {row.read_bytes} at {row.read_bytes_per_s} B/s, disk "
            f"{row.bound_bytes_per_s}, share {share}, error {row.max_error} {row.note}",
            flush=True,
        )


class Benchmark(Turns[Row]):
    """One case: prepares its ways one after the other, keeps them alive, then times them in turns."""

    def __init__(self, case: Case, scale: int, setting: Setting, results: Results, checkpoint: Path) -> None:
        super().__init__(results.put, PLAIN.name)
        self.case, self.scale, self.setting, self.checkpoint = case, scale, setting, checkpoint
        self.weight_bytes = write_checkpoint(case, checkpoint)
        self.bound = Bound(checkpoint)
        self.best_bytes_per_s = 0.0
        self.reference: Any = None

    def run(self, ways: Sequence[Way], rounds: int) -> None:
        """Prepare and time."""
        for way in ways:
            make = functools.partial(Running, self.case, way, self.checkpoint, self.weight_bytes)
            self.prepare(Remote(way, make, self.setting.threads), self._row(way), functools.partial(self._measured, way))
        self._measure_disk()
        if rounds:
            self.time(rounds)
        self._measure_disk()
        for row in list(self.rows.values()):
            self.put(dataclasses.replace(row, bound_bytes_per_s=self.best_bytes_per_s))

    def _measure_disk(self) -> None:
        self.best_bytes_per_s = max(self.best_bytes_per_s, self.bound.bytes_per_s())

    def _measured(self, way: Way, worker: Remote, row: Row) -> Row:
        found: Prepared = worker.ask("prepare")
        results = worker.ask("results")
        if way == PLAIN:
            self.reference = results
        anonymous, files = worker.ask("resident")
        self._measure_disk()
        return dataclasses.replace(
            row,
            peak_bytes=found.peak_bytes,
            planned_peak_bytes=found.planned_peak_bytes,
            first_call_seconds=found.first_call_seconds,
            read_bytes=found.read_bytes,
            resident_bytes=found.resident_bytes,
            link_bytes_per_s=found.link_bytes_per_s,
            anonymous_bytes=anonymous,
            file_bytes=files,
            max_error=None if self.reference is None else max_error(self.reference, results),
        )

    def _row(self, way: Way) -> Row:
        setting, case = self.setting, self.case
        code = setting.code if way.kind in ("memcompile", "checkpoint") else ""
        origin = (datetime.date.today().isoformat(), setting.device, setting.threads, setting.torch, code)
        row = Row(*origin, case.name, self.scale, case.tokens, way.name, weight_bytes=self.weight_bytes)
        share = way.budget_share
        return row if share is None else dataclasses.replace(row, budget_bytes=int(share * self.weight_bytes))


def ways_of(shares: Sequence[float]) -> list[Way]:
    """In order: plain torch.compile first, which the others are compared with."""
    peers = [way for way in PEERS if way.kind != "accelerate" or has_accelerate()]
    ours = [Way(f"memcompile in {share * 100:g} %", "memcompile", share) for share in shares]
    in_place = [Way(f"checkpoint in {share * 100:g} %", "checkpoint", share) for share in shares[:1]]
    return [PLAIN, EAGER, *peers, *ours, *in_place, Way("memcompile, no budget", "memcompile")]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25], help="budgets, as shares of the weights' bytes")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each way")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as torch chooses")
    parser.add_argument("--scale", type=int, default=1, help="divides the sides of the weights, for a trial")
    parser.add_argument("--directory", type=Path, default=None, help="where the weights are; it needs twice their bytes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table in benchmarks/README.md")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or write the table."""
    args = _arguments(argv)
    results = Results(args.results)
    if args.table:
        README.write_text(between(README.read_text(), START, END, table(list(results))))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    setting = Setting.here("cpu")
    for name in args.cases:
        case = CASES[name].scaled(args.scale) if args.scale > 1 else CASES[name]
        with tempfile.TemporaryDirectory(prefix="memcompile-weights-", dir=args.directory) as folder:
            checkpoint = Path(folder) / "model.safetensors"
            with closing(Benchmark(case, args.scale, setting, results, checkpoint)) as benchmark:
                benchmark.run(ways_of(args.shares), args.rounds)


if __name__ == "__main__":
    main()
