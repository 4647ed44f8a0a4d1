"""Parts of the picture of a network in stages: a card for each stage with its grid, and peak against multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from memcompile.passes.tiles.figure import PatchReport, PatchStage
from memcompile.passes.tiles.stage_text import how_text
from memcompile.units import format_bytes, format_count

CARD_WIDTH, CARD_HEIGHT = 200, 80
"""Least width, and height, of a card."""
THUMB = 48
"""Longer side of a drawn image."""
MOST_LINES = 24
"""Lines of a drawn grid each way: of finer grids every other one is left out, and so on."""


def card_rows(count: int, width: int) -> int:
    """Height of ``count`` cards in rows of ``width``."""
    return CARD_HEIGHT * math.ceil(count / (width // CARD_WIDTH))


def cards(patch: PatchReport, styles: Sequence[str], left: int, top: int, width: int) -> Iterator[str]:
    """The stages in rows, each with its number, grid, peak and multiply-adds."""
    across = width // CARD_WIDTH
    highest = max(stage.peak_bytes for stage in patch.stages)
    for index, (stage, style) in enumerate(zip(patch.stages, styles, strict=True)):
        x, y = left + index % across * (width // across), top + index // across * CARD_HEIGHT
        count = f"{stage.operators} operator{'s' * (stage.operators != 1)}"
        again = f", again {', '.join(stage.again)}" if stage.again else ""
        yield f'<g class="{style} stage"><title>{escape(f"{stage.first} to {stage.last}, {count}{again}")}</title>'
        yield from _image(patch, stage, x, y)
        yield f'<circle class="band" cx="{x}" cy="{y + 2}" r="8.5"/>'
        yield f'<text class="number" x="{x}" y="{y + 6}">{index + 1}</text>'
        lines = (
            ("strong", how_text(stage).replace(" x ", " × ")),
            ("small", f"{format_bytes(stage.peak_bytes)}{', the peak' if stage.peak_bytes == highest else ''}"),
            ("small", f"{stage.operators} op{'s' * (stage.operators != 1)} · {format_count(stage.macs)} MACs"),
            ("small", _short(stage.source)),
        )
        for number, (kind, text) in enumerate(lines):
            yield f'<text class="{kind}" x="{x + THUMB + 10}" y="{y + 8 + 15 * number}">{escape(text)}</text>'
        yield "</g>"


def _short(source: str, most: int = 22) -> str:
    return source if len(source) <= most else f"…{source[1 - most :]}"


def _image(patch: PatchReport, stage: PatchStage, left: int, top: int) -> Iterator[str]:
    """The image that the grid divides, in proportion, with one tile and what surrounds it."""
    height, width = _pixels(patch, stage)
    scale = THUMB / max(height, width)
    high, wide = max(6.0, height * scale), max(6.0, width * scale)
    yield _rectangle("image", left, top, wide, high)
    if stage.kind == "layerwise":
        return
    down, across = stage.grid[0], stage.grid[1] if stage.kind == "patches" else 1
    step_down, step_across = (math.ceil(parts / MOST_LINES) for parts in (down, across))
    for line in range(step_down, down, step_down):
        y = round(top + high * line / down, 2)
        yield f'<line class="cut" x1="{left}" x2="{round(left + wide, 2)}" y1="{y}" y2="{y}"/>'
    for line in range(step_across, across, step_across):
        x = round(left + wide * line / across, 2)
        yield f'<line class="cut" x1="{x}" x2="{x}" y1="{top}" y2="{round(top + high, 2)}"/>'
    tile_high, tile_wide = max(high / down, 1.5), max(wide / across, 1.5)
    y, x = top + high * (down // 2) / down, left + wide * (across // 2) / across
    if stage.kind == "patches":
        over = 0.3 * min(tile_high, tile_wide)
        yield _rectangle(
            "halo", *_inside(left, top, wide, high, x - over, y - over, tile_wide + 2 * over, tile_high + 2 * over)
        )
    else:
        yield _rectangle("halo", *_inside(left, top, wide, high, left, y - 0.5 * tile_high, wide, tile_high))
    yield _rectangle("held", *_inside(left, top, wide, high, x, y, tile_wide, tile_high))


def _pixels(patch: PatchReport, stage: PatchStage) -> tuple[int, int]:
    """Height and width of the last result with pixels."""
    places = {operator.name: place for place, operator in enumerate(patch.operators)}
    inside = patch.operators[places[stage.first] : places[stage.last] + 1]
    images = [(operator.height, operator.width) for operator in inside if operator.height * operator.width > 1]
    return images[-1] if images else (1, 1)


def _inside(
    left: float, top: float, wide: float, high: float, x: float, y: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """A rectangle cut to an image."""
    x0, y0 = max(x, left), max(y, top)
    return x0, y0, min(x + width, left + wide) - x0, min(y + height, top + high) - y0


def _rectangle(style: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{style}" x="{round(x, 2)}" y="{round(y, 2)}" width="{round(max(width, 0), 2)}"'
        f' height="{round(max(height, 0), 2)}"/>'
    )


def frontier_chart(patch: PatchReport, left: int, top: int, width: int, height: int) -> Iterator[str]:
    """Peak (logarithmic) against extra multiply-adds of the plans that the search has seen, with the one that was taken."""
    points = [(peak, macs / max(1, patch.base_macs) - 1) for peak, macs in patch.frontier]
    most = _highest(patch, points)
    shown = [(peak, share) for peak, share in points if peak > 0 and share <= most]
    ends = [*(peak for peak, _ in shown), patch.peak_bytes, patch.base_peak_bytes]
    low, high = math.log(max(1, min(ends))), math.log(max(2, *ends))
    plot_left, plot_right, plot_top, floor = left + 44, left + width - 12, top + 24, top + height - 34

    def x(peak: int) -> float:
        return round(plot_left + (plot_right - plot_left) * (math.log(max(1, peak)) - low) / max(high - low, 1e-9), 2)

    def y(share: float) -> float:
        return round(floor - (floor - plot_top) * min(max(share, 0.0), most) / most, 2)

    yield f'<g class="frontier"><text class="strong" x="{left}" y="{top + 4}">Peak against extra multiply-adds</text>'
    for share in (0.0, most / 2, most):
        yield f'<line class="grid" x1="{plot_left}" x2="{plot_right}" y1="{y(share)}" y2="{y(share)}"/>'
        yield f'<text class="end" x="{plot_left - 6}" y="{y(share) + 4}">{100 * share:.4g} %</text>'
    if shown:
        first = plot_top if len(shown) < len(points) else y(shown[0][1])
        path = "".join(f"H{x(peak)}V{y(share)}" for peak, share in shown)
        yield f'<path class="before" d="M{x(shown[0][0])} {first}{path}H{plot_right}"/>'
    for peak, share in shown:
        title = f"{format_bytes(peak)}, {100 * share:+.1f} % multiply-adds"
        yield f'<circle class="dot" cx="{x(peak)}" cy="{y(share)}" r="3"><title>{title}</title></circle>'
    yield f'<circle class="dot" cx="{x(patch.base_peak_bytes)}" cy="{floor}" r="4"/>'
    yield f'<circle class="chosen" cx="{x(patch.peak_bytes)}" cy="{y(patch.overhead)}" r="5"/>'
    taken = format_bytes(patch.peak_bytes)
    yield f'<text class="strong" x="{x(patch.peak_bytes) + 9}" y="{y(patch.overhead) - 7}">{taken}</text>'
    yield f'<text class="end" x="{plot_right}" y="{floor - 9}">layer by layer</text>'
    for peak, anchor in ((min(ends), "start"), (max(ends), "end")):
        yield f'<text x="{x(peak)}" y="{floor + 16}" text-anchor="{anchor}">{format_bytes(peak)}</text>'
    yield f'<text class="middle" x="{(plot_left + plot_right) / 2}" y="{floor + 30}">peak, logarithmic</text></g>'


def _highest(patch: PatchReport, points: Sequence[tuple[int, float]]) -> float:
    """Top of the axis of extra work: plans far beyond the one that was taken are cut off."""
    wanted = min(max((share for _, share in points), default=0.0), max(0.2, 4 * patch.overhead))
    return next(step for step in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 8, 16, math.inf) if step >= wanted)
