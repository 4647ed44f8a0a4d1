"""The stages of a network of images as designers for microcontrollers read them: in KiB and multiply-adds."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from memcompile.passes.tiles.figure import PatchReport
from memcompile.passes.tiles.stage_text import element_text, how_text, operators_text, work_text
from memcompile.units import format_count


def stage_table(patch: PatchReport) -> Table:
    """A row a stage: its operators, how they run, its peak and the one layer by layer."""
    title = f"stages at {element_text(patch)}" if patch.bytes_per_element else "stages"
    table = Table(box=None, pad_edge=True, padding=(0, 3, 0, 1), header_style="bold", title=title, title_justify="left")
    table.title_style = "bold"
    table.add_column("stage", justify="right", no_wrap=True)
    table.add_column("operators", overflow="fold")
    table.add_column("runs", no_wrap=True)
    for name in ("peak KiB", "layerwise", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    highest = max((stage.peak_bytes for stage in patch.stages), default=0)
    for number, stage in enumerate(patch.stages, 1):
        table.add_row(
            str(number),
            operators_text(stage),
            how_text(stage),
            Text(_kib(stage.peak_bytes), style="bold" if stage.peak_bytes == highest else ""),
            _kib(stage.base_peak_bytes),
            format_count(stage.macs),
            stage.source,
        )
    macs = format_count(patch.macs)
    table.add_row("all", work_text(patch), "", _kib(patch.peak_bytes), _kib(patch.base_peak_bytes), macs, "")
    return table


def _kib(size_bytes: int) -> str:
    return f"{size_bytes / 1024:,.1f}"
