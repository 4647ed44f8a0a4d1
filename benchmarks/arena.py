"""The arena of a whole step: its height against the lower bound, the measured peak, allocations, page faults and step time.

    python benchmarks/arena.py                      # all models, half an hour on two cores
    python benchmarks/arena.py --models vit unet    # add or renew rows
    python benchmarks/arena.py --table              # write the table in benchmarks/README.md

No budget: memcompile with its arena, memcompile without one and plain torch.compile, each in a process of its own, take turns
step by step. Under a budget the arena is on in `rematerialize.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch

from benchmarks.models import CASES
from benchmarks.peers import PLAIN, Way, interleave
from benchmarks.rematerialize import DEFAULT_MODELS
from benchmarks.rows import Setting, read_rows, write_rows
from benchmarks.table import README, between
from benchmarks.workers import Prepared, Worker

RESULTS = Path(__file__).resolve().parent / "results" / "arena.csv"
START, END = "<!-- results: written by arena.py -->", "<!-- end of arena results -->"
OFF, STEP = Way("arena off", "memcompile", arena="off"), Way("arena step", "memcompile", arena="step")


@dataclasses.dataclass(frozen=True)
class Row:
    """One model. Bytes and counts are of one step; `reserved_bytes`: what a GPU's allocator holds with the arena, 0 on the CPU;
    `calls`: allocations that the compiled code makes; `faults`: minor page faults. `ratio`s: step time over plain's in the same
    round, median and quartiles."""

    date: str
    device: str
    threads: int
    torch: str
    code: str
    model: str
    plain_peak_bytes: int
    off_peak_bytes: int
    planned_peak_bytes: int
    measured_peak_bytes: int
    reserved_bytes: int
    height_bytes: int
    lower_bound_bytes: int
    placed_bytes: int
    outside_bytes: int
    calls_off: int
    calls: int
    faults_plain: int
    faults_off: int
    faults: int
    plain_seconds: float
    off_ratio: float
    off_ratio_q1: float
    off_ratio_q3: float
    ratio: float
    ratio_q1: float
    ratio_q3: float
    first_call_ratio: float
    note: str = ""


def measure(model: str, setting: Setting, args: argparse.Namespace) -> Row:
    """Compile and time the three ways."""
    ways = (PLAIN, OFF, STEP)
    workers = {way.name: Worker(model, way, args.device, args.batch_scale, setting.threads) for way in ways}
    try:
        found = {name: worker.prepare() for name, worker in workers.items()}
        timings = interleave(list(workers.values()), workers[PLAIN.name], args.rounds)
        faults = {name: worker.page_faults() for name, worker in workers.items()}
        reserved_bytes = workers[STEP.name].reserved_bytes()
    finally:
        for worker in workers.values():
            worker.close()
    step, off = found[STEP.name], timings[OFF.name]
    on, plain = timings[STEP.name], timings[PLAIN.name]
    return Row(
        *(datetime.date.today().isoformat(), setting.device, setting.threads, setting.torch, setting.code, model),
        plain_peak_bytes=found[PLAIN.name].peak.peak_bytes,
        off_peak_bytes=found[OFF.name].peak.peak_bytes,
        measured_peak_bytes=step.peak.peak_bytes,
        reserved_bytes=reserved_bytes,
        **_planned(step),
        faults_plain=faults[PLAIN.name],
        faults_off=faults[OFF.name],
        faults=faults[STEP.name],
        plain_seconds=plain.seconds,
        off_ratio=off.ratio,
        off_ratio_q1=off.ratio_q1,
        off_ratio_q3=off.ratio_q3,
        ratio=on.ratio,
        ratio_q1=on.ratio_q1,
        ratio_q3=on.ratio_q3,
        first_call_ratio=step.first_call_seconds / found[PLAIN.name].first_call_seconds,
    )


def _planned(step: Prepared) -> dict[str, int | str]:
    """What the report says; of several graphs, the sum of their arenas."""
    assert step.planned is not None
    arenas = step.planned.arenas
    return {
        "planned_peak_bytes": step.planned.peak_bytes,
        "height_bytes": sum(arena.height_bytes for arena in arenas),
        "lower_bound_bytes": sum(arena.lower_bound_bytes for arena in arenas),
        "placed_bytes": sum(arena.placed_bytes for arena in arenas),
        "outside_bytes": sum(arena.outside_bytes for arena in arenas),
        "calls_off": sum(arena.calls_before for arena in arenas),
        "calls": sum(arena.calls_after for arena in arenas),
        "note": "; ".join(dict.fromkeys(arena.refused or arena.method for arena in arenas)),
    }


HEAD = (
    "| model | plain peak | peak without / with the arena | planned | height (lower bound) | fragments | allocations |"
    " page faults: plain / without / with | step without the arena | step with it | first call |"
)


def table(rows: Sequence[Row]) -> str:
    """Markdown, one model a line."""
    lines = [HEAD, "|" + " --- |" * HEAD.count(" |")]
    for row in rows:
        mib = {k: v / 2**20 for k, v in dataclasses.asdict(row).items() if k.endswith("_bytes")}
        lines.append(
            f"| {row.model} | {mib['plain_peak_bytes']:.2f} MiB"
            f" | {mib['off_peak_bytes']:.2f} / {mib['measured_peak_bytes']:.2f}"
            f" | {mib['planned_peak_bytes']:.2f} | {mib['height_bytes']:.2f} ({mib['lower_bound_bytes']:.2f})"
            f" | {row.height_bytes / max(1, row.lower_bound_bytes) - 1:.2%} | {row.calls_off} → {row.calls}"
            f" | {row.faults_plain:,} / {row.faults_off:,} / {row.faults:,}"
            f" | {row.off_ratio:.3f} ({row.off_ratio_q1:.3f} to {row.off_ratio_q3:.3f})"
            f" | {row.ratio:.3f} ({row.ratio_q1:.3f} to {row.ratio_q3:.3f}) | {row.first_call_ratio:.2f} |"
        )
    devices = ", ".join(dict.fromkeys(f"{row.device}, {row.threads} threads, torch {row.torch}, {row.date}" for row in rows))
    return "\n".join([devices + ".", "", *lines, ""])


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(CASES), default=list(DEFAULT_MODELS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-scale", type=int, default=1, help="multiplies every batch")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table in benchmarks/README.md")
    args = parser.parse_args()
    rows = {(row.device, row.model): row for row in read_rows(Row, args.results)}
    if args.table:
        README.write_text(between(README.read_text(), START, END, table(list(rows.values()))))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    setting = Setting.here(args.device)
    for model in args.models:
        row = measure(model, setting, args)
        rows[row.device, row.model] = row
        write_rows(Row, rows.values(), args.results)
        print(table([row]), flush=True)


if __name__ == "__main__":
    main()
