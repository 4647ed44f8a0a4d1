"""The ways of the patch benchmark, and one of them running one case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import memcompile
from benchmarks.core.steps import Step, refusals
from benchmarks.core.ways import PLAIN, Way
from benchmarks.patch_cases import Case
from benchmarks.patch_table import Row
from memcompile.passes.tiles.figure import PatchStage

TILING = Way("diffusers tiling", "eager", variant="tiling")
"""The library's own, eager; of cases that have one."""


def within_overhead(share: float) -> Way:
    """memcompile's smallest peak for that share of extra multiply-adds."""
    return Way(f"memcompile +{share * 100:g} %", "memcompile", {"patch": {"max_overhead": share}})


def within_share(share: float) -> Way:
    """memcompile's least time with that share of plain's transient bytes."""
    return Way(f"memcompile in {share * 100:g} %", "memcompile", share=share)


class Running(Step[Row]):
    """A network in inference."""

    def __init__(self, case: Case, way: Way, device: str, scale: int, dtype: torch.dtype) -> None:
        super().__init__(way, *case.make(scale, device, dtype, tiled=way == TILING))

    def step(self) -> Tensor:
        """The output."""
        with torch.no_grad():
            found: Tensor = self.model(*self.batch.values())
        return found

    def measured(self, row: Row) -> Row:
        """Peak, first call and stages."""
        entry_bytes, first_call_seconds, peak_bytes = self.entry_bytes(), self.first_call(), self.peak().peak_bytes
        row = replace(
            row,
            entry_bytes=entry_bytes,
            peak_bytes=peak_bytes,
            transient_bytes=peak_bytes - entry_bytes,
            first_call_seconds=first_call_seconds if self.way == PLAIN or self.way.ours else None,
        )
        if not self.way.ours:
            return row
        report = memcompile.report(self.model)
        return with_patches(replace(row, planned_peak_bytes=report.planned_peak_bytes), report)


def planned(case: Case, way: Way, scale: int, row: Row) -> Row:
    """Plan a case that does not run, here. Raises what `memcompile.plan` raises."""
    module, batch = case.make(scale)
    with torch.no_grad():
        report = memcompile.plan(module, *batch.values(), options={**way.options, "bytes_per_element": case.bytes_per_element})
    entry = sum(math.prod(t.shape) for t in (*module.parameters(), *module.buffers(), *batch.values()))
    return with_patches(replace(row, status="planned", entry_bytes=entry * case.bytes_per_element), report)


def with_patches(row: Row, report: memcompile.Report) -> Row:
    """``row`` with what was refused, and what the pass says of the graphs that it changed: the largest peak, all the work."""
    row = replace(row, note=refusals(report))
    found = [graph["patch"] for graph in report.graphs if graph["patch"] is not None]
    if not found:
        return row
    return replace(
        row,
        patch_peak_bytes=max(each.peak_bytes for each in found),
        patch_base_bytes=max(each.base_peak_bytes for each in found),
        macs=sum(each.macs for each in found),
        base_macs=sum(each.base_macs for each in found),
        plan_seconds=sum(each.seconds for each in found),
        stages=_stages([stage for each in found for stage in each.stages]),
    )


def _stages(stages: Sequence[PatchStage]) -> str:
    """Each run of equal stages once."""
    texts = [stage.kind if stage.kind == "layerwise" else f"{stage.kind} {_grid(stage.grid)}" for stage in stages]
    runs: list[tuple[str, int]] = []
    for text in texts:
        before, count = runs[-1] if runs else ("", 0)
        runs = [*runs[:-1], (text, count + 1)] if text == before else [*runs, (text, 1)]
    return ", ".join(text if count == 1 else f"{count} x {text}" for text, count in runs)


def _grid(grid: tuple[int, int]) -> str:
    return " x ".join(map(str, grid))
