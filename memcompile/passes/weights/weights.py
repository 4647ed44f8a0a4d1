"""The pass of weights that are not in memory: read ahead of time for inference, read again for each half of a training step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from memcompile.passes.base import Captured, Context, Made, Pass, Plan, Refused, Section
from memcompile.passes.weights.search import WeightPlan, plan_weights
from memcompile.passes.weights.section import section_of
from memcompile.passes.weights.stream import fetches_of, read_again
from memcompile.step.fxutil import copied


@dataclass(frozen=True, slots=True)
class ReadAgain(Plan):
    """``gm``: a joint graph whose halves read weights by themselves."""

    gm: fx.GraphModule


class WeightReads(Pass[Captured, WeightPlan | ReadAgain]):
    """When each offloaded weight is read, and which of them stay within the budget."""

    name = "weights"
    stage = "capture"

    def plan(self, graph: Captured, ctx: Context) -> WeightPlan | ReadAgain | Refused | None:
        """The fastest plan found within the room, on a copy; the smallest where none keeps it."""
        if not fetches_of(graph.gm.graph):
            return None
        gm = copied(graph.gm)
        if graph.training:
            read_again(gm.graph)
            return ReadAgain(gm)
        return plan_weights(gm, ctx)

    def apply(self, graph: Captured, plan: WeightPlan | ReadAgain) -> Captured:
        """The graph with its reads; weights that stay are inputs behind its own."""
        if isinstance(plan, ReadAgain):
            return Captured(plan.gm, graph.training, graph.planned)
        return Captured(plan.streamed.gm, graph.training, plan.streamed.planned)

    def section(self, plan: WeightPlan | ReadAgain, made: Made) -> Section:
        """What is read and what stays, and what waiting for it takes."""
        return Section() if isinstance(plan, ReadAgain) else section_of(plan, made.outside_bytes)
