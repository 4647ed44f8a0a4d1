"""The memory of a step as one SVG: bytes alive over the ops, planned and without a plan, with budget and measured peak."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from memcompile.report.data import GraphReport, TimelinePoint
from memcompile.units import format_bytes

WIDTH, HEIGHT = 960, 300
LEFT, RIGHT, TOP, BOTTOM = 78, 150, 14, 34
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
COLUMNS = 360
"""Columns of a curve at most. A column shows the highest of its ops, so that no peak is lost."""


def memory_chart(graph: GraphReport, measured_peak_bytes: int | None = None) -> str:
    """An ``<svg>`` element (styled by the page's CSS classes), or "" when the graph has no timeline."""
    planned = (*graph.forward_timeline, *graph.backward_timeline)
    if not planned:
        return ""
    levels = [point.live_bytes for point in (*planned, *graph.base_timeline)]
    levels += [value for value in (graph.budget_bytes, measured_peak_bytes) if value is not None]
    top = nice_ceiling(max(max(levels), 1))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="chart" aria-label="Bytes alive over the ops of the step">',
        *_grid(top),
        *_curves(planned, graph.base_timeline, top),
        *_boundary(len(graph.forward_timeline), len(planned)),
        *_levels(graph, planned, measured_peak_bytes, top),
        *_hover_columns(planned),
        "</svg>",
    ]
    return "\n".join(parts)


def nice_ceiling(size_bytes: int, ticks: int = 4) -> int:
    """A round size above ``size_bytes`` whose ``ticks`` parts are round too: a digit or so times a power of ten of a unit."""
    unit = 1
    while size_bytes / unit >= 1024:
        unit *= 1024
    target = size_bytes * 1.04 / unit / ticks
    power = 0.01
    while True:
        for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8):
            if power * factor >= target:
                return max(ticks, round(power * factor * ticks * unit))
        power *= 10


def _x(share: float) -> float:
    return round(LEFT + share * PLOT_WIDTH, 1)


def _y(live_bytes: float, top: int) -> float:
    return round(TOP + PLOT_HEIGHT * (1 - live_bytes / top), 1)


def _grid(top: int, ticks: int = 4) -> list[str]:
    parts = []
    for tick in range(ticks + 1):
        level = top * tick / ticks
        y = _y(level, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + PLOT_WIDTH}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{format_bytes(level)}</text>')
    return parts


def _columns(points: Sequence[TimelinePoint]) -> list[TimelinePoint]:
    """``points`` thinned to `COLUMNS`, each the one with the most bytes of its share."""
    count = min(COLUMNS, len(points))
    bounds = [index * len(points) // count for index in range(count + 1)]
    return [max(points[a:b], key=lambda point: point.live_bytes) for a, b in pairwise(bounds)]


def _steps(points: Sequence[TimelinePoint], top: int) -> str:
    columns = _columns(points)
    path = [f"M{_x(0)} {_y(columns[0].live_bytes, top)}"]
    for index, point in enumerate(columns):
        path.append(f"V{_y(point.live_bytes, top)}H{_x((index + 1) / len(columns))}")
    return "".join(path)


def _curves(planned: Sequence[TimelinePoint], base: Sequence[TimelinePoint], top: int) -> list[str]:
    line = _steps(planned, top)
    floor = _y(0, top)
    parts = [
        f'<path class="area" d="{line}V{floor}H{LEFT}Z"/>',
        f'<path class="planned" d="{line}"/>',
    ]
    if base:
        parts.insert(0, f'<path class="base" d="{_steps(base, top)}"/>')
    return parts


def _boundary(forward_ops: int, all_ops: int) -> list[str]:
    y = TOP + PLOT_HEIGHT + 22
    if not 0 < forward_ops < all_ops:
        return [f'<text class="tick" x="{_x(0.5)}" y="{y}" text-anchor="middle">ops in order ({all_ops})</text>']
    share = forward_ops / all_ops
    x = _x(share)
    backward = all_ops - forward_ops
    return [
        f'<line class="boundary" x1="{x}" x2="{x}" y1="{TOP}" y2="{TOP + PLOT_HEIGHT + 6}"/>',
        f'<text class="tick" x="{_x(share / 2)}" y="{y}" text-anchor="middle">forward ({forward_ops} ops)</text>',
        f'<text class="tick" x="{_x((1 + share) / 2)}" y="{y}" text-anchor="middle">backward ({backward} ops)</text>',
    ]


def _levels(graph: GraphReport, planned: Sequence[TimelinePoint], measured: int | None, top: int) -> list[str]:
    """Horizontal levels with their names at the right, pushed apart where they would overlap."""
    named = [("planned", "planned", max(point.live_bytes for point in planned))]
    if graph.base_timeline:
        named.append(("base", "no plan", max(point.live_bytes for point in graph.base_timeline)))
    if graph.budget_bytes is not None:
        named.append(("budget", "budget", graph.budget_bytes))
    if measured is not None:
        named.append(("measured", "measured", measured))
    lines, labels, last = [], [], 0.0
    for style, name, level in sorted(named, key=lambda item: -item[2]):
        y = _y(level, top)
        label = max(y + 4, last + 14, TOP + 4.0)
        last = label
        lines.append(f'<line class="level {style}" x1="{LEFT}" x2="{LEFT + PLOT_WIDTH}" y1="{y}" y2="{y}"/>')
        text = f"{name} {format_bytes(level)}"
        labels.append(f'<text class="label {style}" x="{LEFT + PLOT_WIDTH + 8}" y="{round(label, 1)}">{text}</text>')
    return [*reversed(lines), *labels]  # higher levels on top: a budget is not hidden by the peak just below it


def _hover_columns(planned: Sequence[TimelinePoint]) -> list[str]:
    columns = _columns(planned)
    width = round(PLOT_WIDTH / len(columns), 2)
    return [
        f'<rect class="hover" x="{_x(index / len(columns))}" y="{TOP}" width="{width}" height="{PLOT_HEIGHT}">'
        f"<title>{escape(point.op)}: {format_bytes(point.live_bytes)}</title></rect>"
        for index, point in enumerate(columns)
    ]
