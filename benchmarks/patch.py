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
import dataclasses
import datetime
import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # the first call's seconds are those of compiling
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch

from benchmarks.patch_cases import CASES, Case
from benchmarks.patch_running import EAGER, PLAIN, TILING, Prepared, Way, plan, remote, within_overhead, within_share
from benchmarks.patch_table import END, START, Row, table
from benchmarks.rows import KeptRows, Setting
from benchmarks.stepping import Arrays, max_error
from benchmarks.table import README, between
from benchmarks.turns import Turns
from benchmarks.workers import ERRORS, Remote

RESULTS = Path(__file__).resolve().parent / "results" / "patch.csv"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


class Results(KeptRows[Row]):
    """The rows by what they measure; each is said as it comes."""

    def __init__(self, path: Path) -> None:
        super().__init__(Row, path)

    def put(self, row: Row) -> None:
        """Add it, and write the file."""
        super().put(row)
        _say(row)


class Benchmark(Turns[Row]):
    """One case: prepares its ways one after the other, keeps them alive, then times them in turns."""

    def __init__(self, case: Case, setting: Setting, results: Results, chosen: Chosen) -> None:
        super().__init__(results.put, PLAIN.name)
        self.case, self.setting, self.chosen = case, setting, chosen
        self.reference: Arrays | None = None
        self.plain: Prepared | None = None

    def run(self) -> None:
        """All ways that apply."""
        for way in ways_of(self.case, self.chosen):
            if self.case.planned:
                self._plan(way)
            elif way.transient_share is None or self.plain is not None:  # there is no share of what failed
                self._start(way)
        if self.chosen.rounds:
            self.time(self.chosen.rounds)

    def _plan(self, way: Way) -> None:
        row = self._row(way)
        try:
            self.put(_with(row, plan(self.case, way, self.chosen.scale)))
        except ERRORS as error:
            self.put(dataclasses.replace(row, status="failed", note=f"{type(error).__name__}: {error}".partition("\n")[0]))

    def _start(self, way: Way) -> None:
        way = self._with_budget(way)
        row = dataclasses.replace(self._row(way), budget_bytes=way.memory_budget)
        chosen = self.chosen
        worker = remote(self.case.name, way, chosen.device, chosen.scale, chosen.dtype, self.setting.threads)
        self.prepare(worker, row, functools.partial(self._measured, way))

    def _with_budget(self, way: Way) -> Way:
        """A share of plain's transient bytes as bytes of everything alive."""
        if way.transient_share is None or self.plain is None or self.plain.peak_bytes is None:
            return way
        transient = self.plain.peak_bytes - self.plain.entry_bytes
        return dataclasses.replace(way, memory_budget=self.plain.entry_bytes + int(way.transient_share * transient))

    def _measured(self, way: Way, worker: Remote, row: Row) -> Row:
        found: Prepared = worker.ask("prepare")
        row = _with(row, found)
        results: Arrays = worker.ask("results")
        if way == EAGER:
            self.reference = results
        elif self.reference is not None:
            row = dataclasses.replace(row, max_error=max_error(self.reference, results))
        if way == PLAIN:
            self.plain = found
        if found.first_call_seconds is None or self.plain is None or self.plain.first_call_seconds is None:
            return row
        return dataclasses.replace(row, first_call_ratio=found.first_call_seconds / self.plain.first_call_seconds)

    def _row(self, way: Way) -> Row:
        setting, case = self.setting, self.case
        code = setting.code if way.kind == "memcompile" else ""
        dtype = "" if case.planned else str(self.chosen.dtype).removeprefix("torch.")
        today = datetime.date.today().isoformat()
        origin = (today, setting.device, setting.threads, setting.torch, code)
        return Row(*origin, case.name, dtype, self.chosen.scale, way.name)


def ways_of(case: Case, chosen: Chosen) -> list[Way]:
    """The ways to measure or to plan a case, in order."""
    if case.planned:
        return [within_overhead(share) for share in chosen.planned_overheads]
    tiling = [TILING] if case.tiled is not None and chosen.tiling else []
    ours = [*map(within_overhead, chosen.overheads), *map(within_share, chosen.shares)]
    return [EAGER, PLAIN, *ours, *tiling]


def _with(row: Row, found: Prepared) -> Row:
    """What `Prepared` says."""
    if found.patched is not None:
        row = dataclasses.replace(
            row,
            patch_peak_bytes=found.patched.peak_bytes,
            patch_base_bytes=found.patched.base_peak_bytes,
            macs=found.patched.macs,
            base_macs=found.patched.base_macs,
            plan_seconds=found.patched.seconds,
            stages=found.patched.stages,
        )
    return dataclasses.replace(
        row,
        status="planned" if found.peak_bytes is None else "ok",
        entry_bytes=found.entry_bytes,
        peak_bytes=found.peak_bytes,
        transient_bytes=None if found.peak_bytes is None else found.peak_bytes - found.entry_bytes,
        planned_peak_bytes=found.planned_peak_bytes,
        first_call_seconds=found.first_call_seconds,
        note=found.note,
    )


def _say(row: Row) -> None:
    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def kib(size_bytes: int | None) -> str:
        return show(None if size_bytes is None else size_bytes / 2**10, ".1f")

    print(
        f"{row.case:22} {row.way:20} {row.status:8} transient {kib(row.transient_bytes):>10} KiB"
        f"  patches {kib(row.patch_base_bytes)} -> {kib(row.patch_peak_bytes)} KiB at x {show(row.mac_factor, '.3f')}"
        f"  step {show(row.seconds, '.4f')} s x{show(row.ratio, '.3f')}"
        f" [{show(row.ratio_q1, '.3f')}, {show(row.ratio_q3, '.3f')}]"
        f"  first call {show(row.first_call_seconds, '.1f')} s  error {show(row.max_error, '.1e')}  {row.stages} {row.note}",
        flush=True,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*CASES, "planned", "all"]
    parser.add_argument("--cases", nargs="+", choices=names, default=["all"], metavar="CASE", help="see --list; or planned")
    parser.add_argument("--overheads", nargs="*", type=float, default=[0.0, 0.1], help="shares of extra multiply-adds")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5], help="budgets, as shares of plain's transient bytes")
    help_planned = "the same for the cases that are planned only"
    parser.add_argument("--planned-overheads", nargs="*", type=float, default=Chosen.planned_overheads, help=help_planned)
    parser.add_argument("--no-tiling", action="store_true", help="without the libraries' own tilings")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each way; 0: no timing")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as torch chooses")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--scale", type=int, default=1, help="divides the sides of every image, for a trial")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table in benchmarks/README.md")
    parser.add_argument("--list", action="store_true", help="only say what the cases are")
    return parser.parse_args(argv)


def chosen_cases(names: Sequence[str]) -> list[Case]:
    """The cases of those names; "all", and "planned": those that do not run."""
    return [case for case in CASES.values() if case.name in names or "all" in names or ("planned" in names and case.planned)]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or write the table, or list the cases."""
    args = _arguments(argv)
    if args.list:
        print("\n".join(f"{case.name:24}{case.what}" for case in CASES.values()))
        return
    results = Results(args.results)
    if args.table:
        README.write_text(between(README.read_text(), START, END, table(list(results))))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    setting = Setting.here(args.device)
    shares = (tuple(args.overheads), tuple(args.shares), tuple(args.planned_overheads))
    chosen = Chosen(args.device, args.scale, DTYPES[args.dtype], args.rounds, *shares, tiling=not args.no_tiling)
    for case in chosen_cases(args.cases):
        if case.package and importlib.util.find_spec(case.package) is None:
            print(f"{case.name:22} left out: it needs the package {case.package}")
            continue
        with closing(Benchmark(case, setting, results, chosen)) as benchmark:
            benchmark.run()


if __name__ == "__main__":
    main()
