"""Steps of several graphs: each block of a model compiled by itself, as regional compilation does, beside the model compiled as
one graph, at the same bytes.

    python benchmarks/run.py                                 # GPT-2 and Llama of 12 blocks, three budgets
    python benchmarks/run.py --models llama --budgets 60     # add or renew rows
    python benchmarks/run.py --resume                        # skip rows that the same versions measured
    python benchmarks/run.py --table                         # write the table in benchmarks/README.md

Budgets are shares of what plain regional compilation takes. Every way runs in a process of its own; all ways of a model stay
alive and take turns, step by step. A step of several graphs is seen, watched, and planned: compiling is over after the fourth.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

from torch import nn

from benchmarks.core.command import Benchmark
from benchmarks.core.rows import Kept, Setting, StepRow
from benchmarks.core.steps import Arrays
from benchmarks.core.table import Columns, by_setting, form, mib, span, table
from benchmarks.core.turns import Turns
from benchmarks.core.ways import PLAIN, Way
from benchmarks.core.workers import Remote
from benchmarks.models import CASES
from benchmarks.peers import Running, gradient_gap

BUDGETS = (60, 45, 35)
MODELS = ("gpt2", "llama")
SETTLED = 4
"""Steps until nothing is compiled any more."""
BLOCKS = "blocks"
REGIONAL = dataclasses.replace(PLAIN, name="compile blocks", variant=BLOCKS)


@dataclass(frozen=True)
class Row(StepRow):
    """What one way did on one model. Ratios are to plain regional compilation; ``ratio*``: quartiles over interleaved rounds.

    ``first_call_seconds``: of the first step, ``settled_seconds``: of all steps that compile, from an empty cache.
    ``gradient_gap``: of the worst parameter, from plain compilation of the same graphs and the same random state.
    """

    KEY: ClassVar = ("device", "threads", "model", "way")

    model: str
    way: str
    status: str = "ok"
    budget_bytes: int | None = None
    planned_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    floor_bytes: int | None = None
    lower_bound_bytes: int | None = None
    step_seconds: float | None = None
    ratio: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    first_call_seconds: float | None = None
    settled_seconds: float | None = None
    gradient_gap: float | None = None
    note: str = ""


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The repeated blocks of a model: its longest list of modules."""
    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


class Stepping(Running[Row]):
    """A training step, compiled whole or block by block."""

    def compiled(self) -> Callable[..., Any]:
        """Blocks in place, where the way says so: the rest of the step stays eager."""
        if self.way.variant != BLOCKS:
            return super().compiled()
        for block in blocks_of(self.module):
            if self.way.ours:
                block.compile(backend="memcompile", options=dict(self.way.options))
            else:
                block.compile()
        return self.module

    def measured(self, row: Row) -> Row:
        """First call, the steps that follow until nothing compiles, peak."""
        start = time.perf_counter()
        first_call_seconds = self.first_call()
        for _ in range(SETTLED - 1):
            self.step()
        settled_seconds = time.perf_counter() - start
        row = dataclasses.replace(
            row,
            first_call_seconds=first_call_seconds,
            settled_seconds=settled_seconds,
            measured_peak_bytes=self.peak().peak_bytes,
        )
        return dataclasses.replace(row, planned_peak_bytes=self.report().planned_peak_bytes) if self.way.ours else row


class Ways(Turns[Row]):
    """The ways of one model."""

    SECONDS: ClassVar = "step_seconds"

    def __init__(self, model: str, setting: Setting, kept: Kept[Row], args: argparse.Namespace) -> None:
        super().__init__(kept, setting, REGIONAL.name)
        self.model, self.args = model, args
        self.gradients: dict[str, Arrays] = {}

    def run(self) -> None:
        """Plain ways first: what they take makes the budgets, and their gradients are those to compare with."""
        named = [(percent, variant) for percent in self.args.budgets for variant in (BLOCKS, "")]
        if self.args.resume and all(self._is_known(each) for each in [REGIONAL, PLAIN, *(self._way(*each) for each in named)]):
            return
        if self._start(REGIONAL).status != "ok":
            return
        self._start(PLAIN)
        for each in named:
            self._start(self._way(*each))
        self.time(self.args.rounds)

    def _way(self, percent: int, variant: str) -> Way:
        """memcompile at a share of what plain regional compilation takes, as far as that is known."""
        plain = self.rows.get(REGIONAL.name)
        options = {} if plain is None else {"memory_budget": (plain.measured_peak_bytes or 0) * percent // 100}
        return Way(f"memcompile {variant or 'whole'} {percent}%", "memcompile", options, variant)

    def _is_known(self, way: Way) -> bool:
        old = self.kept.find(self.row(way))
        return old is not None and self.setting.same_versions(old) and (old.status != "ok" or old.ratio is not None)

    def row(self, way: Way) -> Row:
        """Its budget."""
        return self.setting.row(Row, ours=way.ours, model=self.model, way=way.name, budget_bytes=way.budget_bytes)

    def _start(self, way: Way) -> Row:
        return self.prepare(way, functools.partial(Stepping, CASES[self.model], way, self.args.device, self.args.batch_scale))

    def completed(self, way: Way, worker: Remote, row: Row) -> Row:
        """Gradients beside those of the plain way with the same graphs."""
        found: Arrays = worker.ask("results")
        if not way.ours:
            self.gradients[way.variant] = found
            return row
        return dataclasses.replace(row, gradient_gap=gradient_gap(self.gradients[way.variant], found))


COLUMNS: Columns[Row] = (
    ("model", lambda row: row.model),
    ("way", lambda row: row.way),
    ("budget MiB", lambda row: mib(row.budget_bytes, ".1f")),
    ("planned MiB", lambda row: mib(row.planned_peak_bytes, ".1f")),
    ("measured MiB", lambda row: mib(row.measured_peak_bytes, ".1f")),
    ("step / plain blocks", lambda row: form(row.ratio, ".3f")),
    ("quartiles", lambda row: span(row.ratio_q1, row.ratio_q3)),
    ("first call s", lambda row: form(row.first_call_seconds, ".1f")),
    ("until settled s", lambda row: form(row.settled_seconds, ".1f")),
    ("gradient gap", lambda row: form(row.gradient_gap, ".0e")),
    ("", lambda row: "" if row.status == "ok" else f"{row.status}: {row.note}"),
)


def tables(rows: Sequence[Row]) -> str:
    """For each device, a way a line."""
    return by_setting(rows, lambda here: (table(COLUMNS, here),))


def said(row: Row) -> str:
    """A row as it comes."""
    return (
        f"{row.model:8} {row.way:24} {row.status:10} peak {mib(row.measured_peak_bytes, '8.2f')} MiB"
        f"  step x{form(row.ratio, '.3f')}  first call {form(row.first_call_seconds, '.1f')} s,"
        f" settled {form(row.settled_seconds, '.1f')} s"
        f"  gradients {form(row.gradient_gap, '.1e')}  {row.note}"
    )


BENCHMARK = Benchmark("run", Row, tables, said)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = BENCHMARK.parser(__doc__, "rounds", "resume", "device", "batch-scale", "threads", "readme")
    parser.add_argument("--models", nargs="+", choices=CASES, default=MODELS, metavar="MODEL", help=f"of {', '.join(CASES)}")
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS, metavar="PERCENT")
    args = parser.parse_args(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    setting = Setting.here(args.device)
    for name in args.models:
        with contextlib.closing(Ways(name, setting, kept, args)) as ways:
            ways.run()
    if args.results == BENCHMARK.results:
        BENCHMARK.tabulate(kept, args.readme)


if __name__ == "__main__":
    main()
