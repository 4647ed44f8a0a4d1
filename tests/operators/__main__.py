"""``python -m tests.operators --ops add,mm --samples all --jobs 2``; see ``--help``."""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.operators", description=__doc__)
    parser.add_argument("--ops", default="*", help="names of entries, separated by commas; patterns as in a shell")
    parser.add_argument("--sources", default="op,module,optim,hop,custom,autograd", help="whose entries")
    parser.add_argument("--samples", default="1", help="of each entry and variant, so many; or 'all'")
    parser.add_argument("--level", default="planned", choices=("planned", "lowered", "compiled"))
    parser.add_argument("--budget", default="smallest", choices=("none", "smallest"))
    parser.add_argument("--infer", action="store_true", help="without gradients, also where there could be some")
    parser.add_argument("--batch", type=int, default=8, help="samples in one graph")
    parser.add_argument("--entries", type=int, default=8, help="entries in one process")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one batch")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing new after so many")
    parser.add_argument(
        "--log", type=Path, default=Path("build/operators.jsonl"), help="rows of JSON; what is there is not run again"
    )
    parser.add_argument("--again", default="", help="results, separated by commas, that are run again: different,crashed")
    parser.add_argument("--no-witness", action="store_true", help="do not ask plain Inductor where ours fails")
    parser.add_argument("--table", type=Path, help="a page whose table of counts is written anew: benchmarks/README.md")
    parser.add_argument("--summary", action="store_true", help="only print what the log says")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run, append to the log, print the counts; 1 where something differs, crashes or dies."""
    args = _arguments(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="operators-") as caches:
        for variable in ("TORCHINDUCTOR_CACHE_DIR", "MEMCOMPILE_CACHE_DIR"):
            os.environ.setdefault(variable, f"{caches}/{variable.lower()}")
        if not args.summary:
            _run(args)
    from benchmarks.core.table import write_table
    from tests.operators.summary import failures, newest, rows_of, table

    rows = [row for row in newest(rows_of(args.log)) if row["source"] in args.sources.split(",")]
    print(f"{failures(rows)}\n\n{table(rows)}")
    if args.table is not None:
        write_table("operators", table(rows), args.table)
    return int(any(row["result"] in ("different", "crashed", "died", "timeout") for row in rows))


def _run(args: argparse.Namespace) -> None:
    import torch

    from tests.operators.cases import entries
    from tests.operators.judge import Judge
    from tests.operators.summary import newest, rows_of
    from tests.operators.workers import Work, Workers

    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    patterns = args.ops.split(",")
    chosen = [e for e in entries(tuple(args.sources.split(","))) if any(fnmatch.fnmatchcase(e.name, p) for p in patterns)]
    again = args.again.split(",")
    judge = Judge(args.level, args.budget, args.batch, args.infer, not args.no_witness)
    done = frozenset(
        (row["source"], row["entry"], row["variant"], row["sample"])
        for row in newest(rows_of(args.log))
        if (row["level"], row["budget"], row.get("grad", "on")) == (judge.level, judge.budget, judge.grad)
        if row["result"] not in again
    )
    per_entry = None if args.samples == "all" else int(args.samples)
    pieces = [
        Work(tuple(chosen[start : start + args.entries]), done, per_entry) for start in range(0, len(chosen), args.entries)
    ]
    _warm(judge)
    args.log.parent.mkdir(parents=True, exist_ok=True)
    start, count = time.monotonic(), 0
    with args.log.open("a") as log:
        for row in Workers(judge, args.jobs, args.limit).run(pieces, start + args.seconds):
            print(json.dumps(row), file=log, flush=True)
            count += 1
            if row["result"] != "same":
                print(f"{row['result']:<9} {row['entry']}[{row['variant']} {row['sample']}] {row['reason'][:160]}", flush=True)
    print(f"{count} samples in {time.monotonic() - start:.0f} s", file=sys.stderr)


def _warm(judge: object) -> None:
    """Load what every process needs, by judging one sample here."""
    from tests.operators.cases import entries
    from tests.operators.judge import Judge

    assert isinstance(judge, Judge)
    sine = next(entry for entry in entries(("op",)) if entry.name == "sin")
    list(judge.judge(sine.samples()[:1]))


if __name__ == "__main__":
    sys.exit(main())
