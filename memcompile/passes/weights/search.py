"""From a graph that fetches weights to one that streams them within a budget: plan, lower on trial, plan again."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import fx

from memcompile.codegen.inductor.swapped import register_swap
from memcompile.logs import get_logger
from memcompile.passes.base import Context, Plan
from memcompile.passes.weights.stream import (
    AHEAD,
    ReadAhead,
    Uses,
    all_inputs,
    apply,
    find_uses,
    kept_order,
    problem_of,
    supply,
)
from memcompile.runtime.transfers.weight_speed import ASSUMED, known_link, measured_link
from memcompile.solvers.transfers.link import Link
from memcompile.solvers.transfers.prefetch import PrefetchProblem, just_in_time, plan_ahead, plan_prefetch
from memcompile.step.facts import Planned, StepGraphs
from memcompile.step.fxutil import node_bytes, outputs_of
from memcompile.step.lowered import Fitted, Lowered

log = get_logger(__name__)

MOST_LOWERINGS = 5
LEAST_STEP = 0.002
"""Share of the budget by which the target is lowered at least when the lowered code takes more than the model says."""
SLACK_SHARE = 0.01
"""Of the budget, left for the arena: it takes what it takes at its fullest all the time."""


@dataclass(frozen=True, slots=True)
class WeightPlan(Plan):
    """How a graph reads its weights.

    With a budget: ``base`` has all of them in memory, ``lowered`` is the plan, exactly. ``link_assumed``: nothing was measured.
    ``slack_bytes``: what an arena may take above the plan: reads into memory that was used before are faster by a third.
    """

    streamed: ReadAhead
    link: Link
    link_assumed: bool
    total_s: float
    weight_bytes: int
    plan_seconds: float
    slack_bytes: int
    room_bytes: int | None = None
    base: Lowered | None = None
    lowered: Lowered | None = None

    @property
    def fitted(self) -> Fitted | None:
        """Nothing else is planned in a graph that reads weights."""
        if self.lowered is None:
            return None
        peak, fits = self.lowered.peak.peak_bytes, self.room_bytes is None or self.lowered.peak.peak_bytes <= self.room_bytes
        return Fitted(self.lowered, self.room_bytes, self.lowered, None if fits else peak)

    @property
    def settles(self) -> bool:
        """Nothing is tiled or computed again where weights are read."""
        return True

    @property
    def unplanned_bytes(self) -> int | None:
        """With all weights in memory."""
        return None if self.base is None else self.base.peak.peak_bytes

    @property
    def arena_slack_bytes(self) -> int:
        """An arena is full all the time."""
        return self.slack_bytes

    def supply(self, device: torch.device) -> list[torch.Tensor]:
        """The weights that stay."""
        return supply(self.streamed, device)


def plan_weights(gm: fx.GraphModule, ctx: Context) -> WeightPlan | None:
    """The fastest plan found within the room; the smallest where none keeps it. None where what is read is only returned."""
    register_swap()
    begun = time.perf_counter()
    uses = find_uses(gm.graph)
    if not uses.uses:
        return None
    known = known_link(uses.weights)
    link = known or (ASSUMED if ctx.dry else measured_link(uses.weights, ctx.device))
    search = _Search(gm, ctx, uses, link, known is None and ctx.dry)
    plan = search.within(begun) if ctx.has_budget else search.ahead(begun)
    prefetch = plan.streamed.prefetch
    log.info("%d bytes of weights stay, %d are read in a step", plan.streamed.resident_bytes, prefetch.streamed_bytes)
    return plan


@dataclass(frozen=True, slots=True)
class _Search:
    gm: fx.GraphModule
    ctx: Context
    uses: Uses
    link: Link
    assumed: bool

    def ahead(self, begun: float) -> WeightPlan:
        """Without a budget: nothing stays, a few reads are under way."""
        problem = problem_of(self.gm, self.uses, self.ctx.costs(), None)
        streamed = apply(self.gm, self.uses, plan_ahead(problem, AHEAD, self.link))
        return self._plan(streamed, problem, begun)

    def within(self, begun: float) -> WeightPlan:
        """The model of the plan guides, the exact peak of the lowered code decides."""
        base = self._lowered(all_inputs(self.gm), kept_order(self.uses), None)
        room = self.ctx.rooms.left(base.peak)
        problem = problem_of(self.gm, self.uses, self.ctx.costs(), (base.traces[0], base.tight_peak))
        target, best = room, None
        if plan_prefetch(problem, room - self._slack(room), self.link) is not None:
            target -= self._slack(room)
        for _ in range(MOST_LOWERINGS):
            prefetch = plan_prefetch(problem, target, self.link)
            at_floor = prefetch is None
            streamed = apply(self.gm, self.uses, prefetch or just_in_time(problem, self.link))
            lowered = self._lowered(streamed.gm, streamed.planned, room)
            exact, model = lowered.peak.peak_bytes, streamed.prefetch.peak_bytes
            log.info("target %d: model %d, exact %d of %d", target, model, exact, room)
            if best is None or exact < best[1].peak.peak_bytes:
                best = streamed, lowered
            if exact <= room or at_floor:
                break
            target -= max(exact - room, int(LEAST_STEP * room))
        assert best is not None
        return self._plan(best[0], problem, begun, room, base, best[1])

    def _slack(self, size_bytes: int) -> int:
        """An arena is full all the time, and what the user receives is beside it."""
        returned = [node for node in outputs_of(self.gm.graph) if isinstance(node, fx.Node)]
        return int(SLACK_SHARE * size_bytes) + sum(map(node_bytes, returned))

    def _lowered(self, gm: fx.GraphModule, planned: Planned, room: int | None) -> Lowered:
        return self.ctx.lower(StepGraphs(gm, None, len(outputs_of(gm.graph)), planned), room)

    def _plan(
        self,
        streamed: ReadAhead,
        problem: PrefetchProblem,
        begun: float,
        room: int | None = None,
        base: Lowered | None = None,
        lowered: Lowered | None = None,
    ) -> WeightPlan:
        seconds = time.perf_counter() - begun
        slack = self._slack(room or streamed.prefetch.peak_bytes)
        total_bytes = sum(problem.sizes)
        return WeightPlan(streamed, self.link, self.assumed, problem.total_s, total_bytes, seconds, slack, room, base, lowered)
