"""How a network of images runs in stages, in words."""

from __future__ import annotations

from memcompile.passes.tiles.figure import PatchReport, PatchStage
from memcompile.units import format_bytes, format_change, format_pair


def how_text(stage: PatchStage) -> str:
    """How a stage runs: "6 x 6 patches"."""
    down, across = stage.grid
    if stage.kind == "layerwise":
        return "layer by layer"
    return f"{down} strip{'s' * (down > 1)} of rows" if stage.kind == "rows" else f"{down} x {across} patches"


def work_text(patch: PatchReport) -> str:
    """The multiply-adds that a plan adds."""
    change = format_change(patch.base_macs, patch.macs)
    return "no extra multiply-adds" if change in ("0.0 %", "-") else f"{change} multiply-adds"


def patch_summary(patch: PatchReport) -> str:
    """What the pass did, on a line: "5 stages, 4 tiled (heuristic), +9.7 % multiply-adds"."""
    count = len(patch.stages)
    element = f", {element_text(patch)}" if patch.bytes_per_element else ""
    tiled = len(patch.tiled) or "none"
    return f"{count} stage{'s' * (count != 1)}, {tiled} tiled ({patch.status}), {work_text(patch)}{element}"


def images_text(patch: PatchReport) -> str:
    """The planner's peaks layer by layer and in stages."""
    if not patch.tiled:
        return f"{format_bytes(patch.base_peak_bytes)} layer by layer; no stages within the limits take less"
    peaks = format_pair(patch.base_peak_bytes, patch.peak_bytes)
    less = f"{patch.base_peak_bytes / patch.peak_bytes:.1f} times less, " if patch.peak_bytes else ""
    return f"{peaks} in stages instead of layer by layer: {less}{work_text(patch)} (planned, of the images alone)"


def operators_text(stage: PatchStage) -> str:
    """First and last operator of a stage, how many, and what it makes again."""
    text = stage.first if stage.operators == 1 else f"{stage.first} .. {stage.last} ({stage.operators})"
    return f"{text}, again {', '.join(stage.again)}" if stage.again else text


def element_text(patch: PatchReport) -> str:
    """In which bytes an element of an image is counted."""
    return f"{patch.bytes_per_element} byte{'s' * (patch.bytes_per_element != 1)} per element"
