"""What became of a network of images, as a part of the report."""

from __future__ import annotations

from collections.abc import Iterator

from memcompile.passes.base import Section, refusals
from memcompile.passes.residuals.kernels import Inverted
from memcompile.passes.tiles.choose import Tiled
from memcompile.passes.tiles.stage_text import how_text, patch_summary
from memcompile.report.data import DecisionRow, PassReport
from memcompile.streaming.source import kernels_of
from memcompile.units import format_bytes


def section_of(inverted: Inverted, tiled: Tiled | None, outside: int) -> Section:
    """``outside``: bytes alive beside the graph."""
    refused = "" if tiled is None else tiled.report.refused
    return Section(
        passes=() if tiled is None or refused else (_row(tiled, outside),),
        decisions=(*_kernels(inverted), *refusals(inverted.refused), *(() if tiled is None else _stages(tiled))),
        notes=(f"images are made layer by layer: {refused}",) if refused else (),
        kernels=kernels_of("inverted_residual", inverted.blocks),
        figures=() if tiled is None else (tiled.report,),
    )


def _kernels(inverted: Inverted) -> Iterator[DecisionRow]:
    """Inverted residuals that run as one kernel."""
    for block in inverted.blocks:
        yield DecisionRow("tile", block.node, block.source, block.saved_bytes, None, inverted.why)


def _stages(tiled: Tiled) -> Iterator[DecisionRow]:
    """Stages that run tile by tile; they save what the planner counts of their peak."""
    for patched, stage in zip(tiled.patched, tiled.report.tiled, strict=False):
        program = patched.program
        count = f"{stage.operators} operator{'s' * (stage.operators != 1)} from {stage.first} on"
        again = f", {', '.join(stage.again)} made again" if stage.again else ""
        bodies = f"{len(program.bodies)} kind{'s' * (len(program.bodies) != 1)} of tile"
        inside = format_bytes(program.workspace_bytes + program.scratch_bytes)
        why = f"{count} in {how_text(stage)}{again}: {bodies}, {inside} for one"
        saves = stage.base_peak_bytes - stage.peak_bytes
        yield DecisionRow("tile", stage.last, stage.source or patched.source, saves if saves > 0 else None, None, why)


def _row(tiled: Tiled, outside: int) -> PassReport:
    """What stages did to the peak: exactly, where the graph was lowered with and without them."""
    patch = tiled.report
    before, after = patch.base_peak_bytes, patch.peak_bytes
    if tiled.gm is not None:
        before, after = tiled.base_peak_bytes + outside, tiled.peak_bytes + outside
    return PassReport("patch", before, after, 0.0, 0.0, patch.seconds, patch_summary(patch))
