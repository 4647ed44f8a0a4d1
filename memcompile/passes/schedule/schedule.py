"""The pass that keeps a budget: of every storage of a step, keep, recompute or move, at the least time that is found."""

from __future__ import annotations

import functools

from memcompile.options import Option, switch
from memcompile.passes.base import Context, Made, Pass, Refused, Section
from memcompile.passes.schedule.check import verify
from memcompile.passes.schedule.fit import Outcome, fit
from memcompile.passes.schedule.section import section_of
from memcompile.passes.schedule.tiers import measured, usable
from memcompile.runtime.transfers.tiers import parse_tiers
from memcompile.solvers.calls.choose import UNPLANNED
from memcompile.step.facts import StepGraphs


class JointSchedule(Pass[StepGraphs, Outcome]):
    """The joint planner. Without a budget, and where the step fits as it is, nothing is changed."""

    name = "rematerialize"
    stage = "step"
    options = (
        switch("rematerialize", "`False`: nothing is computed again; with `swap`, storages still move"),
        Option(
            "swap",
            parse_tiers,
            (),
            '`{"host": "16GiB", "disk": "/scratch:64GiB"}`: tiers that storages may move to while nothing reads '
            "them, with what they may take there; `None`: nothing moves",
            lambda tiers: {tier.name: tier.to_option() for tier in tiers} or None,
        ),
    )

    def plan(self, graph: StepGraphs, ctx: Context) -> Outcome | Refused | None:
        """Lowered on trial; the smallest plan where none keeps the budget."""
        recompute, swap = ctx.options["rematerialize"], ctx.options["swap"]
        tiers = usable(swap, ctx.device)
        share = ctx.request.share
        if not ctx.has_budget or share == UNPLANNED:
            return None
        base = ctx.lower(graph, None)
        outcome = fit(
            base,
            ctx.rooms.left(base.peak),
            costs=ctx.costs,
            time_limit_s=ctx.options.solver_time_limit_s,
            lowering=ctx.lower,
            trust=ctx.request.trust,
            tiers=functools.partial(measured, tiers, ctx.device, dry=ctx.dry, recompute=recompute),
            may_change=bool(recompute or swap),
            held_bytes=None if share is None or graph.backward is None else share.held_bytes,
        )
        if not recompute:
            outcome.lever = "rematerialize=True, so that storages may be computed again"
        return outcome

    def apply(self, graph: StepGraphs, plan: Outcome) -> StepGraphs:
        """The halves of the joint graph that the plan was written to."""
        return plan.final.graphs

    def check(self, before: StepGraphs, after: StepGraphs, plan: Outcome) -> None:
        """By value numbering, against the step without a plan."""
        if plan.chosen is not None:
            verify(plan.chosen.facts, plan.chosen.solution, plan.chosen.joint, before, after)

    def section(self, plan: Outcome, made: Made) -> Section:
        """What is computed again, what moves, and what that takes."""
        return section_of(plan, made.outside_bytes)
