"""The pass that gives every buffer a place: one block of memory for forward and backward together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memcompile.codegen.inductor.hooks import Hook
from memcompile.codegen.inductor.trial import peak_of
from memcompile.options import choice
from memcompile.passes.arena.allocate import ArenaPlan
from memcompile.passes.arena.check import check_places
from memcompile.passes.arena.figure import ArenaReport
from memcompile.passes.arena.placed import placed_peak
from memcompile.passes.arena.placing import Placing
from memcompile.passes.base import Context, Made, Pass, Plan, Refused, Request, Section
from memcompile.runtime.arena import GraphArena as Block
from memcompile.step.trace import GraphTrace, StepPeak

BETWEEN = (
    "its step has other calls: another graph runs between its forward and its backward, or it between those of another graph"
)


@dataclass(frozen=True, slots=True)
class Places(Plan):
    """``plan``: None where there is no arena. ``block``: the memory itself, made at the first call. ``traces``: of the code
    with slots, in which no dead buffer is held for a later one; ``step``: their peak."""

    plan: ArenaPlan | None
    report: ArenaReport | None
    block: Block
    traces: Mapping[str, GraphTrace]
    step: StepPeak

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
        alone = not request.inside and request.share is None
        return Hook(place=Placing(request.device, request.options["arena"], "" if alone else BETWEEN))

    def plan(self, graph: Made, ctx: Context) -> Places | Refused | None:
        """Within the limit, or in what the code takes without an arena where that is above it."""
        if ctx.dry:
            return None
        placing = graph.hooks[self.name].place
        assert isinstance(placing, Placing)
        traces, step = placing.traces, peak_of(graph.graphs, placing.traces)
        if placing.refused or not traces:
            report = ArenaReport(placing.scope, placing.refused or "nothing is lowered")
            return Places(None, report if placing.scope != "off" else None, placing.arena, traces, step)
        limit = graph.limit_bytes
        limit = None if limit is None else max(limit, graph.peak.peak_bytes)
        held = graph.peak.held_bytes if ctx.request.graph_break else None
        plan = placing.place(step, limit, held, graph.slack_bytes)
        return Places(plan, placing.report(plan, step, graph.peak), placing.arena, traces, step)

    def apply(self, graph: Made, plan: Places) -> Made:
        """Peaks as the code runs with its arena."""
        if plan.plan is None:
            return graph
        places = plan.plan.offsets, plan.plan.height, plan.plan.relays
        dropped = placed_peak(peak_of(graph.graphs, plan.traces, returned_held=False), *places)
        return replace(graph, peak=placed_peak(plan.step, *places), dropped=dropped)

    def check(self, before: Made, after: Made, plan: Places) -> None:
        """Against the lowered code: no two buffers that are alive together overlap."""
        if plan.plan is not None:
            forward, backward = plan.traces.get("inference") or plan.traces["forward"], plan.traces.get("backward")
            check_places(forward, backward, plan.plan.offsets, plan.plan.height, plan.plan.relays)

    def section(self, plan: Places, made: Made) -> Section:
        """The picture of what lies where."""
        return Section(figures=() if plan.report is None else (plan.report,))
