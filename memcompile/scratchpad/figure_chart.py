"""A scratchpad over time as one SVG: a rectangle for each stay of a tensor, operators from left to right, addresses from below.

An edge at the left of a rectangle: it was loaded; at the top: it is stored. Below, the bytes that move before and after each
operator, the compulsory ones pale.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from memcompile.scratchpad.figure import ScratchpadLevel, ScratchpadReport, ScratchpadStay
from memcompile.scratchpad.figure_text import proof_text
from memcompile.units import format_bytes

WIDTH, PLOT_HEIGHT, TRAFFIC_HEIGHT = 960, 300, 90
LEFT, RIGHT, TOP = 82, 18, 62
PLOT_WIDTH, FLOOR = WIDTH - LEFT - RIGHT, TOP + PLOT_HEIGHT
MIDDLE = FLOOR + 30 + TRAFFIC_HEIGHT // 2
HEIGHT = MIDDLE + TRAFFIC_HEIGHT // 2 + 40
HUES = 12
STYLE = """
.scratchpad text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#5d6470}
.scratchpad .title{font-size:17px;font-weight:600;fill:#16181d}.scratchpad .end{text-anchor:end}
.scratchpad .middle{text-anchor:middle}
.scratchpad .paper{fill:#fff}.scratchpad .frame{fill:none;stroke:#8b93a1}.scratchpad .stay{stroke:#fff;stroke-width:.5}
.scratchpad .loaded{stroke:#c2410c;stroke-width:2}.scratchpad .stored{stroke:#1d4ed8;stroke-width:2}
.scratchpad .load{fill:#c2410c}.scratchpad .store{fill:#1d4ed8}.scratchpad .compulsory{fill-opacity:.3}
.scratchpad .zero{stroke:#8b93a1}
@media(prefers-color-scheme:dark){
.scratchpad text{fill:#9aa2b1}.scratchpad .title{fill:#e7e9ee}.scratchpad .paper{fill:#1d2026}.scratchpad .stay{stroke:#1d2026}
.scratchpad .loaded{stroke:#fb8b52}.scratchpad .stored{stroke:#6d9bff}
.scratchpad .load{fill:#fb8b52}.scratchpad .store{fill:#6d9bff}}
"""


def scratchpad_chart(plan: ScratchpadReport, *, file: bool = False) -> str:
    """An ``<svg>`` element; a whole ``file``: with its namespace. "" where nothing runs."""
    if not plan.steps or not plan.levels:
        return ""
    plot = _Plot(plan, plan.levels[0])
    namespace = ' xmlns="http://www.w3.org/2000/svg"' if file else ""
    title = f"Scratchpad of {format_bytes(plan.size_bytes)}: {format_bytes(plan.moved_bytes)} moved"
    beside = f"beside {format_bytes(plan.compulsory_bytes)} compulsory; {proof_text(plan)}"
    parts = [
        f'<svg{namespace} class="figure scratchpad" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        f'<text class="title" x="18" y="29">{escape(title)}</text>',
        f'<text x="18" y="47">{escape(beside)}</text>',
        *plot.stays(),
        *plot.frame(),
        *plot.traffic(),
        "</svg>",
    ]
    return "\n".join(parts) + ("\n" if file else "")


class _Plot:
    def __init__(self, plan: ScratchpadReport, level: ScratchpadLevel) -> None:
        self.plan, self.level = plan, level
        self.count = len(plan.steps)

    def x(self, step: float) -> float:
        """Where a step begins."""
        return round(LEFT + PLOT_WIDTH * step / self.count, 2)

    def y(self, address: float) -> float:
        """Where an address lies."""
        return round(FLOOR - PLOT_HEIGHT * address / self.plan.size_bytes, 2)

    def stays(self) -> Iterator[str]:
        """What lies where."""
        hues: dict[str, int] = {}
        for stay in self.level.stays:
            if stay.size_bytes:
                yield self._stay(stay, hues.setdefault(stay.tensor, len(hues)))

    def _stay(self, stay: ScratchpadStay, number: int) -> str:
        left, right = self.x(stay.begin), self.x(stay.end)
        low, high = self.y(stay.offset + stay.size_bytes), self.y(stay.offset)
        hue = 360 * (7 * number % HUES) // HUES
        text = f"{stay.tensor}: {format_bytes(stay.size_bytes)} at {stay.offset}, steps {stay.begin} to {stay.end - 1}"
        text += ", loaded" * stay.loaded + ", stored" * stay.stored
        rect = f'<rect class="stay" x="{left}" y="{low}" width="{round(right - left, 2)}" height="{round(high - low, 2)}"'
        parts = [f'<g>{rect} fill="hsl({hue} 45% 66%)"><title>{escape(text)}</title></rect>']
        if stay.loaded:
            parts.append(f'<line class="loaded" x1="{left}" x2="{left}" y1="{low}" y2="{high}"/>')
        if stay.stored:
            parts.append(f'<line class="stored" x1="{left}" x2="{right}" y1="{low}" y2="{low}"/>')
        return "".join(parts) + "</g>"

    def frame(self) -> Iterator[str]:
        """The scratchpad itself, and what the axes say."""
        yield f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}"/>'
        for address in (0, self.plan.size_bytes):
            yield f'<text class="end" x="{LEFT - 8}" y="{self.y(address) + 4}">{format_bytes(address)}</text>'
        width = round(PLOT_WIDTH / self.count, 2)
        for step, each in enumerate(self.plan.steps):
            text = f"{step}: {each.name} {each.source}".rstrip() + f", {format_bytes(each.live_bytes)} inside"
            place = f'x="{self.x(step)}" y="{FLOOR}" width="{width}" height="14"'
            yield f'<rect {place} fill="transparent"><title>{escape(text)}</title></rect>'
        text = f"{self.count} operators in order; orange edge: loaded, blue edge: stored"
        yield f'<text class="middle" x="{LEFT + PLOT_WIDTH / 2}" y="{FLOOR + 16}">{text}</text>'

    def traffic(self) -> Iterator[str]:
        """Bytes of each step, loads upwards and stores downwards, the compulsory ones first."""
        most = max((each.size_bytes for each in self.level.transfers), default=1) or 1
        sums: dict[tuple[int, str], int] = {}
        for each in self.level.transfers:
            sums[each.step, each.kind] = sums.get((each.step, each.kind), 0) + each.size_bytes
        most = max([most, *sums.values()])
        reached: dict[tuple[int, str], float] = {}
        width = max(1.0, round(PLOT_WIDTH / self.count - 1, 2))
        for each in sorted(self.level.transfers, key=lambda each: not each.compulsory):
            height = round(TRAFFIC_HEIGHT / 2 * each.size_bytes / most, 2)
            done = reached.get((each.step, each.kind), 0.0)
            reached[each.step, each.kind] = done + height
            top = MIDDLE - done - height if each.kind == "load" else MIDDLE + done
            style = f"{each.kind} compulsory" if each.compulsory else each.kind
            text = f"{each.kind} of {each.tensor}, {format_bytes(each.size_bytes)}" + ", compulsory" * each.compulsory
            place = f'x="{self.x(each.step)}" y="{round(top, 2)}" width="{width}" height="{height}"'
            yield f'<rect class="{style}" {place}><title>{escape(text)}</title></rect>'
        yield f'<line class="zero" x1="{LEFT}" x2="{LEFT + PLOT_WIDTH}" y1="{MIDDLE}" y2="{MIDDLE}"/>'
        yield f'<text class="end" x="{LEFT - 8}" y="{MIDDLE - 8}">loads</text>'
        yield f'<text class="end" x="{LEFT - 8}" y="{MIDDLE + 18}">stores</text>'
        text = f"bytes that move before and after each operator, full height {format_bytes(most)}; compulsory ones are pale"
        yield f'<text class="middle" x="{LEFT + PLOT_WIDTH / 2}" y="{HEIGHT - 14}">{text}</text>'
