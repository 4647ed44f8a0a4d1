"""The report as one HTML file that needs nothing beside it: styles and charts are inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from memcompile.report.chart import memory_chart
from memcompile.report.data import DecisionRow, GraphReport, Report
from memcompile.report.terminal import step_text
from memcompile.units import format_bytes, format_change, format_pair, format_seconds

TEMPLATES = Path(__file__).parent / "templates"


def render_html(report: Report) -> str:
    """The whole page. Every text of the report is escaped; the charts are built by `memory_chart`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(bytes=format_bytes, seconds=format_seconds, chart=lambda figure: Markup(figure.chart()))
    environment.globals.update(change=format_change, pair=format_pair)
    environment.globals.update(step_text=step_text)
    single = report.is_one_graph
    graphs = [(graph, _chart(graph, report if single else None), _counts(graph.decisions)) for graph in report.graphs]
    return environment.get_template("report.html.j2").render(report=report, graphs=graphs)


def _chart(graph: GraphReport, report: Report | None) -> Markup:
    """The chart as safe markup; the measured peak belongs to the step, so to a graph only when it is the whole step."""
    return Markup(memory_chart(graph, None if report is None else report.measured_peak_bytes))


def _counts(decisions: Sequence[DecisionRow]) -> list[tuple[str, int, int]]:
    """(kind, how many, bytes) in the order the kinds first appear."""
    counts: dict[str, tuple[int, int]] = {}
    for row in decisions:
        number, size_bytes = counts.get(row.kind, (0, 0))
        counts[row.kind] = number + 1, size_bytes + (row.size_bytes or 0)
    return [(kind, number, size_bytes) for kind, (number, size_bytes) in counts.items()]
