"""Matrix products in single precision by MKL and by oneDNN, in blocks of rows as streamed chains run them.

python benchmarks/products.py        # half a minute; prints a table
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch

from memcompile.machine.device import device_name
from memcompile.streaming.linear import LINEAR

ROWS = (128, 224, 416, 8192)
SHAPES = ((768, 64), (64, 3072), (3072, 64), (768, 256), (256, 3072), (3072, 256))


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Median of a call."""
    call()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{device_name(torch.device('cpu'))}, {args.threads} threads, torch {torch.__version__}. GFLOP/s.\n")
    print("| rows | inner -> columns | MKL | oneDNN | ratio |\n| --- | --- | --- | --- | --- |")
    for rows in ROWS:
        for inner, columns in SHAPES:
            x, weight = torch.randn(rows, inner), torch.randn(columns, inner)
            out = torch.empty(rows, columns)
            times = [
                seconds(lambda x=x, w=weight, out=out: torch.mm(x, w.t(), out=out), args.rounds),  # type: ignore[misc]
                seconds(lambda x=x, w=weight: LINEAR(x, w, None), args.rounds),  # type: ignore[misc]
            ]
            mkl, onednn = (2e-9 * rows * inner * columns / s for s in times)
            print(f"| {rows} | {inner} -> {columns} | {mkl:.0f} | {onednn:.0f} | {onednn / mkl:.2f} |")


if __name__ == "__main__":
    main()
