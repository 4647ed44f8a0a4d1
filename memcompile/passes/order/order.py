"""The pass that orders kernels: of graphs without a recompute plan, for the smallest exact peak.

It takes part in lowering (``codegen/inductor/scheduled.py``), trial lowerings included; here is what became of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from memcompile.codegen.inductor.hooks import Hook
from memcompile.codegen.inductor.ordering import Ordering
from memcompile.codegen.inductor.scheduled import Scheduling
from memcompile.options import switch
from memcompile.passes.base import Context, Made, Pass, Plan, Refused, Request, Section
from memcompile.passes.order.figure import OrderReport, Orders


@dataclass(frozen=True, slots=True)
class OrderPlan(Plan):
    """The orders of the graphs that were lowered for good."""

    orderings: tuple[Ordering, ...]


class KernelOrder(Pass[Made, OrderPlan]):
    """The order of fused kernels."""

    name = "schedule"
    stage = "lowered"
    options = (switch("schedule", "`False` leaves the order of kernels to Inductor"),)

    def hook(self, request: Request) -> Hook:
        """In the place of Inductor's last reordering."""
        scheduling = Scheduling(request.options["schedule"], fallback=request.options.fallback == "inductor")
        return Hook(scheduling=scheduling)

    def plan(self, graph: Made, ctx: Context) -> OrderPlan | Refused | None:
        """What was chosen while the graph was lowered."""
        scheduling = graph.hooks[self.name].scheduling
        assert scheduling is not None
        scheduling.problems.clear()
        return OrderPlan(tuple(scheduling.orderings.values()))

    def apply(self, graph: Made, plan: OrderPlan) -> Made:
        """The code has the order."""
        return graph

    def section(self, plan: OrderPlan, made: Made) -> Section:
        """Peaks before and after."""
        return Section(figures=(Orders(tuple(map(_row, plan.orderings))),))


def _row(found: Ordering) -> OrderReport:
    order = found.order
    return OrderReport(
        found.kind,
        found.kernels,
        found.before_bytes,
        order.peak_bytes,
        order.bound_bytes,
        len(order.apart),
        order.status,
        order.method,
        order.seconds,
    )
