"""One way of running one low-rank case, compiled and alive, at the other end of a pipe (`workers.Remote`)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import memcompile
from benchmarks.low_rank_cases import CASES, Case, Size
from benchmarks.low_rank_nets import densified
from benchmarks.low_rank_peers import adapted
from benchmarks.stepping import Arrays, ModuleStep, refusals
from benchmarks.workers import Remote
from memcompile.report.data import Report

Kind = Literal["eager", "compile", "max-autotune", "dense", "memcompile", "peer"]
TILE = re.compile(r"(\d+) blocks of (\d+) rows")


@dataclass(frozen=True)
class Way:
    """One way to run a step. ``low_rank``: whether memcompile streams, of a planned case."""

    name: str
    kind: Kind
    low_rank: bool = True


EAGER, PLAIN = Way("eager", "eager"), Way("compile", "compile")
MEMCOMPILE = Way("memcompile", "memcompile")
WAYS = (EAGER, PLAIN, Way("compile max-autotune", "max-autotune"), Way("dense", "dense"), MEMCOMPILE)
PEERS = (Way("flashsvd", "peer"), Way("blr", "peer"))
UNSTREAMED = Way("memcompile low_rank=False", "memcompile", low_rank=False)
"""Of planned cases alone."""


@dataclass(frozen=True)
class Prepared:
    """``entry_bytes``: parameters, buffers and batch. ``peak_bytes``: measured; a planned case has none.

    ``tiles``: (blocks, rows of one) of each region that runs block by block. ``note``: what memcompile refused.
    """

    entry_bytes: int
    peak_bytes: int | None = None
    first_call_seconds: float | None = None
    planned_peak_bytes: int | None = None
    tiles: tuple[tuple[int, int], ...] = ()
    note: str = ""


class Running(ModuleStep):
    """``module`` is the bare module, ``model`` what is called."""

    def __init__(self, case: Case, way: Way, device: str, size: Size, dtype: torch.dtype) -> None:
        self.case, self.way = case, way
        module, batch = case.make(size, device, dtype)
        super().__init__(_changed(module, way), batch)
        self.model: Any = None if case.planned else self._compiled()

    def _compiled(self) -> Callable[..., Any]:
        if self.way.kind in ("eager", "peer"):
            return self.module
        if self.way.kind == "memcompile":
            return torch.compile(self.module, backend="memcompile")
        if self.way.kind == "max-autotune":
            return torch.compile(self.module, mode="max-autotune-no-cudagraphs")
        return torch.compile(self.module)

    def call(self) -> Tensor:
        """The output, or the loss after the backward, which leaves the gradients in place."""
        if not self.case.training:
            with torch.no_grad():
                return _leading(self.model(*self.batch.values()))
        loss: Tensor = self.model(*self.batch.values())
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        """What is measured and timed; gradients are dropped as an optimizer would after its step."""
        self.call()
        self.module.zero_grad(set_to_none=True)

    def prepare(self) -> Prepared:
        """Compile from an empty cache by one step, and measure the peak; of a planned case, only plan."""
        if self.case.planned:
            return self._plan()
        found = self.measured()
        if self.way.kind != "memcompile":
            first_call_seconds = found.first_call_seconds if self.way.kind != "eager" else None
            return Prepared(found.entry_bytes, found.peak_bytes, first_call_seconds)
        report = memcompile.report(self.model)
        return Prepared(found.entry_bytes, found.peak_bytes, found.first_call_seconds, *_planned(report))

    def _plan(self) -> Prepared:
        with torch.set_grad_enabled(self.case.training):
            report = memcompile.plan(self.module, *self.batch.values(), options={"low_rank": self.way.low_rank, "lower": True})
        tensors = [*self.module.parameters(), *self.module.buffers(), *self.batch.values()]
        return Prepared(sum(t.nbytes for t in tensors), None, None, *_planned(report))

    def results(self) -> Arrays:
        """The output, or loss and gradients, in fp32."""
        found = {"output": self.call()}
        found |= {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        arrays = {name: t.float().numpy(force=True) for name, t in found.items()}
        self.module.zero_grad(set_to_none=True)
        return arrays


def remote(case: str, way: Way, device: str, size: Size, dtype: torch.dtype, threads: int) -> Remote:
    """A `Running` in a process of its own."""
    return Remote(way, functools.partial(_running, case, way, device, size, dtype), threads)


def _running(case: str, way: Way, device: str, size: Size, dtype: torch.dtype) -> Running:
    return Running(CASES[case], way, device, size, dtype)


def _changed(module: nn.Module, way: Way) -> nn.Module:
    """What a way runs in place of the factored module."""
    if way.kind == "dense":
        return densified(module)
    return adapted(way.name, module) if way.kind == "peer" else module


def _planned(report: Report) -> tuple[int, tuple[tuple[int, int], ...], str]:
    """Planned peak, tiles and refusals."""
    rows = [row for graph in report.graphs for row in graph.decisions]
    found = [TILE.match(row.why) for row in rows if row.kind == "tile"]
    tiles = tuple((int(match[1]), int(match[2])) for match in found if match is not None)
    return report.planned_peak_bytes, tiles, refusals(report)


def _leading(output: Any) -> Tensor:
    """A model's first output."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found
