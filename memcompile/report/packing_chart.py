"""A packing as one SVG: a rectangle a buffer, its life from left to right, its addresses from below."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from memcompile.solvers.places.packing import Buffer
from memcompile.units import format_bytes

WIDTH, HEIGHT = 960, 540
LEFT, TOP, BOTTOM = 90, 14, 34
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - 14, HEIGHT - TOP - BOTTOM
HUES = 12
STYLE = (
    ".packing text{font:12px sans-serif;fill:#667}.packing rect{stroke:#fff;stroke-width:.4}"
    ".packing .bound{stroke:#c33;stroke-dasharray:5 4}"
)


def packing_chart(buffers: Sequence[Buffer], offsets: Sequence[int], height: int, lower_bound: int) -> str:
    """A whole SVG file. ``height``: bytes of the arrangement; ``lower_bound``: the line that none can be below."""
    first = min((b.lower for b in buffers), default=0)
    span = max((b.upper for b in buffers), default=1) - first
    top = max(height, 1)

    def x(moment: int) -> float:
        return round(LEFT + PLOT_WIDTH * (moment - first) / span, 2)

    def y(address: int) -> float:
        return round(TOP + PLOT_HEIGHT * (1 - address / top), 2)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" class="packing" viewBox="0 0 {WIDTH} {HEIGHT}"><style>{STYLE}</style>']
    for index, (buffer, offset) in enumerate(zip(buffers, offsets, strict=True)):
        if not buffer.size:
            continue
        low, high = y(offset + buffer.size), y(offset)
        parts.append(
            f'<rect x="{x(buffer.lower)}" y="{low}" width="{round(x(buffer.upper) - x(buffer.lower), 2)}"'
            f' height="{round(high - low, 2)}" fill="hsl({360 * (index % HUES) // HUES} 45% 68%)">'
            f"<title>{escape(buffer.name)}: {format_bytes(buffer.size)} at {offset}, alive from {buffer.lower} to"
            f" {buffer.upper}</title></rect>"
        )
    parts.append(f'<line class="bound" x1="{LEFT}" x2="{LEFT + PLOT_WIDTH}" y1="{y(lower_bound)}" y2="{y(lower_bound)}"/>')
    for address in (0, height):
        parts.append(f'<text x="{LEFT - 8}" y="{y(address) + 4}" text-anchor="end">{format_bytes(address)}</text>')
    parts.append(
        f'<text x="{LEFT + PLOT_WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">{len(buffers)} buffers over time</text>'
    )
    return "\n".join([*parts, "</svg>\n"])
