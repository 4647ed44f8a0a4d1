"""Small programs of every kind at many budgets: is what was promised what is measured?

    python benchmarks/budgets.py                        # 200 pairs of a program and a budget; about half an hour on two cores
    python benchmarks/budgets.py --nets mlp attention   # some programs
    python benchmarks/budgets.py --resume               # skip what the same sources measured
    python benchmarks/budgets.py --table                # the table of benchmarks/README.md

Budgets are shares of the peak without a plan, one of a single byte, and what a refusal advised. Each program has a process of
its own, each budget a copy of the program that is compiled anew. Measured is a step under PyTorch's profiler.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch
from torch import Tensor, nn

import memcompile
from benchmarks.budget_nets import NETS, Net, random_net
from benchmarks.core.command import Benchmark
from benchmarks.core.rows import PlanRow, Setting
from benchmarks.core.table import Columns, table
from benchmarks.core.workers import Quick, Remote, WayFailedError
from memcompile.errors import BudgetInfeasibleError
from memcompile.report.data import Report
from memcompile.runtime.measure import measure_peak

SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)
RANDOM = tuple(f"random {seed}" for seed in range(8))
QUICK = {"cpp.simdlen": 1}
"""Scalar code: peaks are the same, and it compiles in half the time."""
CLOSE = 0.01
ADVISED = "advised for "
SEEN = 4
"""Steps until one of several graphs is planned as a whole: it is seen, watched, compiled."""


@dataclass(frozen=True)
class BudgetRow(PlanRow):
    """One program under one budget. ``asked``: "80 %", "1 byte", or "advised", which follows a refusal and names its budget.

    ``status``: "kept", "refused", or "goes on": refused at a graph after which the step goes on with graphs that nobody has
    seen yet, so that what the refusal names is only the next to be tried. ``floor_bytes``, ``lower_bound_bytes``: what it
    named. ``extra_seconds``: what the plan takes above the time without one, by the cost model. Of a refusal,
    ``measured_bytes`` is what best effort takes.
    """

    KEY: ClassVar = ("net", "asked")

    net: str
    asked: str
    status: str
    budget_bytes: int
    planned_bytes: int | None = None
    measured_bytes: int | None = None
    extra_seconds: float | None = None
    floor_bytes: int | None = None
    lower_bound_bytes: int | None = None


def run(net: Net, budget_bytes: int | None, best_effort: bool = False) -> tuple[Report, int]:
    """The report of a step under a budget, and its measured peak. Raises ``BudgetInfeasibleError``."""
    torch._dynamo.reset()
    memcompile.release()
    model, inputs = net.make()
    options: dict[str, Any] = {"inductor": QUICK, "memory_budget": budget_bytes}
    if best_effort:
        options["on_infeasible"] = "best_effort"
    step = stepping(net, model, inputs, torch.compile(model, backend="memcompile", options=options))
    with torch.set_grad_enabled(net.training):
        peak = measure_peak(step, model=model, inputs=inputs, warmup=SEEN if net.breaks else 1)
    unread = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
    return memcompile.report(model), peak.peak_bytes - unread


def stepping(net: Net, model: nn.Module, inputs: tuple[Tensor, ...], function: Callable[..., Tensor]) -> Callable[[], object]:
    """A step: its output is held to the end, as training loops do."""
    if net.accumulates:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def step() -> object:
        output = function(*inputs)
        if net.training:
            torch.autograd.backward(output)
            if not net.accumulates:
                model.zero_grad(set_to_none=True)
        return output

    return step


class Program:
    """A program and its budgets, in a process of its own."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.net, self.setting = net_of(name), setting

    def free_bytes(self) -> int:
        """The peak without a plan."""
        return run(self.net, None)[0].planned_peak_bytes

    def row(self, asked: str, budget_bytes: int) -> BudgetRow:
        """One budget, and best effort where it is refused."""
        status, bounds = "kept", dict[str, Any]()
        try:
            report, measured = run(self.net, budget_bytes)
        except BudgetInfeasibleError as error:
            report, measured = run(self.net, budget_bytes, best_effort=True)
            status = "goes on" if error.goes_on else "refused"
            bounds = {"floor_bytes": error.floor_bytes, "lower_bound_bytes": error.lower_bound_bytes}
        return self.setting.row(
            BudgetRow,
            net=self.net.name,
            asked=asked,
            status=status,
            budget_bytes=budget_bytes,
            planned_bytes=report.planned_peak_bytes,
            measured_bytes=measured,
            extra_seconds=report.planned_seconds - report.base_seconds,
            **bounds,
        )


def rows(program: Remote, done: Container[str]) -> Iterator[BudgetRow]:
    """All budgets of a program, from the largest down, but those that are ``done``, and what refusals advise, those of what
    was advised among them where the step went on."""
    free = program.ask("free_bytes")
    budgets = {f"{share * 100:.0f} %": int(share * free) for share in SHARES} | {"1 byte": 1}
    tried = set[int]()
    for asked, budget in budgets.items():
        if asked in done:
            continue
        row: BudgetRow = program.ask("row", asked, budget)
        yield row
        going_on = True
        while going_on and row.floor_bytes is not None and row.floor_bytes not in tried:
            tried.add(row.floor_bytes)
            going_on = row.status == "goes on"
            row = program.ask("row", ADVISED + row.asked, row.floor_bytes)
            yield row


def faults(found: Sequence[BudgetRow]) -> list[str]:
    """What is wrong with the rows of one program; nothing, if all is as promised."""
    wrong = []
    kept = sorted((row for row in found if row.status == "kept"), key=lambda row: row.budget_bytes)
    named = [row for row in found if row.floor_bytes is not None]
    refused = [row for row in named if row.status == "refused"]
    for row in kept:
        if (row.measured_bytes or 0) > row.budget_bytes:
            wrong.append(f"{row.asked}: measured above the budget")
    for row in found:
        if abs((row.planned_bytes or 0) - (row.measured_bytes or 0)) > CLOSE * (row.measured_bytes or 0):
            wrong.append(f"{row.asked}: planned more than 1 % from measured")
    for tight, loose in itertools.pairwise(kept):
        if (loose.extra_seconds or 0) > (tight.extra_seconds or 0) * (1 + 1e-6):
            wrong.append(f"{loose.asked}: slower than at {tight.asked}")
    advised = {ADVISED + row.asked for row in refused}
    wrong += [f"{row.asked}: refused what was advised" for row in named if row.asked in advised]
    least = min((row.measured_bytes or 0 for row in found), default=0)
    wrong += [f"{row.asked}: the bound is not below what was measured" for row in named if (row.lower_bound_bytes or 0) > least]
    floors = {row.floor_bytes for row in refused}
    if len(floors) > 1:
        wrong.append(f"{len(floors)} different floors")
    return wrong


@dataclass(frozen=True)
class Held:
    """The rows of a program."""

    net: str
    rows: Sequence[BudgetRow]

    @property
    def kept(self) -> list[BudgetRow]:
        """Those whose budget was accepted."""
        return [row for row in self.rows if row.status == "kept"]

    def use(self) -> float:
        """The most of a budget that was used."""
        return max(((row.measured_bytes or 0) / row.budget_bytes for row in self.kept), default=0.0)

    def away(self) -> float:
        """The largest gap of a plan to what was measured."""
        return max(abs((row.planned_bytes or 0) / (row.measured_bytes or 1) - 1) for row in self.rows)

    def floor_bytes(self) -> int:
        """The largest of the floors: what is named where the step goes on is one of a part of it."""
        return max((row.floor_bytes or 0 for row in self.rows), default=0)

    def bound_bytes(self) -> int:
        """The largest of the bounds."""
        return max((row.lower_bound_bytes or 0 for row in self.rows), default=0)


COLUMNS: Columns[Held] = (
    ("program", lambda held: held.net),
    ("budgets", lambda held: str(len(held.rows))),
    ("kept", lambda held: str(len(held.kept))),
    ("measured / budget at most", lambda held: f"{held.use():.3f}"),
    ("planned to measured at most", lambda held: f"{held.away():.2%}"),
    ("floor / free", lambda held: f"{held.floor_bytes() / max(row.budget_bytes for row in held.rows):.2f}"),
    ("bound / floor", lambda held: f"{held.bound_bytes() / max(1, held.floor_bytes()):.2f}"),
)


def tables(found: Sequence[BudgetRow]) -> str:
    """What is wrong, and a line for each program."""
    programs = [Held(net, [row for row in found if row.net == net]) for net in dict.fromkeys(row.net for row in found)]
    wrong = [f"{held.net}: {fault}" for held in programs for fault in faults(held.rows)]
    summary = "; ".join([f"{len(found)} pairs, {len(wrong)} that break a promise", *wrong])
    return f"{summary}.\n\n{table(COLUMNS, programs)}"


def said(row: BudgetRow) -> str:
    """A row as it comes."""
    return f"{row.net:14} {row.asked:18} {row.status:8} budget {row.budget_bytes:9} measured {row.measured_bytes}"


BENCHMARK = Benchmark("budgets", BudgetRow, tables, said)


def net_of(name: str) -> Net:
    """By its name."""
    if name.startswith("random "):
        return random_net(int(name.removeprefix("random ")))
    return next(net for net in NETS if net.name == name)


def main(argv: Sequence[str] | None = None) -> int:
    """Status 1 where a promise is broken, or a program could not be run."""
    names = [*(net.name for net in NETS), *RANDOM]
    parser = BENCHMARK.parser(__doc__, "resume")
    parser.add_argument("--nets", nargs="+", default=names, metavar="NAME")
    args = parser.parse_args(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return 0
    setting, failed = Setting.here(), False
    for name in args.nets:
        done = {row.asked for row in kept if args.resume and row.net == name and setting.same_versions(row)}
        with contextlib.closing(Quick(name, functools.partial(Program, name, setting))) as program:
            try:
                for row in rows(program, done):
                    kept.put(row)
            except WayFailedError as error:
                failed = True
                print(f"{name:14} failed: {error.message}", flush=True)
    found = [row for row in kept if row.net in args.nets]
    print(tables(found))
    return int(failed or any(faults([row for row in found if row.net == name]) for name in args.nets))


if __name__ == "__main__":
    sys.exit(main())
