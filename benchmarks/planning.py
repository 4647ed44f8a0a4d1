"""Planning alone, on fake tensors: how long it takes as graphs grow, and how well it does on a chain of 1000 time steps.

    python benchmarks/planning.py                    # both, to benchmarks/results/planning.csv
    python benchmarks/planning.py --only chain --steps 200 --saved 0.8   # a short chain has less to save

The chain is the one of "Memory-efficient backpropagation through time" (Gruslys et al. 2016): 95 % of the activations' memory
saved for a third more time, which is one more forward pass where the backward takes twice the forward. It is planned with and
without weights for the input, and wider. Seconds and overheads are the planner's model of this machine; nothing runs.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch
from torch import Tensor, nn

import memcompile
from benchmarks.core.command import Benchmark
from benchmarks.core.rows import PlanRow, Setting
from benchmarks.core.table import Columns, table
from benchmarks.models import CASES, gpt2
from benchmarks.nets import RecurrentChain
from benchmarks.peers import found_by
from memcompile.errors import BudgetInfeasibleError

LAYERS = (2, 4, 8, 12, 16, 24)
BUDGETS = (80, 50, 35)
CHAIN_SAVED = 0.95
CHAINS = {"": (False, 64), "-projected": (True, 64), "-wide": (False, 256)}
"""Suffix of the name -> whether the input has weights, and the width. The wider, the more of a step is matrix products."""

Build = Callable[[], tuple[nn.Module, dict[str, Tensor]]]


@dataclass(frozen=True)
class Row(PlanRow):
    """One plan. `plan_seconds`: from the facts to the plan; `total_seconds`: with capture and all else, Inductor's decisions
    predicted instead of lowered. Overheads: shares of the step without a plan.

    `saved_share`: how much of what the step needs on top of its entry the plan does without.
    """

    KEY: ClassVar = ("model", "budget_bytes")

    model: str
    nodes: int
    budget_share: float
    budget_bytes: int
    status: str
    planned_peak_bytes: int
    unplanned_peak_bytes: int
    saved_share: float
    plan_seconds: float
    total_seconds: float
    planned_overhead: float
    bound_overhead: float
    solver: str


def joint_nodes(report: memcompile.Report) -> int:
    """Nodes of the training graphs as first captured: the assignments in their printed form."""
    return sum(next(iter(graph.graphs.values()), "").count(" = ") for graph in report.graphs)


def plan_row(setting: Setting, name: str, build: Build, transient_share: float | None, peak_share: float | None = None) -> Row:
    """Plan one model at a share of its unplanned peak, or of what that peak has on top of the bytes alive at entry."""
    model, batch = build()
    free = memcompile.plan(model, **batch, options={"memory_budget": None, "lower": False})
    entry_bytes = max(graph.entry_bytes for graph in free.graphs)
    unplanned = free.unplanned_peak_bytes
    if transient_share is not None:
        budget_bytes = entry_bytes + math.floor(transient_share * (unplanned - entry_bytes))
    else:
        budget_bytes = math.floor((peak_share or 1.0) * unplanned)
    torch._dynamo.reset()
    start = time.perf_counter()
    status = "ok"
    try:
        report = memcompile.plan(model, **batch, options={"memory_budget": budget_bytes, "lower": False})
    except BudgetInfeasibleError:
        status = "infeasible"
        start = time.perf_counter()
        options = {"memory_budget": budget_bytes, "lower": False, "on_infeasible": "best_effort"}
        report = memcompile.plan(model, **batch, options=options)
    total_seconds = time.perf_counter() - start
    torch._dynamo.reset()
    base = report.base_seconds or math.nan
    return setting.row(
        Row,
        model=name,
        nodes=joint_nodes(report),
        budget_share=budget_bytes / unplanned,
        budget_bytes=budget_bytes,
        status=status,
        planned_peak_bytes=report.planned_peak_bytes,
        unplanned_peak_bytes=unplanned,
        saved_share=(unplanned - report.planned_peak_bytes) / (unplanned - entry_bytes),
        plan_seconds=sum(graph.plan.get("plan_seconds", 0.0) for graph in report.graphs),
        total_seconds=total_seconds,
        planned_overhead=report.planned_seconds / base - 1,
        bound_overhead=report.lower_bound_seconds / base - 1,
        solver=found_by(report),
    )


def chain(steps: int, project: bool, width: int, batch: int = 256) -> tuple[nn.Module, dict[str, Tensor]]:
    """The recurrent chain and its input: `steps` states of `batch` x `width` floats dominate the weights."""
    torch.manual_seed(0)
    return RecurrentChain(width, project=project), {"x": torch.randn(steps, batch, width)}


def said(row: Row) -> str:
    """A row as it comes."""
    return (
        f"{row.model:16} {row.nodes:6d} nodes  budget {row.budget_share:6.1%}  {row.status:10}"
        f"  peak {row.unplanned_peak_bytes / 2**20:8.1f} -> {row.planned_peak_bytes / 2**20:8.1f} MiB"
        f" ({row.saved_share:.1%} saved)"
        f"  overhead {row.planned_overhead:6.2%} (bound {row.bound_overhead:.2%})"
        f"  planned in {row.plan_seconds:.1f} s of {row.total_seconds:.1f} s  {row.solver}"
    )


COLUMNS: Columns[Row] = (
    ("model", lambda row: row.model),
    ("nodes", lambda row: str(row.nodes)),
    ("budget, of the peak", lambda row: f"{row.budget_share:.0%}"),
    ("planned in", lambda row: f"{row.plan_seconds:.1f} s"),
    ("planned overhead (bound)", lambda row: f"{row.planned_overhead:.1%} ({row.bound_overhead:.1%})"),
    ("found by", lambda row: row.solver),
)
BENCHMARK = Benchmark("planning", Row, lambda rows: table(COLUMNS, rows), said, prints=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Plan what the command line asks for, one row a plan; a newer row takes the older one's place."""
    parser = BENCHMARK.parser(__doc__)
    parser.add_argument("--only", choices=("growth", "models", "chain"), default=None)
    parser.add_argument("--layers", nargs="+", type=int, default=LAYERS, help="of the growing GPT-2")
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS, metavar="PERCENT", help="of the unplanned peak")
    parser.add_argument("--steps", nargs="+", type=int, default=(1000,), help="of the recurrent chain")
    parser.add_argument("--saved", type=float, default=CHAIN_SAVED, help="share of the chain's activations to do without")
    args = parser.parse_args(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    setting = Setting.here()
    builds: dict[str, Build] = {}
    if args.only in (None, "growth"):
        builds |= {f"gpt2-{layers}": functools.partial(gpt2, 1, layers) for layers in args.layers}
    if args.only in (None, "models"):
        builds |= {name: case.make for name, case in CASES.items() if not case.breaks}
    for (name, build), percent in itertools.product(builds.items(), args.budgets):
        kept.put(plan_row(setting, name, build, None, percent / 100))
    if args.only in (None, "chain"):
        for steps, (kind, (project, width)) in itertools.product(args.steps, CHAINS.items()):
            build = functools.partial(chain, steps, project, width)
            kept.put(plan_row(setting, f"chain-{steps}{kind}", build, 1 - args.saved))


if __name__ == "__main__":
    main()
