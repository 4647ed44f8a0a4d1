"""``python -m tests.fuzz --seconds 600 --seed 1``: random programs against eager until the time is over.

Every program is made from its seed alone. Most run at the level "planned" (the plan by the model of the lowering, interpreted),
one in ``--lowered-every`` at "lowered" (lowered as it would be compiled, placed, interpreted), and one in ``--compiled-every`` at
"compiled" (kernels, and a measured peak). What fails is made small and written as a script. Exits with 1 where a fault was found.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> int:
    """The command."""
    args = arguments()
    cache = Path(tempfile.gettempdir()) / f"memcompile-fuzz-{os.getuid()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("MEMCOMPILE_CACHE_DIR", str(cache / "memcompile"))
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.summary:
        return counted(args)
    if args.workers > 1:
        return several(args)

    from tests.fuzz import generate as ours
    from tests.fuzz import smith
    from tests.fuzz.campaign import Campaign, faults_among, lines_of, summary

    generate: Callable[[int], Any] = smith.generate if args.nnsmith else ours.generate
    if args.show:
        print(generate(args.seed))
        return 0
    start = time.monotonic()
    campaign = Campaign(args.log, args.shrink_seconds)
    for seed in range(args.seed + args.worker, args.seed + args.programs, args.stride):
        if time.monotonic() > start + args.seconds:
            break
        number = seed - args.seed + 1
        compiled = args.compiled_every and number % args.compiled_every == 0
        lowered = args.lowered_every and number % args.lowered_every == 0
        campaign.try_one(generate(seed), "compiled" if compiled else "lowered" if lowered else "planned")
    lines = lines_of([args.log / "programs.jsonl"])
    if args.stride == 1:
        conclude(summary(lines, time.monotonic() - start), args.log)
    return 1 if faults_among(lines) else 0


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="make fuzz FUZZ_ARGS=...", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="wall-clock time to spend")
    parser.add_argument("--seed", type=int, default=1, help="the first program's")
    parser.add_argument("--programs", type=int, default=10**9, help="at most so many")
    parser.add_argument("--workers", type=int, default=1, help="processes at the same time")
    parser.add_argument("--lowered-every", type=int, default=5, help="lower one in so many programs; 0: none")
    parser.add_argument("--compiled-every", type=int, default=20, help="compile one in so many programs; 0: none")
    parser.add_argument("--shrink-seconds", type=float, default=60.0, help="for each new kind of fault")
    parser.add_argument("--nnsmith", action="store_true", help="networks of NNSmith instead of our own programs (see smith.py)")
    parser.add_argument("--log", type=Path, default=Path("fuzz-log"), help="folder of the log")
    parser.add_argument("--summary", action="store_true", help="run nothing: what the logs in --log and below say")
    parser.add_argument("--table", type=Path, help="with --summary: a page whose table is written anew: benchmarks/README.md")
    parser.add_argument("--show", action="store_true", help="print the program of --seed, and end")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--stride", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def counted(args: argparse.Namespace) -> int:
    """All campaigns in a folder, as one."""
    from benchmarks.core.table import write_table
    from tests.fuzz.campaign import faults_among, lines_of, logs, summary, table

    lines = lines_of(logs(args.log))
    print(f"{summary(lines, sum(line['seconds'] for line in lines))}\n\n{table(lines)}")
    if args.table is not None:
        write_table("fuzz", table(lines), args.table)
    return 1 if faults_among(lines) else 0


def several(args: argparse.Namespace) -> int:
    """The same programs by several processes, each with a log of its own."""
    from tests.fuzz.campaign import lines_of, summary

    start = time.monotonic()
    folders = [args.log / f"worker-{i}" for i in range(args.workers)]
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.fuzz",
                *sys.argv[1:],
                "--workers",
                "1",
                "--worker",
                str(i),
                "--stride",
                str(args.workers),
                "--log",
                str(folder),
            ]
        )
        for i, folder in enumerate(folders)
    ]
    codes = [process.wait() for process in running]
    conclude(summary(lines_of(folder / "programs.jsonl" for folder in folders), time.monotonic() - start), args.log)
    return max(codes)


def conclude(text: str, folder: Path) -> None:
    """Print the summary, and keep it beside the log."""
    (folder / "summary.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
