"""The order of kernels: peak of each graph as Inductor orders it, by each of its heuristics, and as `schedule` orders it.

    python benchmarks/schedule.py                        # all, to benchmarks/results/schedule.csv
    python benchmarks/schedule.py --models darts unet    # some
    python benchmarks/schedule.py --table                # the rows as markdown

Graphs are captured on fake tensors and lowered, nothing is compiled or run. Peaks are of a graph's own buffers and of the
inputs that die in it, counted in the lowered code; the heuristics' by the model that those counts confirm.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks are no installed package

import torch
from torch import Tensor, nn

from benchmarks.branching import GENOTYPES, CellNet, DenseNet, MixtureOfExperts
from benchmarks.models import CASES, images, unet
from benchmarks.rows import read_rows, source_hash, write_rows
from memcompile.codegen.inductor.lowering import lower, lower_step
from memcompile.codegen.inductor.scheduled import Scheduling, own_peak
from memcompile.compiling.dryrun import captured
from memcompile.step.facts import StepGraphs
from memcompile.step.trace import GraphTrace

RESULTS = Path(__file__).resolve().parent / "results" / "schedule.csv"
HEURISTICS = ("LPMF", "BFS", "DFS")
Build = Callable[[], tuple[nn.Module, dict[str, Tensor]]]


@dataclass(frozen=True)
class OrderRow:
    """One graph. `inductor_bytes` and `ours_bytes` are counted in lowered code, the others by the model of it.

    `apart_bytes`: Inductor's order with every loop in a function of its own: what is below that is the order's doing.
    `model_gap_bytes`: the largest difference between the two. `apart`: loops that no longer share a function with the next.
    """

    date: str
    torch: str
    code: str
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

    def _ordered(self, before: list[object], chosen: list[object], *rest: object) -> list[object]:  # type: ignore[override]
        super()._ordered(before, chosen, *rest)  # type: ignore[arg-type]
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


def order_rows(name: str, build: Build) -> Iterator[OrderRow]:
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
            yield OrderRow(
                date=datetime.date.today().isoformat(),
                torch=torch.__version__,
                code=source_hash(),
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


def table(rows: Sequence[OrderRow]) -> str:
    """The rows as markdown, peaks in MiB."""
    lines = [
        "| model | graph | kernels | Inductor | apart | LPMF | BFS | DFS | ours | less | bound | status | found by | seconds |",
        "| " + " | ".join(["---"] * 14) + " |",
    ]
    for row in rows:
        peaks = (row.inductor_bytes, row.apart_bytes, row.lpmf_bytes, row.bfs_bytes, row.dfs_bytes, row.ours_bytes)
        cells = [row.model, row.graph, str(row.kernels), *(f"{peak / 2**20:.2f}" for peak in peaks)]
        cells += [f"{1 - row.ours_bytes / row.inductor_bytes:.1%}", f"{row.bound_bytes / 2**20:.2f}", row.status, row.method]
        lines.append("| " + " | ".join([*cells, f"{row.seconds:.2f}"]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Lower what the command line asks for; a newer row takes the older one's place."""
    known = builds()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(known), default=list(known), metavar="NAME")
    parser.add_argument("--table", action="store_true", help="print the rows as markdown, lower nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    rows = {(row.model, row.graph): row for row in read_rows(OrderRow, args.results)}
    if args.table:
        print(table(list(rows.values())))
        return
    for name in args.models:
        for row in order_rows(name, known[name]):
            rows[row.model, row.graph] = row
            write_rows(OrderRow, rows.values(), args.results)
            print(table([row]).splitlines()[-1], f"model off by {row.model_gap_bytes} bytes", flush=True)


if __name__ == "__main__":
    main()
