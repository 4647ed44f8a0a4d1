"""The report of a compression as tables for the terminal, through rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memcompile.low_rank.report import CompressionReport, LayerCompression
from memcompile.units import format_change

SHOWN_LAYERS = 24


def render(report: CompressionReport) -> RenderableType:
    """``report`` for a rich console: the layers with the largest errors first, then those that were left alone."""
    return Group(*_parts(report))


def _parts(report: CompressionReport) -> Iterator[RenderableType]:
    before, after = report.model_parameters_before, report.model_parameters_after
    layers = f"{len(report.compressed)} of {len(report.layers)} layers factored"
    model = f"model {before:,} -> {after:,} parameters ({format_change(before, after)})"
    yield Text.assemble(("memcompile", "bold"), f"  low rank  {layers}   {model}")
    if report.compressed:
        yield Text()
        yield from _limited(sorted(report.compressed, key=_error, reverse=True), _factored_table)
    if report.left_alone:
        yield Text()
        yield from _limited(report.left_alone, _left_alone_table)
    for reason, names in _by_reason(report.compressed).items():
        yield Padding(Text(f"note: {reason}: {_listing(names)}", style="yellow"), (0, 0, 0, 1))


def _error(layer: LayerCompression) -> float:
    """What rows are sorted by: the error of the output where it is known."""
    return (layer.weight_error if layer.output_error is None else layer.output_error) or 0.0


def _limited(
    layers: Sequence[LayerCompression], table: Callable[[Sequence[LayerCompression]], Table]
) -> Iterator[RenderableType]:
    yield table(layers[:SHOWN_LAYERS])
    if len(layers) > SHOWN_LAYERS:
        yield Padding(Text(f"and {len(layers) - SHOWN_LAYERS} more layers: report.layers", style="dim"), (0, 0, 0, 1))


def _factored_table(layers: Sequence[LayerCompression]) -> Table:
    table = _table("layer", "in -> out", "rank", "parameters", "energy kept", "output error", "weight error")
    for layer in layers:
        kept = layer.parameters_after / layer.parameters_before
        shares = (kept, layer.energy_kept, layer.output_error, layer.weight_error)
        table.add_row(layer.name, _shape(layer), str(layer.rank), *("-" if s is None else f"{100 * s:.1f} %" for s in shares))
    return table


def _left_alone_table(layers: Sequence[LayerCompression]) -> Table:
    table = _table("left alone", "in -> out")
    table.add_column("why", overflow="fold")
    for layer in layers:
        table.add_row(layer.name, _shape(layer), layer.reason)
    return table


def _table(name: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 1, 0, 1), header_style="bold")
    table.add_column(name, overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _shape(layer: LayerCompression) -> str:
    return f"{layer.in_features} -> {layer.out_features}"


def _by_reason(layers: Sequence[LayerCompression]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for layer in layers:
        if layer.reason:
            names.setdefault(layer.reason, []).append(layer.name)
    return names


def _listing(names: Sequence[str], shown: int = 4) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
