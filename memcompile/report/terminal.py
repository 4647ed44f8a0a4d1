"""The report as a terminal table, through rich: colours on a terminal, plain text in `str(report)`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memcompile.report.data import DecisionRow, GraphReport, PeakPoint, Report, StepReport, TimelinePoint
from memcompile.units import format_bytes, format_change, format_pair, format_seconds

TEXT_WIDTH = 120
SHOWN_DECISIONS = 12
SPARK_WIDTH = 64
_BARS = "▁▂▃▄▅▆▇█"


def render_text(report: Report, width: int = TEXT_WIDTH) -> str:
    """``report`` as plain text, at most ``width`` columns, without trailing blanks."""
    return plain_text(render(report), width)


def plain_text(renderable: RenderableType, width: int = TEXT_WIDTH) -> str:
    """What a console without colours shows, at most ``width`` columns, without trailing blanks."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def render(report: Report) -> RenderableType:
    """``report`` for a rich console."""
    if not report.graphs:
        return Text("memcompile  nothing compiled yet", style="dim")
    return Group(*_parts(report))


def _parts(report: Report) -> Iterator[RenderableType]:
    single = report.is_one_graph
    if not single:
        yield from _step_lines(report)
    for graph in report.graphs:
        if not single:
            yield Text()
        yield _graph_line(graph, report if single else None)
        if graph.passes:
            yield Text()
            yield _pass_table(graph)
        yield Text()
        yield _facts(graph)
        for figure in graph.figures:
            if figure.shown and (beside := figure.table()) is not None:
                yield Text()
                yield beside
        if graph.decisions:
            yield Text()
            yield _decision_table(graph.decisions)
        for note in graph.notes:
            yield Padding(Text(f"note: {note}", style="yellow"), (0, 0, 0, 1))


def _verdict(fits: bool, budget_bytes: int | None, planned_bytes: int, measured_bytes: int | None) -> Text:
    text = Text()
    if budget_bytes is not None:
        text.append(f"budget {format_bytes(budget_bytes)}   ")
        text.append("fits: " if fits else "does not fit: ", style="green" if fits else "bold red")
    else:
        text.append("no budget   ")
    text.append(f"{format_bytes(planned_bytes)} planned")
    if measured_bytes is not None:
        over = budget_bytes is not None and measured_bytes > budget_bytes
        text.append(f", {format_bytes(measured_bytes)} measured", style="bold red" if over else "")
    return text


def _step_lines(report: Report) -> Iterator[Text]:
    """What holds for all, then the steps of more than one graph where there are several."""
    step, number, steps = report.telling, len(report.graphs), len(report.steps)
    graphs = f"{number} graph{'s' * (number != 1)}"
    what = f"step of {len(report.steps[0].graph_ids)} graphs" if steps == 1 else f"{graphs}, {steps or number} steps"
    measured = report.measured_peak_bytes if step.planned_peak_bytes == report.planned_peak_bytes else None
    line = Text.assemble(("memcompile", "bold"), f"  {what}  ")
    yield line.append_text(_verdict(step.fits, step.budget_bytes, step.planned_peak_bytes, measured))
    for step in report.steps if len(report.steps) > 1 or number == 1 else ():
        if len(step.graph_ids) > 1:
            verdict = _verdict(step.fits, step.budget_bytes, step.planned_peak_bytes, None)
            yield Text(f" step of graphs {step_text(report, step)}  ").append_text(verdict)


def step_text(report: Report, step: StepReport) -> str:
    """Its graphs by their names; those that are not in the report are other models'."""
    mine = {graph.graph_id for graph in report.graphs}
    return ", ".join(name if name in mine else f"{name} (another model's)" for name in step.graph_ids)


def _graph_line(graph: GraphReport, report: Report | None) -> Text:
    """``report`` is given when the graph is the whole step, so that its peaks are the step's."""
    text = Text.assemble(("memcompile", "bold"), f"  graph {graph.graph_id}  {graph.kind}  {graph.device}  ")
    planned = graph.planned_peak_bytes if report is None else report.planned_peak_bytes
    measured = None if report is None else report.measured_peak_bytes
    fits = graph.fits if report is None else report.fits
    return text.append_text(_verdict(fits, graph.budget_bytes, planned, measured))


def _pass_table(graph: GraphReport) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 3, 0, 1), header_style="bold")
    table.add_column("pass", no_wrap=True)
    table.add_column("peak before -> after", justify="right", no_wrap=True)
    table.add_column("step time", justify="right", no_wrap=True)
    table.add_column("compile", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for item in graph.passes:
        table.add_row(
            item.name,
            format_pair(item.peak_before_bytes, item.peak_after_bytes),
            format_change(item.seconds_before, item.seconds_after),
            f"{item.compile_seconds:.1f} s",
            item.summary,
        )
    return table


def _facts(graph: GraphReport) -> Table:
    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 3, 0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    if graph.peak_at is not None:
        table.add_row("peak at", _peak_text(graph.peak_at))
    table.add_row("without a plan", f"{format_bytes(graph.unplanned_peak_bytes)} peak")
    at_entry = f"{format_bytes(graph.entry_bytes)} at entry"
    saved = f", {format_bytes(graph.saved_bytes)} saved for the backward" if graph.kind == "train" else ""
    table.add_row("alive", at_entry + saved)
    if graph.lower_bound_bytes:
        table.add_row("lowest peak", f"proven: no plan goes below {format_bytes(graph.lower_bound_bytes)}")
    if graph.base_seconds:
        table.add_row("step time", _time_text(graph))
    for figure in graph.figures:
        if figure.shown:
            table.add_row(figure.label, figure.line())
    if points := (*graph.forward_timeline, *graph.backward_timeline):
        table.add_row("memory", _sparkline(points))
    return table


def _peak_text(peak: PeakPoint) -> str:
    where = f"{peak.op}  {peak.source}".rstrip()
    parts = " · ".join(f"{format_bytes(size)} {name}" for name, size in _by_size(peak))
    return f"{where}   {parts}".rstrip()


def _by_size(peak: PeakPoint) -> list[tuple[str, int]]:
    return sorted(((name, size) for name, size in peak.breakdown.items() if size), key=lambda item: -item[1])


def _time_text(graph: GraphReport) -> str:
    change = format_change(graph.base_seconds, graph.planned_seconds)
    base = format_seconds(graph.base_seconds)
    text = f"modelled {format_seconds(graph.planned_seconds)}, {change} over {base} without a plan"
    if graph.lower_bound_seconds:
        text += f"; no plan within the budget is below {format_change(graph.base_seconds, graph.lower_bound_seconds)}"
    certificate = ", ".join(part for part in (graph.status if graph.status != "none" else "", graph.solver) if part)
    return f"{text} ({certificate})" if certificate else text


def _sparkline(points: Sequence[TimelinePoint], width: int = SPARK_WIDTH) -> str:
    """Live bytes over the ops as ``width`` bars, each the highest of its ops; full height is the peak, empty is zero."""
    width = min(width, len(points))
    highest = max(point.live_bytes for point in points) or 1
    bars = []
    for column in range(width):
        part = points[column * len(points) // width : (column + 1) * len(points) // width]
        level = max(point.live_bytes for point in part) / highest
        bars.append(_BARS[min(len(_BARS) - 1, int(level * len(_BARS)))])
    return "".join(bars)


def _decision_table(decisions: Sequence[DecisionRow]) -> RenderableType:
    table = Table(box=None, pad_edge=True, padding=(0, 3, 0, 1), header_style="bold")
    for name in ("decision", "storage", "source"):
        table.add_column(name, no_wrap=True)
    for name in ("saves", "costs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    shown = _most_telling(decisions)
    for row in shown:
        table.add_row(
            Text(row.kind, style="yellow" if row.kind == "refused" else ""),
            row.storage,
            row.source,
            "-" if row.size_bytes is None else format_bytes(row.size_bytes),
            "-" if row.seconds is None else format_seconds(row.seconds),
            row.why,
        )
    if len(shown) == len(decisions):
        return table
    rest = f"and {len(decisions) - len(shown)} more decisions: report.decisions, or report.save(folder)"
    return Group(table, Padding(Text(rest, style="dim"), (0, 0, 0, 1)))


def _most_telling(decisions: Sequence[DecisionRow]) -> list[DecisionRow]:
    """The decisions that save most, then refusals: at most `SHOWN_DECISIONS`, of which refusals take a third."""
    refused = [row for row in decisions if row.kind == "refused"]
    taken = sorted((row for row in decisions if row.kind not in ("refused", "keep")), key=lambda row: -(row.size_bytes or 0))
    kept = [row for row in decisions if row.kind == "keep"]
    room = SHOWN_DECISIONS - min(len(refused), SHOWN_DECISIONS // 3)
    first = [*taken, *kept][:room]
    return [*first, *refused[: SHOWN_DECISIONS - len(first)]]
