"""What became of a graph, as its report: the sections of its passes, and what is known of every graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from memcompile.codegen.dump import kernels_of
from memcompile.errors import Contributor
from memcompile.passes.base import Made, Section, Stage, Times, refusals
from memcompile.report.data import DecisionRow, GraphReport, KernelInfo, PeakPoint, Report, TimelinePoint
from memcompile.step.fxutil import hint
from memcompile.step.lowered import Fitted, Lowered, texts_of
from memcompile.step.trace import GraphTrace, StepPeak
from memcompile.step.unplanned import unplanned

if TYPE_CHECKING:
    from memcompile.compiling.session import Session


def graph_report(session: Session, made: Made) -> GraphReport:
    """The report of one graph as it was compiled."""
    sections = [(each.by.stage, each.section(made)) for each in session.done]
    peak, outside, fitted = made.peak, session.outside.bytes, session.fitted
    base = session.keeps.peak() if fitted is None else fitted.base.peak
    plans = [each.plan for each in session.done]
    before = next((known for plan in plans if (known := plan.unplanned_bytes)), base.peak_bytes)
    hidden = fitted is None or any(plan.hides_base for plan in plans)
    every = [section for _, section in sections]
    times = next((section.times for section in every if section.times is not None), Times(0.0, 0.0, 0.0))
    room = session.ctx.rooms.room
    return GraphReport(
        graph_id=session.graph_id,
        kind="inference" if "inference" in session.keeps.traces or session.graphs is None else "train",
        device=str(session.device),
        planned_peak_bytes=peak.peak_bytes + outside,
        unplanned_peak_bytes=before + outside,
        budget_bytes=None if room is None or session.counted_bytes is not None or session.budget_is_open else room.total_bytes,
        lower_bound_bytes=_bound(fitted, session.outside.certain_bytes),
        entry_bytes=peak.entry_bytes + outside,
        saved_bytes=peak.saved_bytes,
        planned_seconds=times.planned_seconds,
        lower_bound_seconds=times.lower_bound_seconds,
        base_seconds=times.base_seconds,
        status=times.status,
        solver=times.solver,
        peak_at=_peak_point(peak, session.keeps.traces),
        passes=tuple(row for section in every for row in section.passes),
        decisions=_decisions(session, sections),
        kernels=(*(kernel for section in every for kernel in section.kernels), *_kernels(made)),
        graphs=_graphs(fitted, every),
        plan={key: value for section in every for key, value in section.plan.items()},
        forward_timeline=_timeline(peak, "forward", outside),
        backward_timeline=_timeline(peak, "backward", outside),
        base_timeline=() if hidden else _timeline(base, None, outside),
        notes=_notes(session, every),
        repro=session.repro,
        figures=tuple(figure for section in every for figure in section.figures),
    )


def save(report: GraphReport, folder: Path) -> None:
    """Write one graph's report below ``folder``."""
    Report(graphs=[report]).save(folder / f"graph_{report.graph_id}")


def contributors(lowered: Lowered) -> list[Contributor]:
    """The storages that are alive at the peak of lowered code, largest first, with their source lines."""
    rows = []
    for label, size in lowered.peak.live_at_peak[:20]:
        name, source = _origin(label, lowered.traces)
        rows.append(Contributor(name, size, source))
    return rows


def next_lever(session: Session, lowered: Lowered, lever: str) -> str:
    """What to change to get below the smallest peak. ``lever``: what the pass that keeps the budget names."""
    peak, batch = lowered.peak, batch_of(session.gm, session.inputs)
    smaller = "a smaller batch" if batch > 1 else "smaller inputs"
    if session.outside.bytes > peak.peak_bytes:
        return "graphs before this one hold most of it: fewer graph breaks, so that they are planned together"
    if peak.entry_bytes * 2 > peak.peak_bytes:
        either = "model or batch" if batch > 1 else "model or inputs"
        return f"parameters and inputs make most of the floor: a smaller {either}, or lower precision"
    if lever:
        return lever
    if lowered.graphs.backward is None:
        return f"one op's inputs and outputs make the floor: {smaller}"
    return f"{smaller}{' with gradient accumulation' * (batch > 1)}, or lower precision (autocast)"


def batch_of(gm: torch.fx.GraphModule, inputs: Sequence[object]) -> int:
    """The items of a batch: along the first axis of what the model is called with, not of what it owns."""
    given = zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=False)
    own = ("_parameters_", "_buffers_")
    called = [x for node, x in given if isinstance(x, torch.Tensor) and not any(name in node.name for name in own)]
    return max((hint(x.shape[0]) for x in called if x.dim() > 1 and not isinstance(x, torch.nn.Parameter)), default=1)


def _bound(fitted: Fitted | None, certain_bytes: int) -> int:
    """What is alive beside the graph in any case counts, too."""
    return fitted.lower_bound_bytes + certain_bytes if fitted is not None and fitted.lower_bound_bytes else 0


def _decisions(session: Session, sections: Sequence[tuple[Stage, Section]]) -> tuple[DecisionRow, ...]:
    """Of passes on the captured graph; then what is left as it is, whatever the budget; then of the others, which need not
    refuse that once more."""
    left = refusals(unplanned(session.graphs))
    names = {row.storage for row in left}
    rows = [row for stage, section in sections if stage == "capture" for row in section.decisions]
    later = [row for stage, section in sections if stage != "capture" for row in section.decisions]
    return (*rows, *left, *(row for row in later if row.kind != "refused" or row.storage not in names))


def _graphs(fitted: Fitted | None, sections: Sequence[Section]) -> dict[str, str]:
    before = {} if fitted is None else texts_of("before", fitted.base)
    return before | {stage: text for section in sections for stage, text in section.graphs.items()}


def _notes(session: Session, sections: Sequence[Section]) -> tuple[str, ...]:
    notes = [*session.notes, *(note for section in sections for note in section.notes)]
    fitted = session.fitted
    if fitted is not None and session.outside.bytes:
        notes.append(f"{session.outside.bytes} bytes of other graphs and of existing gradients are alive beside this graph")
    if fitted is not None and not fitted.fits:
        notes.append("best effort: the budget lies below the smallest peak that was found")
    return tuple(notes)


def _kernels(made: Made) -> Iterator[KernelInfo]:
    """Those that Inductor generated."""
    for kind, source in made.sources.items():
        for kernel in kernels_of(source):
            yield KernelInfo(f"{kind}_{kernel.name}", kernel.source_lines, kernel.code, kernel.language)


def _timeline(peak: StepPeak, where: str | None, outside: int) -> tuple[TimelinePoint, ...]:
    return tuple(
        TimelinePoint(moment.name, moment.live_bytes + outside) for moment in peak.timeline if where in (None, moment.where)
    )


def _peak_point(peak: StepPeak, traces: dict[str, GraphTrace]) -> PeakPoint:
    moment = peak.peak_moment
    trace = traces.get(moment.where) or traces.get("inference")
    buffer = trace.buffers.get(moment.name) if trace is not None else None
    name = buffer.origins[0] if buffer and buffer.origins else moment.name
    breakdown = {"inputs and parameters": 0, "saved for backward": 0, "temporaries and gradients": 0}
    for label, size in peak.live_at_peak:
        if not label.startswith(("f.", "b.")):
            breakdown["inputs and parameters"] += size
        elif label.startswith("f.") and moment.where == "backward":
            breakdown["saved for backward"] += size
        else:
            breakdown["temporaries and gradients"] += size
    return PeakPoint(f"{moment.where}/{name}", buffer.source if buffer else "", breakdown)


def _origin(label: str, traces: tuple[GraphTrace, ...]) -> tuple[str, str]:
    """(FX node, source line) behind a storage's label in a replay: "f.buf3", "b.buf1" or an input's name."""
    half, _, name = label.partition(".")
    if half in ("f", "b") and name:
        buffer = traces[0 if half == "f" else -1].buffers.get(name)
        if buffer is not None and buffer.origins:
            return buffer.origins[0], buffer.source
        return name, ""
    return label, "input"
