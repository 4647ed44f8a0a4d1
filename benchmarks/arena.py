"""The arena of a whole step: its height against the lower bound, the measured peak, allocations, page faults and step time.

    python benchmarks/arena.py                      # all models, half an hour on two cores
    python benchmarks/arena.py --models vit unet    # add or renew rows
    python benchmarks/arena.py --table              # write the table in benchmarks/README.md

No budget: memcompile with its arena, memcompile without one and plain torch.compile, each in a process of its own, take turns
step by step. Under a budget the arena is on in `rematerialize.py`.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

from benchmarks.core.command import Benchmark
from benchmarks.core.rows import Setting, StepRow
from benchmarks.core.table import Columns, mib, table
from benchmarks.core.turns import interleave
from benchmarks.core.ways import PLAIN
from benchmarks.core.workers import Remote
from benchmarks.models import CASES
from benchmarks.peers import Running, memcompile_way
from benchmarks.rematerialize import DEFAULT_MODELS

OFF, STEP = (memcompile_way(f"arena {scope}", None, arena=scope) for scope in ("off", "step"))


@dataclass(frozen=True)
class Row(StepRow):
    """One model. Bytes and counts are of one step; `reserved_bytes`: what a GPU's allocator holds with the arena, 0 on the CPU;
    `calls`: allocations that the compiled code makes; `faults`: minor page faults. `ratio`s: step time over plain's in the same
    round, median and quartiles."""

    KEY: ClassVar = ("device", "model")

    model: str
    plain_peak_bytes: int = 0
    off_peak_bytes: int = 0
    planned_peak_bytes: int = 0
    measured_peak_bytes: int = 0
    reserved_bytes: int = 0
    height_bytes: int = 0
    lower_bound_bytes: int = 0
    placed_bytes: int = 0
    outside_bytes: int = 0
    calls_off: int = 0
    calls: int = 0
    faults_plain: int = 0
    faults_off: int = 0
    faults: int = 0
    plain_seconds: float = 0.0
    off_ratio: float = 0.0
    off_ratio_q1: float = 0.0
    off_ratio_q3: float = 0.0
    ratio: float = 0.0
    ratio_q1: float = 0.0
    ratio_q3: float = 0.0
    first_call_ratio: float = 0.0
    note: str = ""


class Training(Running[Row]):
    """A training step that fills its part of the row of its model."""

    def measured(self, row: Row) -> Row:
        """Its peak, and the arenas of its graphs together."""
        peak_bytes = self.peak().peak_bytes
        if self.way == PLAIN:
            return replace(row, plain_peak_bytes=peak_bytes)
        if self.way == OFF:
            return replace(row, off_peak_bytes=peak_bytes)
        report = self.report()
        arenas = [graph["arena"] for graph in report.graphs if graph["arena"] is not None]
        return replace(
            row,
            measured_peak_bytes=peak_bytes,
            reserved_bytes=self.reserved_bytes(),
            planned_peak_bytes=report.planned_peak_bytes,
            height_bytes=sum(arena.height_bytes for arena in arenas),
            lower_bound_bytes=sum(arena.lower_bound_bytes for arena in arenas),
            placed_bytes=sum(arena.placed_bytes for arena in arenas),
            outside_bytes=sum(arena.outside_bytes for arena in arenas),
            calls_off=sum(arena.calls_before for arena in arenas),
            calls=sum(arena.calls_after for arena in arenas),
            note="; ".join(dict.fromkeys(arena.refused or arena.method for arena in arenas)),
        )


def measure(model: str, setting: Setting, args: argparse.Namespace) -> Row:
    """Compile and time the three ways."""
    make = functools.partial(Training, CASES[model], device=args.device, batch_scale=args.batch_scale)
    ways = {way.name: Remote(way.name, functools.partial(make, way), setting.threads) for way in (PLAIN, OFF, STEP)}
    row = setting.row(Row, model=model)
    try:
        first_call_seconds = {name: worker.ask("first_call") for name, worker in ways.items()}
        for worker in ways.values():
            row = worker.ask("measured", row)
        timings = interleave(ways, PLAIN.name, args.rounds)
        faults = {name: worker.ask("page_faults") for name, worker in ways.items()}
    finally:
        for worker in ways.values():
            worker.close()
    on, off = timings[STEP.name], timings[OFF.name]
    return replace(
        row,
        faults_plain=faults[PLAIN.name],
        faults_off=faults[OFF.name],
        faults=faults[STEP.name],
        plain_seconds=timings[PLAIN.name].seconds,
        off_ratio=off.ratio,
        off_ratio_q1=off.ratio_q1,
        off_ratio_q3=off.ratio_q3,
        ratio=on.ratio,
        ratio_q1=on.ratio_q1,
        ratio_q3=on.ratio_q3,
        first_call_ratio=first_call_seconds[STEP.name] / first_call_seconds[PLAIN.name],
    )


_mib = functools.partial(mib, spec=".2f")
COLUMNS: Columns[Row] = (
    ("model", lambda row: row.model),
    ("plain peak", lambda row: f"{_mib(row.plain_peak_bytes)} MiB"),
    ("peak without / with the arena", lambda row: f"{_mib(row.off_peak_bytes)} / {_mib(row.measured_peak_bytes)}"),
    ("planned", lambda row: _mib(row.planned_peak_bytes)),
    ("height (lower bound)", lambda row: f"{_mib(row.height_bytes)} ({_mib(row.lower_bound_bytes)})"),
    ("fragments", lambda row: f"{row.height_bytes / max(1, row.lower_bound_bytes) - 1:.2%}"),
    ("allocations", lambda row: f"{row.calls_off} → {row.calls}"),
    ("page faults: plain / without / with", lambda row: f"{row.faults_plain:,} / {row.faults_off:,} / {row.faults:,}"),
    ("step without the arena", lambda row: f"{row.off_ratio:.3f} ({row.off_ratio_q1:.3f} to {row.off_ratio_q3:.3f})"),
    ("step with it", lambda row: f"{row.ratio:.3f} ({row.ratio_q1:.3f} to {row.ratio_q3:.3f})"),
    ("first call", lambda row: f"{row.first_call_ratio:.2f}"),
)


def tables(rows: Sequence[Row]) -> str:
    """One model a line."""
    devices = dict.fromkeys(f"{row.device}, {row.threads} threads, torch {row.torch}, {row.date}" for row in rows)
    return f"{', '.join(devices)}.\n\n{table(COLUMNS, rows)}\n"


BENCHMARK = Benchmark("arena", Row, tables, lambda row: tables([row]))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or write the table."""
    parser = BENCHMARK.parser(__doc__, "threads", "device", "batch-scale")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each way")
    parser.add_argument("--models", nargs="+", choices=sorted(CASES), default=list(DEFAULT_MODELS))
    args = parser.parse_args(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    setting = Setting.here(args.device)
    for model in args.models:
        kept.put(measure(model, setting, args))


if __name__ == "__main__":
    main()
