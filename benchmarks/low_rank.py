"""Factored layers and models: transient memory, step time, time of the first call, error. Rows go to one CSV, as they come.

    python benchmarks/low_rank.py                                   # all cases, hours on two cores
    python benchmarks/low_rank.py --cases ffn-r64-L256 lora-training-1 --ways dense memcompile
    python benchmarks/low_rank.py --scale 8 --rounds 1 --results trial.csv
    python benchmarks/low_rank.py --list                            # what the cases are
    python benchmarks/low_rank.py --table                           # write the table in benchmarks/README.md

Every way runs in a process of its own; all ways of a case stay alive and take turns, step by step. Eager is what errors are
measured against, and plain torch.compile what times are: both always run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch

from benchmarks.core.command import DTYPES, Benchmark, list_cases
from benchmarks.core.rows import Kept, Setting
from benchmarks.core.steps import Arrays, max_error
from benchmarks.core.turns import Turns
from benchmarks.core.ways import EAGER, PLAIN, Way
from benchmarks.core.workers import Remote
from benchmarks.low_rank_cases import CASES, Case, Size
from benchmarks.low_rank_peers import missing
from benchmarks.low_rank_running import MEMCOMPILE, PEERS, UNSTREAMED, WAYS, Running
from benchmarks.low_rank_table import Row, said, tables

BENCHMARK = Benchmark("low_rank", Row, tables, said)


@dataclass(frozen=True)
class Chosen:
    """What the command line asks for."""

    device: str
    size: Size
    dtype: torch.dtype
    rounds: int
    ways: tuple[str, ...]


class Ways(Turns[Row]):
    """The ways of one case."""

    def __init__(self, case: Case, setting: Setting, kept: Kept[Row], chosen: Chosen) -> None:
        super().__init__(kept, setting)
        self.case, self.chosen = case, chosen
        self.eager: Arrays = {}

    def run(self) -> None:
        """All ways that apply."""
        for way in ways_of(self.case, self.chosen):
            if way in PEERS and (reason := missing(way.name)):
                self.put(way.name, self.row(way), status="missing", note=reason)
            else:
                chosen = self.chosen
                self.prepare(way, functools.partial(Running, self.case, way, chosen.device, chosen.size, chosen.dtype))
        if not self.case.planned:
            self.time(self.chosen.rounds)

    def row(self, way: Way) -> Row:
        """Of the case in its dtype."""
        size, dtype = self.chosen.size, str(self.case.dtype or self.chosen.dtype).removeprefix("torch.")
        columns = {"case": self.case.name, "dtype": dtype, "scale": size.scale, "layers": size.layers, "way": way.name}
        return self.setting.row(Row, ours=way.ours, **columns)

    def completed(self, way: Way, worker: Remote, row: Row) -> Row:
        """Its error beside eager, its first call beside plain."""
        if self.case.planned:
            return row
        results: Arrays = worker.ask("results")
        if way == EAGER:
            self.eager = results
        elif self.eager:
            row = replace(row, max_error=error(self.eager, results, way))
        return replace(row, first_call_ratio=self.to_reference("first_call_seconds", row))


def ways_of(case: Case, chosen: Chosen) -> list[Way]:
    """The ways to measure a case, in order."""
    if case.planned:
        return [UNSTREAMED, MEMCOMPILE]
    peers = [way for way in PEERS if way.name == case.peer and chosen.device.startswith("cuda")]
    return [
        way
        for way in (*WAYS, *peers)
        if way in (EAGER, PLAIN) or (way.name in chosen.ways and (case.dense or way.variant != "dense"))
    ]


def error(reference: Arrays, results: Arrays, way: Way) -> float:
    """The dense module has other parameters, a peer's kernel none: only their outputs are compared."""
    if way.variant:
        return max_error({"output": reference["output"]}, {"output": results["output"]})
    return max_error(reference, results)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = BENCHMARK.parser(__doc__, "rounds", "threads", "device", "dtype", "list")
    names = [way.name for way in (*WAYS, *PEERS)]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="see --list")
    parser.add_argument("--ways", nargs="+", choices=names, default=names, metavar="WAY", help="beside eager and compile")
    parser.add_argument("--scale", type=int, default=1, help="divides every batch, for a trial")
    parser.add_argument("--layers", type=int, default=4, help="of whole models")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or write the table, or list the cases."""
    args = _arguments(argv)
    if args.list:
        list_cases(CASES.values())
        return
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    setting = Setting.here(args.device)
    chosen = Chosen(args.device, Size(args.scale, args.layers), DTYPES[args.dtype], args.rounds, tuple(args.ways))
    for name in args.cases:
        with contextlib.closing(Ways(CASES[name], setting, kept, chosen)) as ways:
            ways.run()


if __name__ == "__main__":
    main()
