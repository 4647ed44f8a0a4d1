"""From a graph that fetches weights to one that streams them within a budget: plan, lower on trial, plan again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from memcompile.codegen.inductor.fetched import register_fetch
from memcompile.logs import get_logger
from memcompile.passes.weights.stream import (
    AHEAD,
    Streamed,
    Uses,
    all_inputs,
    apply,
    fetches_of,
    find_uses,
    kept_order,
    problem_of,
)
from memcompile.runtime.transfers.weight_speed import ASSUMED, known_link, measured_link
from memcompile.solvers.transfers.prefetch import Link, Problem, just_in_time, plan_ahead, plan_prefetch
from memcompile.step.cost import CostModel
from memcompile.step.facts import Planned, StepGraphs
from memcompile.step.fxutil import node_bytes, outputs_of
from memcompile.step.lowered import Lowered, Lowering

log = get_logger(__name__)

MOST_LOWERINGS = 5
LEAST_STEP = 0.002
"""Share of the budget by which the target is lowered at least when the lowered code takes more than the model says."""
SLACK_SHARE = 0.01
"""Of the budget, left for the arena: it takes what it takes at its fullest all the time."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What planning needs of a session. ``room``: bytes that the graph may take, given all weights in memory; None without a
    budget. ``dry``: nothing is read."""

    lowering: Lowering
    room: Callable[[Lowered], int] | None
    costs: Callable[[], CostModel]
    device: torch.device
    dry: bool


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """How a graph reads its weights.

    With a budget: ``base`` has all of them in memory, ``lowered`` is the plan, exactly. ``link_assumed``: nothing was measured.
    ``slack_bytes``: what an arena may take above the plan: reads into memory that was used before are faster by a third.
    """

    streamed: Streamed
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
    def fits(self) -> bool:
        """Whether the exact peak keeps the budget."""
        return self.room_bytes is None or self.lowered is None or self.lowered.peak.peak_bytes <= self.room_bytes


def plan_weights(gm: fx.GraphModule, tools: Tools) -> WeightPlan | None:
    """The fastest plan found within the room; the smallest where none keeps it. None where the graph fetches nothing."""
    if not fetches_of(gm.graph):
        return None
    register_fetch()
    begun = time.perf_counter()
    uses = find_uses(gm.graph)
    if not uses.uses:
        return None
    known = known_link(uses.weights)
    link = known or (ASSUMED if tools.dry else measured_link(uses.weights, tools.device))
    search = _Search(gm, tools, uses, link, known is None and tools.dry)
    plan = search.ahead(begun) if tools.room is None else search.within(begun, tools.room)
    prefetch = plan.streamed.prefetch
    log.info("%d bytes of weights stay, %d are read in a step", plan.streamed.resident_bytes, prefetch.streamed_bytes)
    return plan


@dataclass(frozen=True, slots=True)
class _Search:
    gm: fx.GraphModule
    tools: Tools
    uses: Uses
    link: Link
    assumed: bool

    def ahead(self, begun: float) -> WeightPlan:
        """Without a budget: nothing stays, a few reads are under way."""
        problem = problem_of(self.gm, self.uses, self.tools.costs(), None)
        streamed = apply(self.gm, self.uses, plan_ahead(problem, AHEAD, self.link))
        return self._plan(streamed, problem, begun)

    def within(self, begun: float, room_of: Callable[[Lowered], int]) -> WeightPlan:
        """The model of the plan guides, the exact peak of the lowered code decides."""
        base = self._lowered(all_inputs(self.gm), kept_order(self.uses), None)
        room = room_of(base)
        problem = problem_of(self.gm, self.uses, self.tools.costs(), (base.traces[0], base.tight_peak))
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
        return self.tools.lowering(StepGraphs(gm, None, len(outputs_of(gm.graph)), planned), room)

    def _plan(
        self,
        streamed: Streamed,
        problem: Problem,
        begun: float,
        room: int | None = None,
        base: Lowered | None = None,
        lowered: Lowered | None = None,
    ) -> WeightPlan:
        seconds = time.perf_counter() - begun
        slack = self._slack(room or streamed.prefetch.peak_bytes)
        total_bytes = sum(problem.sizes)
        return WeightPlan(streamed, self.link, self.assumed, problem.total_s, total_bytes, seconds, slack, room, base, lowered)
