"""Networks for images, patch by patch: transient memory, step time, time of the first call, error. Rows go to one CSV.

    python benchmarks/patch.py                                      # all cases, hours on two cores
    python benchmarks/patch.py --cases mobilenetv2-224 unet16-512 --overheads 0 0.1 --shares 0.5
    python benchmarks/patch.py --cases vae-512 --scale 4 --rounds 1 --results trial.csv
    python benchmarks/patch.py --cases planned                      # those that are planned only, seconds each
    python benchmarks/patch.py --list                               # what the cases are
    python benchmarks/patch.py --table                              # write the table in benchmarks/README.md

Every way runs in a process of its own; all ways of a case stay alive and take turns, step by step. Eager is what errors are
measured against, and plain torch.compile what times are: both always run.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch

from benchmarks.core.command import DTYPES, Benchmark, list_cases
from benchmarks.core.rows import Kept, Setting
from benchmarks.core.steps import Arrays, max_error
from benchmarks.core.turns import Turns
from benchmarks.core.ways import EAGER, PLAIN, Way
from benchmarks.core.workers import ERRORS, Remote, failure
from benchmarks.patch_cases import CASES, Case
from benchmarks.patch_running import TILING, Running, planned, within_overhead, within_share
from benchmarks.patch_table import Row, said, tables

BENCHMARK = Benchmark("patch", Row, tables, said)


@dataclass(frozen=True)
class Chosen:
    """What the command line asks for. ``planned_overheads``: of cases that are planned only; ``tiling``: whether the libraries'
    own tilings run too."""

    device: str
    scale: int
    dtype: torch.dtype
    rounds: int
    overheads: tuple[float, ...]
    shares: tuple[float, ...]
    planned_overheads: tuple[float, ...] = (0.0, 0.03, 0.1, 0.25)
    tiling: bool = True


class Ways(Turns[Row]):
    """The ways of one case."""

    def __init__(self, case: Case, setting: Setting, kept: Kept[Row], chosen: Chosen) -> None:
        super().__init__(kept, setting)
        self.case, self.chosen = case, chosen
        self.eager: Arrays = {}

    def run(self) -> None:
        """All ways that apply."""
        for way in ways_of(self.case, self.chosen):
            if self.case.planned:
                self._plan(way)
            elif way.share is None or PLAIN.name in self.alive:  # there is no share of what failed
                self._start(way)
        self.time(self.chosen.rounds)

    def _plan(self, way: Way) -> None:
        row = self.row(way)
        try:
            self.put(way.name, planned(self.case, way, self.chosen.scale, row))
        except ERRORS as error:
            self.put(way.name, row, status="failed", note=failure(error).message)

    def _start(self, way: Way) -> None:
        if way.share is not None:  # of plain's transient bytes, as bytes of everything alive
            plain = self.rows[PLAIN.name]
            way = way.within((plain.entry_bytes or 0) + int(way.share * (plain.transient_bytes or 0)))
        chosen = self.chosen
        self.prepare(way, functools.partial(Running, self.case, way, chosen.device, chosen.scale, chosen.dtype))

    def row(self, way: Way) -> Row:
        """Of the case, at its scale."""
        dtype = "" if self.case.planned else str(self.chosen.dtype).removeprefix("torch.")
        columns = {"case": self.case.name, "dtype": dtype, "scale": self.chosen.scale, "way": way.name}
        return self.setting.row(Row, ours=way.ours, budget_bytes=way.budget_bytes, **columns)

    def completed(self, way: Way, worker: Remote, row: Row) -> Row:
        """Its error beside eager, its first call beside plain."""
        results: Arrays = worker.ask("results")
        if way == EAGER:
            self.eager = results
        elif self.eager:
            row = replace(row, max_error=max_error(self.eager, results))
        return replace(row, first_call_ratio=self.to_reference("first_call_seconds", row))


def ways_of(case: Case, chosen: Chosen) -> list[Way]:
    """The ways to measure or to plan a case, in order."""
    if case.planned:
        return [within_overhead(share) for share in chosen.planned_overheads]
    tiling = [TILING] if case.tiled is not None and chosen.tiling else []
    ours = [*map(within_overhead, chosen.overheads), *map(within_share, chosen.shares)]
    return [EAGER, PLAIN, *ours, *tiling]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = BENCHMARK.parser(__doc__, "rounds", "threads", "device", "dtype", "list")
    names = [*CASES, "planned", "all"]
    parser.add_argument("--cases", nargs="+", choices=names, default=["all"], metavar="CASE", help="see --list; or planned")
    parser.add_argument("--overheads", nargs="*", type=float, default=[0.0, 0.1], help="shares of extra multiply-adds")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5], help="budgets, as shares of plain's transient bytes")
    help_planned = "the same for the cases that are planned only"
    parser.add_argument("--planned-overheads", nargs="*", type=float, default=Chosen.planned_overheads, help=help_planned)
    parser.add_argument("--no-tiling", action="store_true", help="without the libraries' own tilings")
    parser.add_argument("--scale", type=int, default=1, help="divides the sides of every image, for a trial")
    return parser.parse_args(argv)


def chosen_cases(names: Sequence[str]) -> list[Case]:
    """The cases of those names; "all", and "planned": those that do not run."""
    return [case for case in CASES.values() if case.name in names or "all" in names or ("planned" in names and case.planned)]


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
    shares = (tuple(args.overheads), tuple(args.shares), tuple(args.planned_overheads))
    chosen = Chosen(args.device, args.scale, DTYPES[args.dtype], args.rounds, *shares, tiling=not args.no_tiling)
    for case in chosen_cases(args.cases):
        if case.package and importlib.util.find_spec(case.package) is None:
            print(f"{case.name:22} left out: it needs the package {case.package}")
            continue
        with closing(Ways(case, setting, kept, chosen)) as ways:
            ways.run()


if __name__ == "__main__":
    main()
