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
import dataclasses
import datetime
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # the first call's seconds are those of compiling
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch

from benchmarks.low_rank_cases import CASES, Case, Size
from benchmarks.low_rank_peers import missing
from benchmarks.low_rank_running import (
    EAGER,
    MEMCOMPILE,
    PEERS,
    PLAIN,
    UNSTREAMED,
    WAYS,
    Prepared,
    Way,
    remote,
)
from benchmarks.low_rank_table import END, START, Row, table
from benchmarks.rows import KeptRows, Setting
from benchmarks.stepping import Arrays, max_error
from benchmarks.table import README, between
from benchmarks.turns import Turns
from benchmarks.workers import Remote

RESULTS = Path(__file__).resolve().parent / "results" / "low_rank.csv"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Chosen:
    """What the command line asks for."""

    device: str
    size: Size
    dtype: torch.dtype
    rounds: int
    ways: tuple[str, ...]


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
            row = self._row(way)
            if way in PEERS and (reason := missing(way.name)):
                self.put(dataclasses.replace(row, status="missing", note=reason))
            else:
                worker = remote(
                    self.case.name, way, self.chosen.device, self.chosen.size, self.chosen.dtype, self.setting.threads
                )
                self.prepare(worker, row, functools.partial(self._measured, way))
        if self.chosen.rounds and not self.case.planned:
            self.time(self.chosen.rounds)

    def _measured(self, way: Way, worker: Remote, row: Row) -> Row:
        found: Prepared = worker.ask("prepare")
        row = _with_plan(row, found)
        if self.case.planned:
            return row
        results: Arrays = worker.ask("results")
        if way == EAGER:
            self.reference = results
        if way == PLAIN:
            self.plain = found
        if self.reference is not None and way != EAGER:
            row = dataclasses.replace(row, max_error=_error(self.reference, results, way))
        if found.first_call_seconds is None or self.plain is None or self.plain.first_call_seconds is None:
            return row
        return dataclasses.replace(row, first_call_ratio=found.first_call_seconds / self.plain.first_call_seconds)

    def _row(self, way: Way) -> Row:
        setting, size = self.setting, self.chosen.size
        dtype = str(self.case.dtype or self.chosen.dtype).removeprefix("torch.")
        code = setting.code if way.kind == "memcompile" else ""
        today = datetime.date.today().isoformat()
        origin = (today, setting.device, setting.threads, setting.torch, code)
        return Row(*origin, self.case.name, dtype, size.scale, size.layers, way.name)


def ways_of(case: Case, chosen: Chosen) -> list[Way]:
    """The ways to measure a case, in order."""
    if case.planned:
        return [UNSTREAMED, MEMCOMPILE]
    peers = [way for way in PEERS if way.name == case.peer and chosen.device.startswith("cuda")]
    return [
        way
        for way in (*WAYS, *peers)
        if way in (EAGER, PLAIN) or (way.name in chosen.ways and (case.dense or way.kind != "dense"))
    ]


def _error(reference: Arrays, results: Arrays, way: Way) -> float:
    """The dense module has other parameters, a peer's kernel none: only their outputs are compared."""
    if way.kind in ("dense", "peer"):
        return max_error({"output": reference["output"]}, {"output": results["output"]})
    return max_error(reference, results)


def _with_plan(row: Row, found: Prepared) -> Row:
    """What `Prepared` says; of a planned case, the transient bytes are the planned ones."""
    peak = found.planned_peak_bytes if found.peak_bytes is None else found.peak_bytes
    assert peak is not None
    return dataclasses.replace(
        row,
        status="planned" if found.peak_bytes is None else "ok",
        entry_bytes=found.entry_bytes,
        peak_bytes=found.peak_bytes,
        transient_bytes=peak - found.entry_bytes,
        planned_peak_bytes=found.planned_peak_bytes,
        first_call_seconds=found.first_call_seconds,
        blocks=" ".join(str(blocks) for blocks, _ in found.tiles),
        block_rows=" ".join(str(rows) for _, rows in found.tiles),
        note=found.note,
    )


def _say(row: Row) -> None:
    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    transient = None if row.transient_bytes is None else row.transient_bytes / 2**20
    print(
        f"{row.case:22} {row.dtype:8} {row.way:24} {row.status:8} transient {show(transient, '9.2f')} MiB"
        f"  step {show(row.seconds, '.4f')} s x{show(row.ratio, '.3f')}"
        f" [{show(row.ratio_q1, '.3f')}, {show(row.ratio_q3, '.3f')}]"
        f"  first call {show(row.first_call_seconds, '.1f')} s  blocks {row.blocks or '-'} of {row.block_rows or '-'}"
        f"  error {show(row.max_error, '.1e')}  {row.note}",
        flush=True,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [way.name for way in (*WAYS, *PEERS)]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="see --list")
    parser.add_argument("--ways", nargs="+", choices=names, default=names, metavar="WAY", help="beside eager and compile")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each way; 0: no timing")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as torch chooses")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of cases that have none of their own")
    parser.add_argument("--scale", type=int, default=1, help="divides every batch, for a trial")
    parser.add_argument("--layers", type=int, default=4, help="of whole models")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table in benchmarks/README.md")
    parser.add_argument("--list", action="store_true", help="only say what the cases are")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or write the table, or list the cases."""
    args = _arguments(argv)
    if args.list:
        print("\n".join(f"{case.name:24}{case.what}" for case in CASES.values()))
        return
    results = Results(args.results)
    if args.table:
        README.write_text(between(README.read_text(), START, END, table(list(results.rows.values()))))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    setting = Setting.here(args.device)
    chosen = Chosen(args.device, Size(args.scale, args.layers), DTYPES[args.dtype], args.rounds, tuple(args.ways))
    for name in args.cases:
        with contextlib.closing(Benchmark(CASES[name], setting, results, chosen)) as benchmark:
            benchmark.run()


if __name__ == "__main__":
    main()
