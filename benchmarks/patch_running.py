"""One way of running one patch case, compiled and alive, at the other end of a pipe (`workers.Remote`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import memcompile
from benchmarks.patch_cases import CASES, Case
from benchmarks.stepping import ModuleStep, refusals
from benchmarks.workers import Remote
from memcompile.report.data import Report

Kind = Literal["eager", "compile", "tiling", "memcompile"]


@dataclass(frozen=True)
class Way:
    """One way to run a network.

    ``max_overhead``: memcompile takes the smallest peak for at most that share of extra multiply-adds. ``transient_share``:
    it takes the least time that keeps activations within that share of plain torch.compile's, which ``memory_budget`` turns
    into bytes of everything alive.
    """

    name: str
    kind: Kind
    max_overhead: float | None = None
    transient_share: float | None = None
    memory_budget: int | None = None

    @property
    def options(self) -> dict[str, object]:
        """For `torch.compile(backend="memcompile")`."""
        options: dict[str, object] = {}
        if self.max_overhead is not None:
            options["patch"] = {"max_overhead": self.max_overhead}
        if self.memory_budget is not None:
            options["memory_budget"] = self.memory_budget
        return options


EAGER, PLAIN = Way("eager", "eager"), Way("compile", "compile")
TILING = Way("diffusers tiling", "tiling")
"""The library's own, eager; of cases that have one."""


def within_overhead(share: float) -> Way:
    """memcompile's smallest peak for that share of extra multiply-adds."""
    return Way(f"memcompile +{share * 100:g} %", "memcompile", max_overhead=share)


def within_share(share: float) -> Way:
    """memcompile's least time with that share of plain's transient bytes."""
    return Way(f"memcompile in {share * 100:g} %", "memcompile", transient_share=share)


@dataclass(frozen=True)
class Patched:
    """What the pass planned, from its report: peaks of activations alone, multiply-adds, the seconds that planning took.

    ``base_*``: layer by layer. ``stages``: in order, "2 x layerwise, patches 4 x 4".
    """

    peak_bytes: int
    base_peak_bytes: int
    macs: int
    base_macs: int
    seconds: float
    stages: str


@dataclass(frozen=True)
class Prepared:
    """``entry_bytes``: parameters, buffers and batch. Measured peaks are those of cases that run; ``note``: refusals."""

    entry_bytes: int
    peak_bytes: int | None = None
    first_call_seconds: float | None = None
    planned_peak_bytes: int | None = None
    patched: Patched | None = None
    note: str = ""


class Running(ModuleStep):
    """``module`` is the bare network, ``model`` what is called."""

    def __init__(self, case: Case, way: Way, device: str, scale: int, dtype: torch.dtype) -> None:
        self.way = way
        super().__init__(*case.make(scale, device, dtype, tiled=way.kind == "tiling"))
        self.model: Callable[..., Any] = self._compiled()

    def _compiled(self) -> Callable[..., Any]:
        if self.way.kind in ("eager", "tiling"):
            return self.module
        if self.way.kind == "memcompile":
            return torch.compile(self.module, backend="memcompile", options=self.way.options)
        return torch.compile(self.module)

    def call(self) -> Tensor:
        """The output."""
        with torch.no_grad():
            found: Tensor = self.model(*self.batch.values())
        return found

    def prepare(self) -> Prepared:
        """Compile from an empty cache by one step, and measure the peak."""
        found = self.measured()
        first_call_seconds = found.first_call_seconds if self.way.kind in ("compile", "memcompile") else None
        if self.way.kind != "memcompile":
            return Prepared(found.entry_bytes, found.peak_bytes, first_call_seconds)
        report = memcompile.report(self.model)
        planned = (report.planned_peak_bytes, patched(report), refusals(report))
        return Prepared(found.entry_bytes, found.peak_bytes, first_call_seconds, *planned)


def remote(case: str, way: Way, device: str, scale: int, dtype: torch.dtype, threads: int) -> Remote:
    """A `Running` in a process of its own."""
    return Remote(way, functools.partial(_running, case, way, device, scale, dtype), threads)


def _running(case: str, way: Way, device: str, scale: int, dtype: torch.dtype) -> Running:
    return Running(CASES[case], way, device, scale, dtype)


def plan(case: Case, way: Way, scale: int) -> Prepared:
    """Plan a case that does not run, here. Raises what `memcompile.plan` raises."""
    module, batch = case.make(scale)
    with torch.no_grad():
        report = memcompile.plan(module, *batch.values(), options={**way.options, "bytes_per_element": case.bytes_per_element})
    entry = sum(math.prod(t.shape) for t in (*module.parameters(), *module.buffers(), *batch.values()))
    return Prepared(entry * case.bytes_per_element, patched=patched(report), note=refusals(report))


def patched(report: Report) -> Patched | None:
    """What the pass says of the graphs that it changed; None where there is none. Peaks are the largest, work adds up."""
    found = [graph["patch"] for graph in report.graphs if graph["patch"] is not None]
    if not found:
        return None
    return Patched(
        max(each.peak_bytes for each in found),
        max(each.base_peak_bytes for each in found),
        sum(each.macs for each in found),
        sum(each.base_macs for each in found),
        sum(each.seconds for each in found),
        _stages([stage for each in found for stage in each.stages]),
    )


def _stages(stages: list[Any]) -> str:
    """Each run of equal stages once."""
    texts = [stage.kind if stage.kind == "layerwise" else f"{stage.kind} {_grid(stage.grid)}" for stage in stages]
    runs: list[tuple[str, int]] = []
    for text in texts:
        before, count = runs[-1] if runs else ("", 0)
        runs = [*runs[:-1], (text, count + 1)] if text == before else [*runs, (text, 1)]
    return ", ".join(text if count == 1 else f"{count} x {text}" for text, count in runs)


def _grid(grid: tuple[int, int]) -> str:
    return " x ".join(map(str, grid))
