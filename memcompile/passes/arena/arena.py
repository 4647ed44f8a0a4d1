"""The pass that gives every buffer a place: one block of memory for forward and backward together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memcompile.codegen.inductor.hooks import Hook
from memcompile.options import choice
from memcompile.passes.arena.allocate import ArenaPlan
from memcompile.passes.arena.check import check_places
from memcompile.passes.arena.figure import ArenaReport
from memcompile.passes.arena.placed import placed_peak
from memcompile.passes.arena.placing import Placing
from memcompile.passes.base import Context, Made, Pass, Plan, Refused, Request, Section
from memcompile.runtime.arena import GraphArena as Block
from memcompile.step.facts import StepGraphs
from memcompile.step.trace import GraphTrace, StepPeak, step_peak

BETWEEN = "it runs between the forward and the backward of another graph"


@dataclass(frozen=True, slots=True)
class Places(Plan):
    """``plan``: None where there is no arena. ``block``: the memory itself, made at the first call."""

    plan: ArenaPlan | None
    report: ArenaReport | None
    block: Block

    @property
    def keeps(self) -> tuple[Block]:
        """Lowered code finds it by its key."""
        return (self.block,)


class ArenaPlaces(Pass[Made, Places]):
    """Offsets in an arena of the smallest height, in no more memory than the code takes without one."""

    name = "arena"
    stage = "lowered"
    options = (
        choice(
            "arena",
            ("step", "graph", "off"),
            "step",
            '`"step"`: one block of memory for forward and backward, every offset chosen before anything runs, '
            'kept between steps (`memcompile.release()` gives it back); `"graph"`: the same, with saved tensors '
            'allocated as usual; `"off"`',
        ),
    )

    def hook(self, request: Request) -> Hook | None:
        """Buffers become slots as each half is lowered."""
        if request.dry:
            return None
        return Hook(place=Placing(request.device, request.options["arena"], BETWEEN if request.inside else ""))

    def plan(self, graph: Made, ctx: Context) -> Places | Refused | None:
        """Within the limit, where the code keeps it without an arena."""
        if ctx.dry:
            return None
        placing = graph.hooks[self.name].place
        assert isinstance(placing, Placing)
        if placing.refused or not placing.traces:
            report = ArenaReport(placing.scope, placing.refused or "nothing is lowered")
            return Places(None, report if placing.scope != "off" else None, placing.arena)
        step = _peak_of(graph.graphs, placing.traces)
        limit = graph.limit_bytes
        limit = limit if limit is not None and graph.peak.peak_bytes <= limit else None
        held = graph.peak.held_bytes if ctx.request.graph_break else None
        plan = placing.place(step, limit, held, graph.slack_bytes)
        return Places(plan, placing.report(plan, step, graph.peak), placing.arena)

    def apply(self, graph: Made, plan: Places) -> Made:
        """Peaks as the code runs with its arena."""
        if plan.plan is None:
            return graph
        traces = _traces(graph)
        places = plan.plan.offsets, plan.plan.height, plan.plan.relays
        peak = placed_peak(_peak_of(graph.graphs, traces), *places)
        dropped = placed_peak(_peak_of(graph.graphs, traces, returned_held=False), *places)
        return replace(graph, peak=peak, dropped=dropped)

    def check(self, before: Made, after: Made, plan: Places) -> None:
        """Against the lowered code: no two buffers that are alive together overlap."""
        if plan.plan is not None:
            traces = _traces(before)
            forward, backward = traces.get("inference") or traces["forward"], traces.get("backward")
            check_places(forward, backward, plan.plan.offsets, plan.plan.height, plan.plan.relays)

    def section(self, plan: Places, made: Made) -> Section:
        """The picture of what lies where."""
        return Section(figures=() if plan.report is None else (plan.report,))


def _traces(graph: Made) -> dict[str, GraphTrace]:
    """Of the code with slots, in which no dead buffer is held for a later one."""
    placing = graph.hooks[ArenaPlaces.name].place
    assert isinstance(placing, Placing)
    return placing.traces


def _peak_of(graphs: StepGraphs, traces: dict[str, GraphTrace], *, returned_held: bool = True) -> StepPeak:
    forward = traces.get("inference") or traces["forward"]
    return step_peak(forward, traces.get("backward"), tangents_held=graphs.tangents_held, returned_held=returned_held)
