"""The ways of the low-rank benchmark, and one of them running one case."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import memcompile
from benchmarks.core.steps import Arrays, Step, refusals
from benchmarks.core.ways import EAGER, PLAIN, Way
from benchmarks.low_rank_cases import Case, Size
from benchmarks.low_rank_nets import densified
from benchmarks.low_rank_peers import adapted
from benchmarks.low_rank_table import WHOLE, Row

TILE = re.compile(r"(\d+) blocks of (\d+) rows")
MEMCOMPILE = Way("memcompile", "memcompile")
DENSE = Way("dense", "compile", variant="dense")
AUTOTUNED = Way("compile max-autotune", "compile", torch._inductor.list_mode_options("max-autotune-no-cudagraphs"))
WAYS = (EAGER, PLAIN, AUTOTUNED, DENSE, MEMCOMPILE)
PEERS = tuple(Way(name, "eager", variant=name) for name in ("flashsvd", "blr"))
UNSTREAMED = Way(WHOLE, "memcompile", {"low_rank": False})
"""Of planned cases alone."""


class Running(Step[Row]):
    """A layer or a model, in inference or in a training step."""

    def __init__(self, case: Case, way: Way, device: str, size: Size, dtype: torch.dtype) -> None:
        self.case = case
        module, batch = case.make(size, device, dtype)
        super().__init__(way, _changed(module, way), batch)

    def call(self) -> Tensor:
        """The output, or the loss after the backward, which leaves the gradients in place."""
        if not self.case.training:
            with torch.no_grad():
                return _leading(self.model(*self.batch.values()))
        loss: Tensor = self.model(*self.batch.values())
        torch.autograd.backward(loss)
        return loss.detach()

    def step(self) -> Tensor:
        """Gradients are dropped as an optimizer would after its step."""
        output = self.call()
        self.module.zero_grad(set_to_none=True)
        return output

    def measured(self, row: Row) -> Row:
        """Peak, first call and tiles; of a planned case, what is planned."""
        if self.case.planned:
            return self._planned(row)
        entry_bytes, first_call_seconds, peak_bytes = self.entry_bytes(), self.first_call(), self.peak().peak_bytes
        row = replace(
            row,
            entry_bytes=entry_bytes,
            peak_bytes=peak_bytes,
            transient_bytes=peak_bytes - entry_bytes,
            first_call_seconds=None if self.way == EAGER else first_call_seconds,
        )
        return with_report(row, memcompile.report(self.model)) if self.way.ours else row

    def _planned(self, row: Row) -> Row:
        with torch.set_grad_enabled(self.case.training):
            report = memcompile.plan(self.module, *self.batch.values(), options={**self.way.options, "lower": True})
        tensors = [*self.module.parameters(), *self.module.buffers(), *self.batch.values()]
        entry_bytes = sum(t.nbytes for t in tensors)
        row = replace(row, status="planned", entry_bytes=entry_bytes, transient_bytes=report.planned_peak_bytes - entry_bytes)
        return with_report(row, report)

    def results(self) -> Arrays:
        """The output, or loss and gradients, in fp32."""
        found = {"output": self.call()}
        found |= {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        arrays = {name: t.float().numpy(force=True) for name, t in found.items()}
        self.module.zero_grad(set_to_none=True)
        return arrays


def with_report(row: Row, report: memcompile.Report) -> Row:
    """``row`` with the planned peak, the tiles, and what was refused."""
    found = [TILE.match(each.why) for graph in report.graphs for each in graph.decisions if each.kind == "tile"]
    tiles = [match for match in found if match is not None]
    return replace(
        row,
        planned_peak_bytes=report.planned_peak_bytes,
        blocks=" ".join(match[1] for match in tiles),
        block_rows=" ".join(match[2] for match in tiles),
        note=refusals(report),
    )


def _changed(module: nn.Module, way: Way) -> nn.Module:
    """What a way runs in place of the factored module."""
    if way == DENSE:
        return densified(module)
    return adapted(way.variant, module) if way.variant else module


def _leading(output: Any) -> Tensor:
    """A model's first output."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found
