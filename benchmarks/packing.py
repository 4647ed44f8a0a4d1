"""Packing alone: MiniMalloc's hard instances at their capacity, and generated ones of up to 50,000 buffers.

    python benchmarks/packing.py                     # both, to benchmarks/results/packing.csv; some two minutes
    python benchmarks/packing.py --only hard --seeds 20 --instances DIR   # other NAME.CAPACITY.csv files
    python benchmarks/packing.py --table             # the CSV as the tables of README.md

Beside each: the height that greedy by size reaches, as TensorFlow Lite's planner does it (Pisarchyk and Lee, "Efficient memory
management for deep neural net inference", 2020, section 5.2), and the seconds of MiniMalloc itself, measured once on such a
machine. Seconds are those of ``pack`` in one thread, after a first call that loads and compiles what is compiled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import numpy as np

from benchmarks.core.command import Benchmark
from benchmarks.core.rows import Setting, SolverRow
from benchmarks.core.table import Columns, form, table
from memcompile.solvers.places.minimalloc import read_csv
from memcompile.solvers.places.packing import Buffer, CapacityError, pack, split, validate
from memcompile.solvers.places.placement import COMPILED_FROM, best_fit, canonical
from memcompile.solvers.places.placement_search import PlacementSearch

INSTANCES = Path(__file__).resolve().parent / "data" / "minimalloc"
COUNTS = (1_000, 10_000, 50_000)
ALIGNMENT = 64
MINIMALLOC_S = {"A": 3.8, "B": 2.6, "D": 1.8, "E": 2.7, "G": 0.95, "I": 2.5, "J": 0.7}
"""google/minimalloc, built and run once on a two-core machine like the one of the tables."""

Lives = tuple[int, int, int]


@dataclass(frozen=True)
class PackingRow(SolverRow):
    """One instance, packed once a seed. ``seconds*``: median and extremes; ``height``: the highest of the seeds, empty if a
    seed found none within the time limit; ``by_size_height``: greedy by size."""

    KEY: ClassVar = ("instance",)

    instance: str
    buffers: int
    capacity: int | None
    seeds: int
    height: int | None
    lower_bound: int
    by_size_height: int
    seconds: float
    seconds_min: float
    seconds_max: float
    minimalloc_seconds: float | None
    method: str


def training(count: int, rng: np.random.Generator) -> Iterator[Lives]:
    """A step: a quarter are saved for the backward and die in the opposite order, the others live for a few ops."""
    end = 2 * count
    for i in range(count // 4):
        yield 2 * i, end - 2 * i + int(rng.integers(1, 3)), int(rng.lognormal(10, 2)) + 1
    for _ in range(count - count // 4):
        lower = int(rng.integers(0, end))
        yield lower, lower + int(rng.integers(1, 12)), int(rng.lognormal(11, 2)) + 1


def arbitrary(count: int, rng: np.random.Generator) -> Iterator[Lives]:
    """Lives of up to an eighth of the time: thousands at once."""
    for _ in range(count):
        lower = int(rng.integers(0, count))
        yield lower, lower + int(rng.integers(1, max(2, count // 8))), int(rng.integers(1, 1 << 20))


def sliding(count: int, rng: np.random.Generator) -> Iterator[Lives]:
    """One is born each time, and lives for up to 60."""
    for lower in range(count):
        yield lower, lower + int(rng.integers(1, 60)), int(rng.integers(1, 1 << 20))


FAMILIES: dict[str, Callable[[int, np.random.Generator], Iterator[Lives]]] = {
    "training": training,
    "arbitrary": arbitrary,
    "sliding": sliding,
}


def generated(family: str, count: int) -> list[Buffer]:
    """An instance of a family, the same every time."""
    return [Buffer(str(i), *lives) for i, lives in enumerate(FAMILIES[family](count, np.random.default_rng(0)))]


def by_size(buffers: Sequence[Buffer], alignment: int) -> int:
    """The height of greedy by size: the largest first, each into the smallest gap between those that live with it."""
    sizes = np.array([-(-b.size // alignment) * alignment for b in buffers])
    lowers, uppers = np.array([b.lower for b in buffers]), np.array([b.upper for b in buffers])
    starts = np.zeros(len(buffers), dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    for rank, i in enumerate(order):
        before = order[:rank]
        beside = before[(lowers[before] < uppers[i]) & (uppers[before] > lowers[i])]
        beside = beside[np.argsort(starts[beside])]
        reach = np.maximum.accumulate(np.concatenate([[0], starts[beside] + sizes[beside]]))
        gaps = starts[beside] - reach[:-1]
        fitting = np.flatnonzero(gaps >= sizes[i])
        starts[i] = reach[fitting[np.argmin(gaps[fitting])]] if len(fitting) else reach[-1]
    return int((starts + sizes).max())


def measured(
    setting: Setting,
    name: str,
    buffers: Sequence[Buffer],
    capacity: int | None,
    alignment: int,
    seeds: int,
    time_limit_s: float,
) -> PackingRow:
    """Pack an instance once a seed and check every answer."""
    seconds, heights, methods = [], [], []
    for seed in range(seeds):
        start = time.perf_counter()
        try:
            packing = pack(buffers, capacity=capacity, alignment=alignment, time_limit_s=time_limit_s, seed=seed)
            heights.append(packing.height)
        except CapacityError as error:
            packing = error.best
        seconds.append(time.perf_counter() - start)
        methods.append(packing.method)
        validate(buffers, packing.offsets, alignment=alignment)
    return setting.row(
        PackingRow,
        instance=name,
        buffers=len(buffers),
        capacity=capacity,
        seeds=seeds,
        height=max(heights) if len(heights) == seeds else None,
        lower_bound=packing.lower_bound,
        by_size_height=by_size(buffers, alignment),
        seconds=statistics.median(seconds),
        seconds_min=min(seconds),
        seconds_max=max(seconds),
        minimalloc_seconds=MINIMALLOC_S.get(name),
        method="; ".join(dict.fromkeys(methods)),
    )


def _height(row: PackingRow) -> str:
    height = "none" if row.height is None else f"{row.height / row.lower_bound:.4f}"
    return height if row.capacity is None else f"{height} (capacity {row.capacity / row.lower_bound:.4f})"


COLUMNS: Columns[PackingRow] = (
    ("instance", lambda row: row.instance),
    ("buffers", lambda row: str(row.buffers)),
    ("height / bound", _height),
    ("by size / bound", lambda row: f"{row.by_size_height / row.lower_bound:.4f}"),
    ("seconds (from, to)", lambda row: f"{row.seconds:.2f} ({row.seconds_min:.2f}, {row.seconds_max:.2f})"),
    ("MiniMalloc", lambda row: form(row.minimalloc_seconds, ".2f", " s")),
    ("found by", lambda row: row.method),
)


def tables(rows: Sequence[PackingRow]) -> str:
    """Heights as multiples of the lower bound."""
    return table(COLUMNS, rows)


def said(row: PackingRow) -> str:
    """A row as it comes."""
    return f"{row.instance:16} {row.buffers:6d} buffers  {row.seconds:7.3f} s  {row.method}"


BENCHMARK = Benchmark("packing", PackingRow, tables, said, prints=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for; a newer row takes the older one's place."""
    parser = BENCHMARK.parser(__doc__)
    parser.add_argument("--only", choices=("hard", "generated"), default=None)
    parser.add_argument("--instances", type=Path, default=INSTANCES, help="a folder of NAME.CAPACITY.csv")
    parser.add_argument("--seeds", type=int, default=7, help="of the hard instances; of the generated ones at most 3")
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="buffers of the generated instances")
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="SECONDS", help="of a hard instance")
    args = parser.parse_args(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    _compile()
    for row in _rows(Setting.here(), args):
        kept.put(row)
    BENCHMARK.tabulate(kept)


def _rows(setting: Setting, args: argparse.Namespace) -> Iterator[PackingRow]:
    if args.only in (None, "hard"):
        for path in sorted(args.instances.glob("*.*.csv")):
            name, capacity, _ = path.name.split(".")
            buffers = read_csv(path.read_text())
            yield measured(setting, name, buffers, int(capacity), 1, args.seeds, args.time_limit)
    if args.only in (None, "generated"):
        for family in FAMILIES:
            for count in args.counts:
                yield measured(
                    setting, f"{family}-{count}", generated(family, count), None, ALIGNMENT, min(3, args.seeds), 10.0
                )


def _compile() -> None:
    """Load and compile what later calls use."""
    (part,) = split(generated("sliding", COMPILED_FROM), ALIGNMENT)
    order = np.arange(COMPILED_FROM)
    best_fit(part, order)
    canonical(part, order)
    (part,) = split(generated("sliding", 200), ALIGNMENT)
    PlacementSearch(part, part.lower_bound, np.ones(int(part.ends.max()))).attempt(order[:200], upwards=True, steps=100)


if __name__ == "__main__":
    main()
