"""What the image examples share: run a network in several ways, measure each one's peak, and put them beside each other.

Each way runs in a process of its own: what another one keeps (arenas, compiled code) is not counted for it.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import memcompile
from memcompile.errors import MemcompileError
from memcompile.runtime.measure import entry_storages, measure_peak
from memcompile.units import format_bytes

console = Console(width=None if sys.stdout.isatty() else 120)

EAGER, PLAIN, OURS = "eager", "inductor", "memcompile"
"""Compilers of a way: none, plain torch.compile, torch.compile with memcompile's options."""


@dataclass(frozen=True)
class Contender:
    """One way that ran. ``entry_bytes``: parameters, buffers and the input. ``report``: memcompile's, as text, and ``saved``:
    the folder that it was saved to."""

    name: str
    output: NDArray[Any]
    peak_bytes: int
    entry_bytes: int
    step_seconds: float
    first_call_seconds: float = 0.0
    report: str = ""
    saved: str = ""

    @property
    def transient_bytes(self) -> int:
        """What the network needs beyond its parameters and its input."""
        return self.peak_bytes - self.entry_bytes


def contend(
    name: str,
    build: Callable[[], nn.Module],
    x: Tensor,
    compiler: str = EAGER,
    options: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Contender:
    """Run a way in a process of its own: compile, measure the peak, take the time. Raises `MemcompileError`.

    ``build``: makes the network, from a function that can be pickled. ``folder``: where memcompile's report is saved.
    """
    spawn = multiprocessing.get_context("spawn")
    with console.status(f"{name}: compiling and measuring"), ProcessPoolExecutor(1, mp_context=spawn) as process:
        found = process.submit(_ran, name, build, x.numpy(force=True), str(x.device), compiler, options, folder).result()
    if isinstance(found, str):
        raise MemcompileError(found)
    console.print(f"  [dim]{name}: ready after {found.first_call_seconds:.0f} s[/]")
    return found


def _ran(
    name: str,
    build: Callable[[], nn.Module],
    pixels: NDArray[Any],
    device: str,
    compiler: str,
    options: Mapping[str, Any] | None,
    folder: Path | None,
) -> Contender | str:
    """One way, in its process; a text where memcompile refuses."""
    module, x = build().to(device), torch.from_numpy(pixels).to(device)
    call = module if compiler == EAGER else torch.compile(module, backend=compiler, options=dict(options or {}) or None)
    try:
        found = _measured(name, call, module, x)
    except MemcompileError as error:
        return f"{type(error).__name__}: {error}"
    if compiler != OURS:
        return found
    report = memcompile.report(call)
    saved = "" if folder is None else str(report.save(folder))
    return Contender(**{**vars(found), "report": str(report), "saved": saved})


def _measured(name: str, call: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Contender:
    """Call three times: compile, measure the peak, take the time. ``module`` owns the parameters that ``call`` reads."""
    with torch.no_grad():
        start = time.perf_counter()
        output = call(x)
        _synchronize(x)
        first_call_seconds = time.perf_counter() - start
        entry_bytes = sum(entry_storages(module, {"x": x}, x.device).values())
        peak_bytes = measure_peak(lambda: call(x), model=module, inputs={"x": x}).peak_bytes
        start = time.perf_counter()
        call(x)
        _synchronize(x)
        step_seconds = time.perf_counter() - start
    return Contender(name, output.numpy(force=True), peak_bytes, entry_bytes, step_seconds, first_call_seconds)


def _synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def difference(reference: NDArray[Any], output: NDArray[Any]) -> float:
    """The largest difference of two results, as a share of the largest value."""
    return float(np.abs(reference - output).max() / np.abs(reference).max())


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
