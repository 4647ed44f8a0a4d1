"""Small programs of every kind at many budgets: is what was promised what is measured?

    python benchmarks/budgets.py                        # 200 pairs of a program and a budget; about half an hour on two cores
    python benchmarks/budgets.py --nets mlp attention   # some programs
    python benchmarks/budgets.py --resume               # skip what the same sources measured
    python benchmarks/budgets.py --table                # the table of benchmarks/README.md

Budgets are shares of the peak without a plan, one of a single byte, and what a refusal advised. Each program has a process of
its own, each budget a copy of the program that is compiled anew. Measured is a step under PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import itertools

import torch
from torch import Tensor, nn

import memcompile
from benchmarks.budget_nets import NETS, Net, random_net
from benchmarks.markdown import markdown
from benchmarks.rows import KeptRows, source_hash
from benchmarks.table import README, between
from memcompile.errors import BudgetInfeasibleError
from memcompile.report.data import Report
from memcompile.runtime.measure import measure_peak

RESULTS = Path(__file__).resolve().parent / "results" / "budgets.csv"
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)
RANDOM = tuple(f"random {seed}" for seed in range(8))
QUICK = {"cpp.simdlen": 1}
"""Scalar code: peaks are the same, and it compiles in half the time."""
START, END = "<!-- results: written by budgets.py -->", "<!-- end of budget results -->"
CLOSE = 0.01


@dataclass(frozen=True)
class BudgetRow:
    """One program under one budget. ``asked``: "80 %", "1 byte", or "advised", which follows a refusal and names its budget.

    ``status``: "kept" or "refused". ``floor_bytes``, ``lower_bound_bytes``: what the refusal said. ``extra_seconds``: what the
    plan takes above the time without one, by the cost model. Of a refusal, ``measured_bytes`` is what best effort takes.
    """

    date: str
    torch: str
    code: str
    net: str
    asked: str
    status: str
    budget_bytes: int
    planned_bytes: int | None = None
    measured_bytes: int | None = None
    extra_seconds: float | None = None
    floor_bytes: int | None = None
    lower_bound_bytes: int | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """A newer row with the same key takes the older one's place."""
        return self.net, self.asked


def run(net: Net, budget_bytes: int | None, best_effort: bool = False) -> tuple[Report, int]:
    """The report of a step under a budget, and its measured peak. Raises ``BudgetInfeasibleError``."""
    torch._dynamo.reset()
    memcompile.release()
    model, inputs = net.make()
    options: dict[str, object] = {"inductor": QUICK, "memory_budget": budget_bytes}
    if best_effort:
        options["on_infeasible"] = "best_effort"
    step = stepping(net, model, inputs, torch.compile(model, backend="memcompile", options=options))
    with torch.set_grad_enabled(net.training):
        peak = measure_peak(step, model=model, inputs=inputs)
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
            output.backward()
            if not net.accumulates:
                model.zero_grad(set_to_none=True)
        return output

    return step


def rows(net: Net, done: Callable[[str], bool]) -> Iterator[BudgetRow]:
    """All budgets of a program, from the largest down; ``done(asked)``: skipped."""
    report, _ = run(net, None)
    free = report.planned_peak_bytes
    budgets = {f"{share:.0%}".replace("%", " %"): int(share * free) for share in SHARES} | {"1 byte": 1}
    advised: dict[int, str] = {}
    for asked, budget in budgets.items():
        if done(asked):
            continue
        row = one(net, asked, budget)
        yield row
        if row.floor_bytes is not None and row.floor_bytes not in advised:
            advised[row.floor_bytes] = f"advised for {asked}"
    for budget, asked in advised.items():
        yield one(net, asked, budget)


def one(net: Net, asked: str, budget: int) -> BudgetRow:
    """One budget, and best effort where it is refused."""
    here = datetime.date.today().isoformat(), torch.__version__, source_hash(), net.name, asked
    try:
        report, measured = run(net, budget)
    except BudgetInfeasibleError as error:
        report, measured = run(net, budget, best_effort=True)
        bounds = error.floor_bytes, error.lower_bound_bytes
        return BudgetRow(
            *here, "refused", budget, report.planned_peak_bytes, measured, report.planned_seconds - report.base_seconds, *bounds
        )
    return BudgetRow(*here, "kept", budget, report.planned_peak_bytes, measured, report.planned_seconds - report.base_seconds)


def faults(found: Sequence[BudgetRow]) -> list[str]:
    """What is wrong with the rows of one program; nothing, if all is as promised."""
    wrong = []
    kept = sorted((row for row in found if row.status == "kept"), key=lambda row: row.budget_bytes)
    refused = [row for row in found if row.status == "refused"]
    for row in kept:
        if (row.measured_bytes or 0) > row.budget_bytes:
            wrong.append(f"{row.asked}: measured above the budget")
    for row in found:
        if abs((row.planned_bytes or 0) - (row.measured_bytes or 0)) > CLOSE * (row.measured_bytes or 0):
            wrong.append(f"{row.asked}: planned more than 1 % from measured")
    for tight, loose in itertools.pairwise(kept):
        if (loose.extra_seconds or 0) > (tight.extra_seconds or 0) * (1 + 1e-6):
            wrong.append(f"{loose.asked}: slower than at {tight.asked}")
    wrong += [f"{row.asked}: refused what was advised" for row in refused if row.asked.startswith("advised")]
    least = min((row.measured_bytes or 0 for row in found), default=0)
    wrong += [
        f"{row.asked}: the bound is not below what was measured" for row in refused if (row.lower_bound_bytes or 0) > least
    ]
    floors = {row.floor_bytes for row in refused}
    if len(floors) > 1:
        wrong.append(f"{len(floors)} different floors")
    return wrong


def table(found: Sequence[BudgetRow]) -> str:
    """A line for each program."""
    head = [
        "program",
        "budgets",
        "kept",
        "measured / budget at most",
        "planned to measured at most",
        "floor / free",
        "bound / floor",
    ]
    lines = []
    for net in dict.fromkeys(row.net for row in found):
        mine = [row for row in found if row.net == net]
        kept, refused = ([row for row in mine if row.status == status] for status in ("kept", "refused"))
        free = max(row.budget_bytes for row in mine)
        use = max(((row.measured_bytes or 0) / row.budget_bytes for row in kept), default=0.0)
        away = max(abs((row.planned_bytes or 0) / (row.measured_bytes or 1) - 1) for row in mine)
        floor = min((row.floor_bytes or 0 for row in refused), default=0)
        bound = max((row.lower_bound_bytes or 0 for row in refused), default=0)
        lines.append(
            [
                net,
                str(len(mine)),
                str(len(kept)),
                f"{use:.3f}",
                f"{away:.2%}",
                f"{floor / free:.2f}",
                f"{bound / max(1, floor):.2f}",
            ]
        )
    wrong = [
        f"{net}: {fault}" for net in dict.fromkeys(r.net for r in found) for fault in faults([r for r in found if r.net == net])
    ]
    summary = f"{len(found)} pairs, {len(wrong)} that break a promise" + "".join(f"; {fault}" for fault in wrong)
    return f"{summary}.\n\n{markdown(head, lines)}"


def net_of(name: str) -> Net:
    """By its name."""
    if name.startswith("random "):
        return random_net(int(name.removeprefix("random ")))
    return next(net for net in NETS if net.name == name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Status 1 where a promise is broken."""
    names = [*(net.name for net in NETS), *RANDOM]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=names, metavar="NAME")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    kept: KeptRows[BudgetRow] = KeptRows(BudgetRow, chosen.results)
    if chosen.table:
        README.write_text(between(README.read_text(), START, END, table(list(kept))))
        return 0
    for name in chosen.nets:
        if chosen.here:
            code = source_hash()
            old = {row.asked for row in kept if row.net == name and row.code == code} if chosen.resume else set()
            for row in rows(net_of(name), old.__contains__):
                kept.put(row)
                print(
                    f"{name:14} {row.asked:18} {row.status:8} budget {row.budget_bytes:9} measured {row.measured_bytes}",
                    flush=True,
                )
            continue
        flags = ["--here", "--results", str(chosen.results), *(["--resume"] if chosen.resume else [])]
        subprocess.run([sys.executable, __file__, "--nets", name, *flags], check=False)
    if chosen.here:
        return 0
    found = [row for row in KeptRows(BudgetRow, chosen.results) if row.net in chosen.nets]
    print(table(found))
    return int(any(faults([row for row in found if row.net == name]) for name in chosen.nets))


if __name__ == "__main__":
    sys.exit(main())
