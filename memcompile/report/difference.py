"""What changed between two reports: the numbers of the step, and the fates of storages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from memcompile.report.data import DecisionRow, Report
from memcompile.units import format_bytes, format_change, format_seconds

SHOWN_CHANGES = 20


@dataclass(frozen=True, slots=True)
class NumberChange:
    """A number of the step in both reports; None where a report does not have it. ``unit``: "bytes", "seconds" or ""."""

    name: str
    unit: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class FateChange:
    """A storage whose fate is not the same; None stands for "not mentioned", so kept."""

    graph_id: str
    storage: str
    source: str
    size_bytes: int | None
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything `compare` found."""

    numbers: tuple[NumberChange, ...]
    fates: tuple[FateChange, ...]

    def to_json(self) -> str:
        """Indented JSON with stable keys."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def compare(before: Report, after: Report) -> Difference:
    """The difference of two reports of the same model."""
    return Difference(tuple(_numbers(before, after)), tuple(_fates(before, after)))


_NUMBERS: tuple[tuple[str, str, Callable[[Report], float | None]], ...] = (
    ("budget", "bytes", lambda report: report.budget_bytes),
    ("planned peak", "bytes", lambda report: report.planned_peak_bytes),
    ("measured peak", "bytes", lambda report: report.measured_peak_bytes),
    ("peak without a plan", "bytes", lambda report: report.unplanned_peak_bytes),
    ("proven lowest peak", "bytes", lambda report: report.lower_bound_bytes),
    ("step time, modelled", "seconds", lambda report: report.planned_seconds),
    ("step time, bound", "seconds", lambda report: report.lower_bound_seconds),
    ("step time, measured", "seconds", lambda report: report.measured_seconds),
    ("graphs", "", lambda report: len(report.graphs)),
    ("kernels", "", lambda report: len(report.kernels)),
)


def _numbers(before: Report, after: Report) -> Iterator[NumberChange]:
    for name, unit, read in _NUMBERS:
        values = read(before), read(after)
        if any(values):
            yield NumberChange(name, unit, *values)
    old, new = _of_figures(before), _of_figures(after)
    for name, unit in {**old, **new}:
        yield NumberChange(name, unit, old.get((name, unit)), new.get((name, unit)))


def _of_figures(report: Report) -> dict[tuple[str, str], float]:
    """What figures are compared by: peaks are the highest of the graphs, everything else their sum."""
    found: dict[tuple[str, str], list[float]] = {}
    for figure in (figure for graph in report.graphs for figure in graph.figures):
        for name, (unit, value) in figure.numbers().items():
            found.setdefault((name, unit), []).append(value)
    return {key: max(values) if key[1] == "bytes" else sum(values) for key, values in found.items()}


def _fates(before: Report, after: Report) -> Iterator[FateChange]:
    old, new = _rows(before), _rows(after)
    for key in {**old, **new}:
        kinds = tuple(rows[key].kind if key in rows else None for rows in (old, new))
        if kinds[0] != kinds[1]:
            row = new.get(key) or old[key]
            yield FateChange(*key, row.source, row.size_bytes, *kinds)


def _rows(report: Report) -> dict[tuple[str, str], DecisionRow]:
    return {(graph.graph_id, row.storage): row for graph in report.graphs for row in graph.decisions}


def render_difference(difference: Difference, before: str, after: str) -> RenderableType:
    """Two tables for the terminal; ``before`` and ``after`` name the reports."""
    numbers = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    numbers.add_column("")
    for name in (before, after, "change"):
        numbers.add_column(name, justify="right", overflow="fold")
    for item in difference.numbers:
        change = format_change(item.before, item.after) if item.before and item.after is not None else "-"
        numbers.add_row(item.name, _text(item.before, item.unit), _text(item.after, item.unit), change)
    if not difference.fates:
        return Group(numbers, Text(), Text("the fates of all storages are the same"))
    fates = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for name in ("storage", "source", "size", "before", "after"):
        fates.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for fate in sorted(difference.fates, key=lambda fate: -(fate.size_bytes or 0))[:SHOWN_CHANGES]:
        size = "-" if fate.size_bytes is None else format_bytes(fate.size_bytes)
        fates.add_row(f"{fate.graph_id} {fate.storage}", fate.source, size, fate.before or "keep", fate.after or "keep")
    rest = len(difference.fates) - SHOWN_CHANGES
    more = [Text(f"and {rest} more (--json lists all)", style="dim")] if rest > 0 else []
    return Group(numbers, Text(), fates, *more)


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "bytes":
        return format_bytes(value)
    return format_seconds(value) if unit == "seconds" else f"{value:.0f}"
