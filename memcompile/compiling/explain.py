"""Outcome -> ``GraphReport``: why the step fits, what was decided, what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from memcompile.codegen.dump import kernels_of
from memcompile.errors import Contributor
from memcompile.passes.schedule.fit import Outcome
from memcompile.passes.schedule.moves_section import refused_moves, swap_report
from memcompile.passes.schedule.rematerialize import Recomputation, recomputations
from memcompile.passes.weights.section import weights_decisions, weights_notes, weights_pass, weights_plan, weights_times
from memcompile.report.data import (
    DecisionRow,
    GraphReport,
    KernelInfo,
    OrderReport,
    PassReport,
    PeakPoint,
    Report,
    TimelinePoint,
)
from memcompile.report.patched import how_text, patch_summary
from memcompile.step.fxutil import hint
from memcompile.step.lowered import Lowered
from memcompile.step.trace import GraphTrace, StepPeak
from memcompile.step.unplanned import unplanned
from memcompile.streaming.source import source_text
from memcompile.units import format_bytes

if TYPE_CHECKING:
    from memcompile.compiling.session import Session
    from memcompile.passes.tiles.choose import Tiled


def graph_report(session: Session, peak: StepPeak) -> GraphReport:
    """The report of one compiled graph; ``peak``: of the code that was compiled."""
    outcome, outside, tiled = session.outcome, session.outside.bytes, session.tiled
    in_stages = tiled is not None and tiled.gm is not None  # all that was lowered since is of the stages
    kind = "inference" if "inference" in session.keeps.traces or session.graphs is None else "train"
    common = {
        "graph_id": session.graph_id,
        "kind": kind,
        "device": str(session.device),
        "planned_peak_bytes": peak.peak_bytes + outside,
        "budget_bytes": None if session.room is None or session.counts_elements else session.room.total_bytes,
        "entry_bytes": peak.entry_bytes + outside,
        "saved_bytes": peak.saved_bytes,
        "peak_at": _peak_point(peak, session.keeps.traces),
        "kernels": _kernels(session),
        "repro": session.repro,
        "arena": session.arena_report,
        "patch": None if tiled is None else tiled.report,
        "scratchpad": session.scratchpad,
        "notes": _notes(session, outcome),
        "orders": _orders(session),
        "forward_timeline": _timeline(peak, "forward", outside),
        "backward_timeline": _timeline(peak, "backward", outside),
    }
    base = session.keeps.peak() if outcome is None else outcome.base.peak
    common["unplanned_peak_bytes"] = _unplanned(session, base) + outside
    passes = (*_patch_pass(tiled, outside), *weights_pass(session.weights, outside))
    weights = {"plan": weights_plan(session.weights), **weights_times(session.weights)}
    if outcome is None:
        decisions = (*_tiles(session), *_left(session))
        return GraphReport(passes=passes, decisions=decisions, **weights, **common)  # type: ignore[arg-type]
    planned = {**weights, **_planned(outcome, outside)}
    return GraphReport(
        lower_bound_bytes=outcome.lower_bound_bytes + session.outside.certain_bytes if outcome.lower_bound_bytes else 0,
        graphs=_graph_texts(outcome),
        base_timeline=() if in_stages else _timeline(base, None, outside),
        passes=(*passes, *planned.pop("passes", ())),
        decisions=(*_tiles(session), *_left(session), *_not_left(session, planned.pop("decisions", ()))),
        **planned,
        **common,  # type: ignore[arg-type]
    )


def _unplanned(session: Session, base: StepPeak) -> int:
    """The peak without any plan; ``base``: without recomputation."""
    return session.unplanned_bytes or base.peak_bytes


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


def next_lever(session: Session, lowered: Lowered) -> str:
    """What to change to get below the smallest peak."""
    peak, batch = lowered.peak, batch_of(session.gm, session.inputs)
    smaller = "a smaller batch" if batch > 1 else "smaller inputs"
    if session.outside.bytes > peak.peak_bytes:
        return "graphs before this one hold most of it: fewer graph breaks, so that they are planned together"
    if peak.entry_bytes * 2 > peak.peak_bytes:
        either = "model or batch" if batch > 1 else "model or inputs"
        return f"parameters and inputs make most of the floor: a smaller {either}, or lower precision"
    if not session.recompute:
        return "rematerialize=True, so that storages may be computed again"
    if lowered.graphs.backward is None:
        return f"one op's inputs and outputs make the floor: {smaller}"
    return f"{smaller}{' with gradient accumulation' * (batch > 1)}, or lower precision (autocast)"


def batch_of(gm: fx.GraphModule, inputs: Sequence[object]) -> int:
    """The items of a batch: along the first axis of what the model is called with, not of what it owns."""
    given = zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=False)
    own = ("_parameters_", "_buffers_")
    called = [x for node, x in given if isinstance(x, torch.Tensor) and not any(name in node.name for name in own)]
    return max((hint(x.shape[0]) for x in called if x.dim() > 1 and not isinstance(x, torch.nn.Parameter)), default=1)


def _planned(outcome: Outcome, outside: int) -> dict[str, Any]:
    if outcome.chosen is None or outcome.facts is None:
        return {"status": "optimal" if outcome.fits else "none", "solver": "nothing to do"}
    solution, problem = outcome.chosen.solution, outcome.facts.problem
    rows = recomputations(outcome.facts, solution.schedule)
    base_seconds = problem.total_seconds
    bound = f", bound {_percent(solution.lower_bound_seconds, base_seconds)}" if solution.status != "heuristic" else ""
    summary = f"{len(rows)} storages recomputed ({solution.status}{bound})"
    swap = swap_report(outcome, outside)
    done = PassReport(
        name="rematerialize",
        peak_before_bytes=outcome.base.peak.peak_bytes + outside,
        peak_after_bytes=outcome.final.peak.peak_bytes + outside if swap is None else swap.done.peak_before_bytes,
        seconds_before=base_seconds,
        seconds_after=base_seconds + solution.extra_seconds if swap is None else swap.done.seconds_before,
        compile_seconds=outcome.plan_seconds + outcome.lower_seconds,
        summary=summary,
    )
    return {
        "planned_seconds": base_seconds + solution.extra_seconds,
        "lower_bound_seconds": base_seconds + solution.lower_bound_seconds,
        "base_seconds": base_seconds,
        "status": solution.status,
        "solver": solution.method,
        "passes": (done,) if swap is None else (done, swap.done),
        "decisions": (
            *_decisions(rows),
            *(() if swap is None else swap.decisions),
            *_refusals(outcome),
            *refused_moves(outcome),
        ),
        "plan": {
            "schedule": [problem.ops[op].name for op in solution.schedule.sequence],
            "backward_starts_at": solution.schedule.split,
            "model_peak_bytes": solution.peak_bytes,
            "exact_peak_bytes": outcome.final.peak.peak_bytes,
            "targets": [attempt.target_bytes for attempt in outcome.attempts],
            "trial_lowerings": sum(not attempt.trusted for attempt in outcome.attempts),
            "plan_seconds": outcome.plan_seconds,
            "lower_seconds": outcome.lower_seconds,
            "ops": len(problem.ops),
            "storages": len(problem.storages),
            **({} if swap is None else swap.plan),
        },
    }


def _percent(seconds: float, total: float) -> str:
    return f"{100 * seconds / total:.1f} %" if total else "0 %"


def _decisions(rows: tuple[Recomputation, ...]) -> list[DecisionRow]:
    return [
        DecisionRow(
            "recompute",
            row.storage,
            row.source,
            row.size_bytes,
            row.seconds,
            "dropped after its last use in the forward" if row.times == 1 else f"made again {row.times} times",
        )
        for row in rows
    ]


def _tiles(session: Session) -> tuple[DecisionRow, ...]:
    """What runs block by block, and what could not."""
    rows = [
        DecisionRow("rewrite", done.node, done.source, done.saves_bytes, None, done.what)
        for done in session.low_rank.rewrites
        if done.saves_bytes
    ]
    for streamed in session.low_rank.streamed:
        program = streamed.program
        blocks = -(-program.total // program.block)
        why = f"{blocks} blocks of {program.block} rows, {format_bytes(program.workspace_bytes)} for one"
        why = why if program.fused is None else "one Triton kernel"
        rows.append(DecisionRow("tile", streamed.node, streamed.source, streamed.saved_bytes, None, why))
    rows += [DecisionRow("refused", name, source, None, None, why) for name, source, why in session.low_rank.refused]
    return (*rows, *_inverted(session), *_patches(session), *weights_decisions(session.weights))


def _inverted(session: Session) -> list[DecisionRow]:
    """Inverted residuals that run as one kernel, and those that do not."""
    done = [
        DecisionRow("tile", block.node, block.source, block.saved_bytes, None, session.inverted.why)
        for block in session.inverted.blocks
    ]
    return done + [DecisionRow("refused", name, source, None, None, why) for name, source, why in session.inverted.refused]


def _patches(session: Session) -> list[DecisionRow]:
    """Stages of images that run tile by tile; they save what the planner counts of their peak."""
    if session.tiled is None:
        return []
    rows = []
    for patched, stage in zip(session.tiled.patched, session.tiled.report.tiled, strict=False):
        program = patched.program
        count = f"{stage.operators} operator{'s' * (stage.operators != 1)} from {stage.first} on"
        again = f", {', '.join(stage.again)} made again" if stage.again else ""
        bodies = f"{len(program.bodies)} kind{'s' * (len(program.bodies) != 1)} of tile"
        inside = format_bytes(program.workspace_bytes + program.scratch_bytes)
        why = f"{count} in {how_text(stage)}{again}: {bodies}, {inside} for one"
        saves = stage.base_peak_bytes - stage.peak_bytes
        rows.append(DecisionRow("tile", stage.last, stage.source or patched.source, saves if saves > 0 else None, None, why))
    return rows


def _patch_pass(tiled: Tiled | None, outside: int) -> tuple[PassReport, ...]:
    """What stages did to the peak: exactly, where the graph was lowered with and without them."""
    if tiled is None or tiled.report.refused:
        return ()
    patch = tiled.report
    before, after = patch.base_peak_bytes, patch.peak_bytes
    if tiled.gm is not None:
        before, after = tiled.base_peak_bytes + outside, tiled.peak_bytes + outside
    return (PassReport("patch", before, after, 0.0, 0.0, patch.seconds, patch_summary(patch)),)


def _left(session: Session) -> tuple[DecisionRow, ...]:
    """What is left as it is, whatever the budget."""
    return tuple(DecisionRow("refused", name, source, None, None, why) for name, source, why in unplanned(session.graphs))


def _not_left(session: Session, rows: Iterable[DecisionRow]) -> Iterator[DecisionRow]:
    """``rows`` without the refusals of what is left anyway."""
    left = {row.storage for row in _left(session)}
    return (row for row in rows if row.kind != "refused" or row.storage not in left)


def _refusals(outcome: Outcome) -> list[DecisionRow]:
    assert outcome.facts is not None
    return [DecisionRow("refused", name, source, None, None, why) for name, source, why in outcome.facts.refused]


def _graph_texts(outcome: Outcome) -> dict[str, str]:
    texts = _texts("before", outcome.base)
    if outcome.chosen is not None:
        texts["joint after rematerialize"] = _readable(outcome.chosen.joint.module)
        texts.update(_texts("after rematerialize", outcome.chosen.lowered))
    return texts


def _texts(stage: str, lowered: Lowered) -> dict[str, str]:
    texts = {f"forward {stage}": _readable(lowered.graphs.forward)}
    if lowered.graphs.backward is not None:
        texts[f"backward {stage}"] = _readable(lowered.graphs.backward)
    return texts


def _readable(module: fx.GraphModule) -> str:
    return module.print_readable(print_output=False, include_stride=False, include_device=False)


def _notes(session: Session, outcome: Outcome | None) -> tuple[str, ...]:
    notes = [*session.notes, *weights_notes(session.weights)]
    if session.tiled is not None and session.tiled.report.refused:
        notes.append(f"images are made layer by layer: {session.tiled.report.refused}")
    if outcome is None:
        return tuple(notes)
    if session.reserve_bytes:
        notes.append("a graph break follows: room is left for the graphs after it")
    if session.outside.bytes:
        notes.append(f"{session.outside.bytes} bytes of other graphs and of existing gradients are alive beside this graph")
    if not outcome.fits:
        notes.append("best effort: the budget lies below the smallest peak that was found")
    return tuple(notes)


def _orders(session: Session) -> tuple[OrderReport, ...]:
    return tuple(
        OrderReport(
            found.kind,
            found.kernels,
            found.before_bytes,
            found.order.peak_bytes,
            found.order.bound_bytes,
            len(found.order.apart),
            found.order.status,
            found.order.method,
            found.order.seconds,
        )
        for found in session.scheduling.orderings.values()
    )


def _kernels(session: Session) -> tuple[KernelInfo, ...]:
    kinds = (("rows", session.low_rank.streamed), ("inverted_residual", session.inverted.blocks))
    rows = tuple(
        KernelInfo(
            f"{kind}_{key}",
            (streamed.source,),
            source_text(streamed.program, streamed.source),
            streamed.program.fused.language if streamed.program.fused is not None else "python",
        )
        for kind, found in kinds
        for key, streamed in {streamed.program.key: streamed for streamed in reversed(found)}.items()
    )
    return rows + tuple(
        KernelInfo(f"{kind}_{kernel.name}", kernel.source_lines, kernel.code, kernel.language)
        for kind, source in session.sources.items()
        for kernel in kernels_of(source)
    )


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
