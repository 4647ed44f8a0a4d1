"""What the image examples share: run a network in several ways, measure each one's peak, and put them beside each other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from memcompile.runtime.measure import entry_storages, measure_peak
from memcompile.units import format_bytes

console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Contender:
    """One way that ran. ``entry_bytes``: parameters, buffers and the input."""

    name: str
    output: Tensor
    peak_bytes: int
    entry_bytes: int
    step_seconds: float

    @property
    def transient_bytes(self) -> int:
        """What the network needs beyond its parameters and its input."""
        return self.peak_bytes - self.entry_bytes


def contend(name: str, call: Callable[[Tensor], Any], module: nn.Module, x: Tensor) -> Contender:
    """Call three times: compile, measure the peak, take the time. ``module`` owns the parameters that ``call`` reads."""
    with torch.no_grad(), console.status(f"{name}: compiling and measuring"):
        start = time.perf_counter()
        output: Tensor = call(x)
        _synchronize(x)
        first_call_seconds = time.perf_counter() - start
        entry_bytes = sum(entry_storages(module, {"x": x}, x.device).values())
        peak_bytes = measure_peak(lambda: call(x), model=module, inputs={"x": x}).peak_bytes
        start = time.perf_counter()
        call(x)
        _synchronize(x)
        step_seconds = time.perf_counter() - start
    console.print(f"  [dim]{name}: ready after {first_call_seconds:.0f} s[/]")
    return Contender(name, output, peak_bytes, entry_bytes, step_seconds)


def _synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def difference(reference: Tensor, output: Tensor) -> float:
    """The largest difference of two results, as a share of the largest value."""
    return float((reference - output).abs().max() / reference.abs().max())


def tabulate(title: str, contenders: Sequence[Contender], plain: str) -> Table:
    """One line each. Shares are of the one named ``plain``; differences are to the first one's output."""
    table = Table(title=title, title_justify="left")
    for name in ("way", "peak", "activations", "of plain", "step", "difference"):
        table.add_column(name, justify="left" if name == "way" else "right")
    first = contenders[0]
    reference = next(each for each in contenders if each.name == plain)
    for each in contenders:
        table.add_row(
            each.name,
            format_bytes(each.peak_bytes),
            format_bytes(each.transient_bytes),
            f"{each.transient_bytes / reference.transient_bytes:.2f}",
            f"{each.step_seconds:.2f} s",
            "" if each is first else f"{difference(first.output, each.output):.1e}",
            style="bold" if each.name.startswith("memcompile") else None,
        )
    return table
