"""Train GPT-2 on Python's documentation in a number of bytes, then put memcompile beside what people do today.

    make demo                                        # or: python examples/train_gpt2.py
    python examples/train_gpt2.py --budget 150MiB    # bytes, or a share of the peak without a plan: --budget 60%
    python examples/train_gpt2.py --quick            # a smaller model, fewer steps, no side-by-side

The model is Hugging Face's `GPT2LMHeadModel` from a config: random weights, dropout on, one token for each byte. It runs on a
GPU when there is one.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the side-by-side uses the benchmark's peers

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import memcompile
from benchmarks.core.ways import EAGER, PLAIN, Way
from benchmarks.core.workers import Quick, Remote, WayFailedError
from benchmarks.models import CASES, Batch, Case, windows
from benchmarks.peers import ACTIVATION_BUDGETS, CHECKPOINT, Running, memcompile_way
from memcompile.errors import MemcompileError
from memcompile.runtime.measure import measure_peak
from memcompile.units import format_bytes

BUDGET_SHARES = (0.8, 0.65, 0.5)
"""Budgets of the side-by-side, as shares of plain torch.compile's measured peak."""
LEARNING_RATE = 1e-3
SEED = 1234

console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Size:
    """Of the model and its batch."""

    layers: int = 4
    width: int = 256
    heads: int = 8
    sequence: int = 256
    batch: int = 4


def build_model(size: Size) -> nn.Module:
    """GPT-2 with random weights for a vocabulary of 256 bytes, in training mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=256,
        n_positions=size.sequence,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # the default anyway; when it is not named, the model logs a warning in every step
    trained: nn.Module = model.train()
    return trained


def batches(size: Size, steps: int, device: torch.device) -> list[Batch]:
    """`steps` batches of random windows of the text, each with memory of its own: a view keeps all the others alive."""
    tokens = windows(size.batch * steps, size.sequence).to(device)
    return [{"input_ids": part, "labels": part} for part in map(torch.clone, torch.split(tokens, size.batch))]


def train_step(model: Any, optimizer: torch.optim.Optimizer, batch: Batch, seed: int) -> Tensor:
    """Forward, backward, AdamW; the loss. The seed fixes the dropout masks."""
    torch.manual_seed(seed)
    loss: Tensor = model(**batch).loss
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def train(size: Size, steps: int, budget: str, device: torch.device) -> memcompile.Report:
    """Train under `budget` with a progress bar, measure one step, and return the report with both peaks."""
    torch.manual_seed(SEED)
    model = build_model(size).to(device)
    compiled = torch.compile(model, backend="memcompile", options={"memory_budget": _as_option(budget)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    data = batches(size, steps, device)
    with _progress("planning and compiling", steps) as advance:
        for step, batch in enumerate(data):
            advance(train_step(compiled, optimizer, batch, step).item())

    def forward_backward() -> None:
        compiled(**data[0]).loss.backward()
        model.zero_grad(set_to_none=True)

    report = memcompile.report(compiled)
    report.measured_peak_bytes = measure_peak(forward_backward, model=model, inputs=data[0]).peak_bytes
    return report


def _as_option(budget: str) -> int | str:
    return int(budget) if budget.isdigit() else budget


class _progress:
    """A progress bar with the loss: `with _progress(...) as advance: advance(loss)`."""

    def __init__(self, first: str, steps: int) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[loss]}"), TimeElapsedColumn(), console=console)
        self.task = self.bar.add_task(first, total=steps, loss="")

    def __enter__(self) -> Callable[..., None]:
        self.bar.start()
        return self.advance

    def advance(self, loss: float, description: str = "training") -> None:
        self.bar.update(self.task, advance=1, description=description, loss=f"loss [bold]{loss:.3f}[/]")

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def case_of(size: Size) -> Case:
    """The model of `size` as a case of the benchmark, so that the benchmark's peers can run it."""

    def build(_: int) -> tuple[nn.Module, Batch]:
        return build_model(size), batches(size, 1, torch.device("cpu"))[0]

    gpt2 = CASES["gpt2"]
    return Case("gpt2", "the example's GPT-2", build, gpt2.loss, gpt2.checkpoint)


@dataclass(frozen=True)
class Ready:
    """What a way says of itself once it is compiled."""

    peak_bytes: int
    planned_peak_bytes: int | None
    first_call_seconds: float


class Contender(Running[Any]):
    """One way in the side-by-side, training its own copy of the model in a process of its own: nothing that another way keeps
    (arenas, compiled code, memory of the heap) is counted for it."""

    def __init__(self, size: Size, steps: int, way: Way, device: str) -> None:
        super().__init__(case_of(size), way, device)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=LEARNING_RATE)
        self.data = enumerate(batches(size, steps, self.device))

    def ready(self) -> Ready:
        """Compile, and measure the peak."""
        self.first_call(cold=False)  # kernels that two ways share are compiled once
        planned = self.report().planned_peak_bytes if self.way.ours else None
        return Ready(self.peak().peak_bytes, planned, self.first_call_seconds)

    def train(self) -> tuple[float, float]:
        """The next step: seconds, and the loss."""
        step, batch = next(self.data)
        start = time.perf_counter()
        loss = train_step(self.model, self.optimizer, batch, step).item()
        return time.perf_counter() - start, loss


@dataclass
class Trained:
    """What the parent knows of a contender."""

    way: Way
    remote: Remote
    ready: Ready
    seconds: list[float] = field(default_factory=list)
    loss: float = 0.0

    def train(self) -> None:
        """One step, timed there."""
        seconds, self.loss = self.remote.ask("train")
        self.seconds.append(seconds)


def prepared(size: Size, steps: int, device: torch.device, way: Way) -> Trained:
    """A way, compiled and measured in its process. Raises `WayFailedError`."""
    with console.status(f"{way.name}: compiling and measuring"):
        remote = Quick(way.name, functools.partial(Contender, size, steps, way, str(device)))
        ready = remote.ask("ready")
    console.print(f"  [dim]{way.name}: ready after {ready.first_call_seconds:.0f} s[/]")
    return Trained(way, remote, ready)


def contenders(size: Size, steps: int, device: torch.device) -> Iterator[Trained | str]:
    """Every way of the side-by-side, compiled and measured one after the other; a text for one that could not run."""
    prepare = functools.partial(prepared, size, steps, device)
    yield prepare(EAGER)
    plain = prepare(PLAIN)
    yield plain
    settings = [prepare(way) for way in (ACTIVATION_BUDGETS[0], ACTIVATION_BUDGETS[-1])]  # the lowest peak is shown
    lowest = min(settings, key=lambda each: each.ready.peak_bytes)
    for other in settings:
        if other is not lowest:
            other.remote.close()
    yield lowest
    yield prepare(CHECKPOINT)
    for share in BUDGET_SHARES:
        budget_bytes = int(share * plain.ready.peak_bytes)
        way = memcompile_way(f"memcompile {format_bytes(budget_bytes)} ({share:.0%})", budget_bytes)
        try:
            yield prepare(way)
        except WayFailedError as error:
            if error.floor_bytes is None:
                raise
            yield f"{way.name}: does not fit, the smallest reachable peak is {format_bytes(error.floor_bytes)}"


def side_by_side(size: Size, steps: int, device: torch.device) -> Table:
    """Train every way from the same weights on the same batches, step by step in turns, and tabulate."""
    found = list(contenders(size, steps, device))
    ways = [each for each in found if isinstance(each, Trained)]
    with _progress("in turns", steps) as advance:
        for step in range(steps):
            shift = step % len(ways)
            for way in ways[shift:] + ways[:shift]:
                way.train()
            advance(ways[1].loss, "in turns")
    for way in ways:
        way.remote.close()
    table = Table(title=f"side by side: {steps} steps from the same weights", caption=_caption(found), title_justify="left")
    for name in ("way", "planned peak", "measured peak", "of plain", "step", "of plain", "final loss"):
        table.add_column(name, justify="left" if name == "way" else "right")
    plain = next(each for each in ways if each.way == PLAIN)
    for each in ways:
        table.add_row(*_cells(each, plain), style="bold" if each.ready.planned_peak_bytes else None)
    return table


def _cells(own: Trained, plain: Trained) -> list[str]:
    ratios = [mine / theirs for mine, theirs in zip(own.seconds, plain.seconds, strict=True)]
    name, planned = own.way.name, own.ready.planned_peak_bytes
    return [
        f"activation_memory_{name}" if own.way in ACTIVATION_BUDGETS else name,
        format_bytes(planned) if planned else "",
        format_bytes(own.ready.peak_bytes),
        f"{own.ready.peak_bytes / plain.ready.peak_bytes:.2f}",
        f"{statistics.median(own.seconds):.3f} s",
        f"{statistics.median(ratios):.2f}",
        f"{own.loss:.3f}",
    ]


def _caption(found: Sequence[Trained | str]) -> str:
    lines = [each for each in found if isinstance(each, str)]
    return "\n".join([*lines, "times: medians; ratios: paired with plain torch.compile's step of the same batch"])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default=None, help="bytes, '150MiB', or (the default) '60%%' of the peak without a plan")
    parser.add_argument("--steps", type=int, default=40, help="of training under the budget (default 40)")
    parser.add_argument("--compare-steps", type=int, default=15, help="of the side-by-side; 0: none (default 15)")
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--width", type=int, default=Size.width)
    parser.add_argument("--sequence", type=int, default=Size.sequence)
    parser.add_argument("--batch", type=int, default=Size.batch)
    parser.add_argument("--quick", action="store_true", help="two layers, ten steps, no side-by-side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", type=Path, default=None, metavar="FOLDER", help="save the report there")
    args = parser.parse_args(argv)
    if args.quick:
        args.layers, args.steps, args.compare_steps = 2, 10, 0  # two layers have little to recompute: a wider budget
    args.budget = args.budget or ("80%" if args.quick else "60%")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Train, report, compare. Returns 0, or 1 when memcompile refuses (its message says why, and what to do)."""
    args = _arguments(argv)
    size = Size(layers=args.layers, width=args.width, sequence=args.sequence, batch=args.batch)
    device = torch.device(args.device)
    console.print(
        f"[bold]GPT-2[/], {size.layers} layers of width {size.width}, {size.batch} x {size.sequence} bytes of Python's"
        f" documentation, dropout on, {device}, budget [bold]{args.budget}[/]"
    )
    try:
        report = train(size, args.steps, args.budget, device)
        print(report)
        if args.save is not None:
            console.print(f"saved to {report.save(args.save)}")
        if args.compare_steps:
            console.print("side by side, each way in a process of its own:")
            console.print(side_by_side(size, args.compare_steps, device))
    except (MemcompileError, WayFailedError) as error:
        console.print(f"[red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
