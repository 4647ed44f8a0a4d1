"""The command line of a benchmark: options that several have, its CSV, its table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from benchmarks.core.rows import ROOT, Kept, Row
from benchmarks.core.table import README, write_table

R = TypeVar("R", bound=Row)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPTIONS: dict[str, dict[str, Any]] = {
    "rounds": {"type": int, "default": 15, "help": "steps of each way; 0: no timing"},
    "threads": {"type": int, "default": 0, "help": "of the CPU; 0: as torch chooses"},
    "device": {"default": "cuda" if torch.cuda.is_available() else "cpu"},
    "batch-scale": {"type": int, "default": 1, "help": "multiplies every batch (a GPU wants more)"},
    "resume": {"action": "store_true", "help": "skip rows that the same versions measured"},
    "dtype": {"choices": DTYPES, "default": "float32", "help": "of cases that have none of their own"},
    "list": {"action": "store_true", "help": "only say what the cases are"},
    "readme": {"type": Path, "default": README},
}
"""What `Benchmark.parser` adds by name."""


@dataclass(frozen=True)
class Benchmark(Generic[R]):
    """``name``: of the script, its CSV and the markers of its table. ``said``: what is printed of a row as it comes.
    ``prints``: its table is printed, not written into benchmarks/README.md."""

    name: str
    kind: type[R]
    table: Callable[[Sequence[R]], str]
    said: Callable[[R], str]
    prints: bool = False

    @property
    def results(self) -> Path:
        """Its CSV."""
        return ROOT / "benchmarks" / "results" / f"{self.name}.csv"

    def parser(self, doc: str | None, *options: str) -> argparse.ArgumentParser:
        """``--results``, ``--table``, and those of `OPTIONS` that are named."""
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        for name in options:
            parser.add_argument(f"--{name}", **OPTIONS[name])
        parser.add_argument("--results", type=Path, default=self.results)
        where = "print the table" if self.prints else "write the table in benchmarks/README.md"
        parser.add_argument("--table", action="store_true", help=f"only {where}, from the CSV")
        return parser

    def kept(self, args: argparse.Namespace) -> Kept[R] | None:
        """The rows to add to; None where the command line asks for their table alone, which is done."""
        kept = Kept(self.kind, args.results, self.said)
        if args.table:
            self.tabulate(kept, vars(args).get("readme", README))
            return None
        if vars(args).get("threads"):
            torch.set_num_threads(args.threads)
        return kept

    def tabulate(self, kept: Kept[R], readme: Path = README) -> None:
        """Print the table, or write it."""
        if self.prints:
            print(self.table(list(kept)))
        else:
            write_table(self.name, self.table(list(kept)), readme)


class Described(Protocol):
    """A case."""

    @property
    def name(self) -> str:
        """As it is asked for."""

    @property
    def what(self) -> str:
        """In a few words."""


def list_cases(cases: Iterable[Described]) -> None:
    """What they are, a line each."""
    for case in cases:
        print(f"{case.name:24}{case.what}")
