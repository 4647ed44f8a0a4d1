"""A network of images in stages as one SVG: what each operator makes, what of it is there at once, and the peaks.

Above, a bar for each operator: pale to the height of its whole result, full to what a tile holds of it. Over them, all that is
alive layer by layer, and the peak of each stage. Below, the stages as cards, and peak against multiply-adds of other plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from memcompile.passes.tiles.figure import PatchOperator, PatchReport, PatchStage
from memcompile.passes.tiles.stage_cards import card_rows, cards, frontier_chart
from memcompile.passes.tiles.stage_text import how_text, patch_summary
from memcompile.report.chart import nice_ceiling
from memcompile.units import format_bytes, format_pair

WIDTH, PLOT_HEIGHT = 960, 240
LEFT, RIGHT, TOP = 82, 134, 62
PLOT_WIDTH, FLOOR = WIDTH - LEFT - RIGHT, TOP + PLOT_HEIGHT
BAND_TOP, BAND_HEIGHT = FLOOR + 5, 18
CARDS_TOP = BAND_TOP + BAND_HEIGHT + 44
FRONTIER_WIDTH, FRONTIER_HEIGHT = 270, 170
MARGIN = 18
HUES = 6
STYLE = """
.patches text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#5d6470}
.patches .title{font-size:17px;font-weight:600;fill:#16181d}.patches .strong{font-weight:600;fill:#16181d}
.patches .paper{fill:#fff}.patches .grid{stroke:#e3e6ea}.patches .flat{color:#8b93a1}
.patches .s0{color:#2563eb}.patches .s1{color:#0d9488}.patches .s2{color:#d97706}
.patches .s3{color:#7c3aed}.patches .s4{color:#db2777}.patches .s5{color:#4d7c0f}
.patches .whole{fill:currentColor;fill-opacity:.2}.patches .held,.patches .band{fill:currentColor}
.patches .tint{fill:currentColor;fill-opacity:.05}.patches .number{fill:#fff;font-weight:600;text-anchor:middle}
.patches .input{fill:none;stroke:#8b93a1;stroke-dasharray:2 2}.patches .hover{fill:transparent}
.patches .before{fill:none;stroke:#7b8494;stroke-width:1.3}.patches .after{fill:none;stroke:#16181d;stroke-width:2}
.patches .level{stroke-dasharray:5 4;stroke-width:1;opacity:.6}
.patches .end{text-anchor:end}.patches .middle{text-anchor:middle}.patches .small{font-size:11px}
.patches .image{fill:currentColor;fill-opacity:.14;stroke:currentColor}.patches .cut{stroke:currentColor;stroke-width:.7}
.patches .halo{fill:currentColor;fill-opacity:.35}.patches .dot{fill:#7b8494;fill-opacity:.75}.patches .chosen{fill:#16181d}
@media(prefers-color-scheme:dark){
.patches text{fill:#9aa2b1}.patches .title,.patches .strong,.patches .chosen{fill:#e7e9ee}.patches .paper{fill:#1d2026}
.patches .grid{stroke:#343943}.patches .after{stroke:#e7e9ee}.patches .number{fill:#14161a}.patches .flat{color:#7b8494}
.patches .s0{color:#6d9bff}.patches .s1{color:#4fc9bb}.patches .s2{color:#f5a742}
.patches .s3{color:#a78bfa}.patches .s4{color:#f472b6}.patches .s5{color:#a3c957}}
"""


def patch_chart(patch: PatchReport, *, file: bool = False) -> str:
    """An ``<svg>`` element (a whole ``file``: with its namespace), or "" where the stages are not used or not known."""
    if patch.refused or not patch.operators or not patch.stages:
        return ""
    plot = _Plot(patch, nice_ceiling(max(patch.base_peak_bytes, *(operator.size_bytes for operator in patch.operators))))
    beside = FRONTIER_WIDTH if patch.frontier else 0
    room = WIDTH - 2 * MARGIN - (beside + 20 if beside else 0)
    height = CARDS_TOP + max(card_rows(len(patch.stages), room), FRONTIER_HEIGHT if beside else 0) + MARGIN
    namespace = ' xmlns="http://www.w3.org/2000/svg"' if file else ""
    parts = [
        f'<svg{namespace} class="figure patches" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{_title(patch)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
        f'<text class="title" x="{MARGIN}" y="29">{_title(patch)}</text>',
        f'<text x="{MARGIN}" y="47">{escape(patch_summary(patch))}</text>',
        *plot.grid(),
        *plot.bands(),
        *plot.bars(),
        *plot.curves(),
        *plot.hover(),
        *cards(patch, [style_of(patch, stage) for stage in patch.stages], MARGIN, CARDS_TOP, room),
    ]
    if beside:
        parts += frontier_chart(patch, WIDTH - MARGIN - beside, CARDS_TOP, beside, FRONTIER_HEIGHT)
    return "\n".join([*parts, "</svg>"]) + ("\n" if file else "")


def style_of(patch: PatchReport, stage: PatchStage) -> str:
    """The class that colours a stage: grey layer by layer, else a hue of its own."""
    return "flat" if stage.kind == "layerwise" else f"s{patch.tiled.index(stage) % HUES}"


def _title(patch: PatchReport) -> str:
    if not patch.tiled:
        return f"Images: {format_bytes(patch.base_peak_bytes)}, layer by layer"
    peaks = format_pair(patch.base_peak_bytes, patch.peak_bytes).replace("->", "→")
    return f"Images: {peaks}, {patch.base_peak_bytes / max(1, patch.peak_bytes):.1f} × less"


@dataclass(frozen=True, slots=True)
class _Plot:
    """The upper part; ``top``: bytes at its upper edge."""

    patch: PatchReport
    top: int

    def x(self, place: float) -> float:
        """Left edge of the slot of an operator."""
        return round(LEFT + PLOT_WIDTH * place / len(self.patch.operators), 2)

    def y(self, size_bytes: float) -> float:
        """Height of a number of bytes."""
        return round(FLOOR - PLOT_HEIGHT * size_bytes / self.top, 2)

    def span(self, stage: PatchStage) -> tuple[int, int]:
        """Slots of a stage: from its first operator to behind its last one."""
        places = {operator.name: place for place, operator in enumerate(self.patch.operators)}
        return places[stage.first], places[stage.last] + 1

    def grid(self, ticks: int = 4) -> Iterator[str]:
        """Levels of bytes, named at the left."""
        for tick in range(ticks + 1):
            level = self.top * tick / ticks
            y = self.y(level)
            yield f'<line class="grid" x1="{LEFT}" x2="{LEFT + PLOT_WIDTH}" y1="{y}" y2="{y}"/>'
            yield f'<text class="end" x="{LEFT - 8}" y="{y + 4}">{format_bytes(level)}</text>'

    def bands(self) -> Iterator[str]:
        """A stage each: a tint behind its bars, and its number below them."""
        for number, stage in enumerate(self.patch.stages, 1):
            first, last = self.span(stage)
            x, width = self.x(first), round(self.x(last) - self.x(first), 2)
            title = f"stage {number}: {how_text(stage)}, {format_bytes(stage.peak_bytes)}"
            yield f'<g class="{style_of(self.patch, stage)}"><title>{escape(title)}</title>'
            yield f'<rect class="tint" x="{x}" y="{TOP}" width="{width}" height="{PLOT_HEIGHT}"/>'
            inner = round(max(width - 1.5, 0.5), 2)
            yield f'<rect class="band" x="{x}" y="{BAND_TOP}" width="{inner}" height="{BAND_HEIGHT}" rx="3"/>'
            if width >= 8 * len(str(number)) + 4:
                yield f'<text class="number" x="{round(x + inner / 2, 2)}" y="{BAND_TOP + 13}">{number}</text>'
            yield "</g>"
        count = len(self.patch.operators)
        text = f"{count} operators in order; pale: a whole result, full: what is there of it at once"
        yield f'<text class="middle" x="{self.x(count / 2)}" y="{BAND_TOP + BAND_HEIGHT + 16}">{text}</text>'

    def bars(self) -> Iterator[str]:
        """The results of the operators; inputs are outlines."""
        styles = {}
        for stage in self.patch.stages:
            styles.update(dict.fromkeys(range(*self.span(stage)), style_of(self.patch, stage)))
        for place, operator in enumerate(self.patch.operators):
            if operator.kind == "input":
                yield self._bar(place, operator.size_bytes, "input")
                continue
            yield f'<g class="{styles.get(place, "flat")}">{self._bar(place, operator.size_bytes, "whole")}'
            yield f"{self._bar(place, operator.held_bytes, 'held')}</g>"

    def _bar(self, place: int, size_bytes: int, style: str) -> str:
        slot = PLOT_WIDTH / len(self.patch.operators)
        gap = min(4.0, 0.24 * slot)
        x, y = round(self.x(place) + gap / 2, 2), self.y(size_bytes)
        return f'<rect class="{style}" x="{x}" y="{y}" width="{round(slot - gap, 2)}" height="{round(FLOOR - y, 2)}"/>'

    def curves(self) -> Iterator[str]:
        """All that is alive layer by layer and in stages, with the peaks and their names at the right."""
        before = [(place, place + 1, operator.live_bytes) for place, operator in _run(self.patch)]
        after = [(*self.span(stage), stage.peak_bytes) for stage in self.patch.stages]
        yield f'<path class="before" d="{self._steps(before)}"/>'
        if self.patch.tiled:
            yield f'<path class="after" d="{self._steps(after)}"/>'
        named = [("before", "layer by layer", self.patch.base_peak_bytes)]
        named += [("after", "in stages", self.patch.peak_bytes)] if self.patch.tiled else []
        bottom, right = 0.0, LEFT + PLOT_WIDTH
        for style, name, level in named:
            y = self.y(level)
            yield f'<line class="{style} level" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>'
            label = round(max(y + 4, bottom + 20), 2)
            bottom = label + 14
            yield f'<text class="strong" x="{right + 9}" y="{label}">{format_bytes(level)}</text>'
            yield f'<text x="{right + 9}" y="{label + 14}">{name}</text>'

    def _steps(self, levels: list[tuple[int, int, int]]) -> str:
        """A path over (first slot, slot behind, bytes)."""
        path = [f"M{self.x(levels[0][0])} {self.y(levels[0][2])}"]
        path += [f"V{self.y(level)}H{self.x(behind)}" for _, behind, level in levels]
        return "".join(path)

    def hover(self) -> Iterator[str]:
        """Names and numbers of the operators, shown under the pointer."""
        width = round(PLOT_WIDTH / len(self.patch.operators), 2)
        for place, operator in enumerate(self.patch.operators):
            yield f'<rect class="hover" x="{self.x(place)}" y="{TOP}" width="{width}" height="{PLOT_HEIGHT}">'
            yield f"<title>{escape(_hover_text(operator))}</title></rect>"


def _run(patch: PatchReport) -> list[tuple[int, PatchOperator]]:
    return [(place, operator) for place, operator in enumerate(patch.operators) if operator.kind != "input"]


def _hover_text(operator: PatchOperator) -> str:
    text = f"{operator.name} {operator.source}".rstrip()
    text += f": {operator.height} x {operator.width} pixels, {format_bytes(operator.size_bytes)}"
    if operator.held_bytes < operator.size_bytes:
        text += f", {format_bytes(operator.held_bytes)} at once"
    return f"{text}; {format_bytes(operator.live_bytes)} alive layer by layer" if operator.kind != "input" else text
