"""The order of kernels: peak of each graph as Inductor orders it, by each of its heuristics, and as `schedule` orders it.

    python benchmarks/schedule.py                        # all, to benchmarks/results/schedule.csv
    python benchmarks/schedule.py --models darts unet    # some
    python benchmarks/schedule.py --table                # the rows as markdown

Graphs are captured on fake tensors and lowered, nothing is compiled or run. Peaks are of a graph's own buffers and of the
inputs that die in it, counted in the lowered code; the heuristics' by the model that those counts confirm.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch
from torch import Tensor, nn

from benchmarks.branching import GENOTYPES, CellNet, DenseNet, MixtureOfExperts
from benchmarks.core.command import Benchmark
from benchmarks.core.rows import PlanRow, Setting
from benchmarks.core.table import Columns, mib, table
from benchmarks.models import CASES, images, unet
from memcompile.codegen.inductor.scheduled import Scheduling, own_peak
from memcompile.codegen.inductor.trial import lower, lower_step
from memcompile.compiling.dryrun import captured
from memcompile.step.facts import StepGraphs
from memcompile.step.trace import GraphTrace

HEURISTICS = ("LPMF", "BFS", "DFS")
Build = Callable[[], tuple[nn.Module, dict[str, Tensor]]]


@dataclass(frozen=True)
class OrderRow(PlanRow):
    """One graph. `inductor_bytes` and `ours_bytes` are counted in lowered code, the others by the model of it.

    `apart_bytes`: Inductor's order with every loop in a function of its own: what is below that is the order's doing.
    `model_gap_bytes`: the largest difference between the two. `apart`: loops that no longer share a function with the next.
    """

    KEY: ClassVar = ("model", "graph")

    model: str
    graph: str
    kernels: int
    inductor_bytes: int
    apart_bytes: int
    lpmf_bytes: int
    bfs_bytes: int
    dfs_bytes: int
    ours_bytes: int
    bound_bytes: int
    apart: int
    status: str
    method: str
    seconds: float
    lower_seconds: float
    model_gap_bytes: int


class Unmoved(Scheduling):
    """Works out everything, and leaves the order to Inductor."""

    def _ordered(self, before: list[Any], chosen: list[Any], *rest: Any) -> list[Any]:
        super()._ordered(before, chosen, *rest)
        self.apart.clear()
        return chosen


def pictures(model: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network for small images, and a batch of them."""
    torch.manual_seed(0)
    return model().train(), {"pixels": images(8, 32), "labels": torch.arange(8) % 10}


def experts(count: int = 8, depth: int = 2) -> tuple[nn.Module, dict[str, Tensor]]:
    """The mixture of experts and its tokens."""
    torch.manual_seed(0)
    return MixtureOfExperts(experts=count, depth=depth), {"x": torch.randn(4, 128, 64)}


def builds() -> dict[str, Build]:
    """Every model by name. Those that only run forward end in "-inference", those with few kernels in "-small"."""
    found: dict[str, Build] = {name: case.make for name, case in CASES.items() if not case.breaks}
    branching: dict[str, Build] = {
        **{name: functools.partial(pictures, functools.partial(CellNet, name)) for name in GENOTYPES},
        "densenet": functools.partial(pictures, DenseNet),
        "experts": experts,
    }
    small: dict[str, Build] = {
        **{name: functools.partial(pictures, functools.partial(CellNet, name, reductions=0)) for name in GENOTYPES},
        "densenet": functools.partial(pictures, functools.partial(DenseNet, (2, 3))),
        "experts": functools.partial(experts, 3, 1),
    }
    branching |= {f"{name}-small": build for name, build in small.items()}
    found |= branching
    found |= {f"{name}-inference": build for name, build in branching.items()}
    found["unet-inference"] = functools.partial(unet, 1)
    return found


def order_rows(setting: Setting, name: str, build: Build) -> Iterator[OrderRow]:
    """A row for each graph of the model."""
    model, batch = build()
    training = not name.endswith("-inference")
    for graphs in captured(model.train(training), batch, training=training):
        unmoved, ours = Unmoved(), Scheduling()
        plain = _traces(graphs, unmoved)
        started = time.perf_counter()
        ordered = _traces(graphs, ours)
        lower_seconds = time.perf_counter() - started
        for kind, trace in ordered.items():
            found, entry = ours.orderings[kind], ours.entry[kind]
            inductor_bytes, ours_bytes = own_peak(plain[kind], entry), own_peak(trace, entry)
            gaps = abs(inductor_bytes - found.before_bytes), abs(ours_bytes - found.order.peak_bytes)
            lpmf, bfs, dfs = (found.known_bytes.get(method, 0) for method in HEURISTICS)
            yield setting.row(
                OrderRow,
                model=name,
                graph=kind,
                kernels=found.kernels,
                inductor_bytes=inductor_bytes,
                apart_bytes=found.apart_bytes,
                lpmf_bytes=lpmf,
                bfs_bytes=bfs,
                dfs_bytes=dfs,
                ours_bytes=ours_bytes,
                bound_bytes=found.order.bound_bytes,
                apart=len(found.order.apart),
                status=found.order.status,
                method=found.order.method,
                seconds=found.order.seconds,
                lower_seconds=lower_seconds,
                model_gap_bytes=max(gaps),
            )
    torch._dynamo.reset()


def _traces(graphs: StepGraphs, scheduling: Scheduling) -> dict[str, GraphTrace]:
    """Lowered code that holds no dead buffers."""
    if graphs.backward is None:
        return {"inference": lower(graphs.forward, kind="inference", shares=(0.0,), scheduling=scheduling)}
    halves = lower_step(graphs.forward, graphs.backward, graphs.num_user_outputs, shares=(0.0,), scheduling=scheduling)
    return dict(zip(("forward", "backward"), halves, strict=True))


_mib = functools.partial(mib, spec=".2f")
COLUMNS: Columns[OrderRow] = (
    ("model", lambda row: row.model),
    ("graph", lambda row: row.graph),
    ("kernels", lambda row: str(row.kernels)),
    ("Inductor", lambda row: _mib(row.inductor_bytes)),
    ("apart", lambda row: _mib(row.apart_bytes)),
    ("LPMF", lambda row: _mib(row.lpmf_bytes)),
    ("BFS", lambda row: _mib(row.bfs_bytes)),
    ("DFS", lambda row: _mib(row.dfs_bytes)),
    ("ours", lambda row: _mib(row.ours_bytes)),
    ("less", lambda row: f"{1 - row.ours_bytes / row.inductor_bytes:.1%}"),
    ("bound", lambda row: _mib(row.bound_bytes)),
    ("status", lambda row: row.status),
    ("found by", lambda row: row.method),
    ("seconds", lambda row: f"{row.seconds:.2f}"),
)


def tables(rows: Sequence[OrderRow]) -> str:
    """Peaks in MiB."""
    return table(COLUMNS, rows)


def said(row: OrderRow) -> str:
    """A row as it comes."""
    return f"{tables([row]).splitlines()[-1]} model off by {row.model_gap_bytes} bytes"


BENCHMARK = Benchmark("schedule", OrderRow, tables, said, prints=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Lower what the command line asks for; a newer row takes the older one's place."""
    known = builds()
    parser = BENCHMARK.parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(known), default=list(known), metavar="NAME")
    args = parser.parse_args(argv)
    kept = BENCHMARK.kept(args)
    if kept is None:
        return
    setting = Setting.here()
    for name in args.models:
        for row in order_rows(setting, name, known[name]):
            kept.put(row)


if __name__ == "__main__":
    main()
