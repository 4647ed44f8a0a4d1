"""A whole step, planned together: from its tape to what each of its calls gets.

    tape of a step that ended        runtime/tape.py     calls in order, when their backwards came
    what each graph could be         Fitted.front        plans that hold little or much, by the model
    the budget of the step           a number of bytes, or a share of the peak that the whole step has without a plan
    one choice for each call         solvers/calls/      every moment within the budget, at the least time

Variants are compiled as they are called (``compiled_graph.py``). Where one takes more than the model said, the calls that
follow are chosen once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from memcompile.codegen.inductor.dynamo import capture_info
from memcompile.errors import BudgetInfeasibleError, Contributor
from memcompile.logs import get_logger
from memcompile.options import Options
from memcompile.runtime.ledger import LEDGER, GraphEntry, Ledger
from memcompile.runtime.profile import Profile, moments_of
from memcompile.runtime.region import is_one_of_several
from memcompile.runtime.tape import Course, Tape
from memcompile.solvers.calls.choose import LEAST, Moment, Point, Share, choose

if TYPE_CHECKING:
    from memcompile.compiling.compiled_graph import CompiledGraph

log = get_logger(__name__)

MARGIN = 1.005
"""For what the model says of a plan that was not compiled yet."""
LEVER = "a smaller batch, or fewer calls of compiled graphs before their backwards"


@dataclass(frozen=True, slots=True)
class Possible:
    """What a call could get. ``exact``: it was compiled."""

    share: Share | None
    point: Point
    exact: bool


def point_of(entry: GraphEntry, profile: Profile | None = None, seconds: float = 0.0) -> Point:
    """What a compiled graph takes beside what is alive at its entry."""
    return replace((profile or entry.profile).keeping(entry.seen.kept_bytes).point, seconds=seconds)


class StepPlan:
    """The calls of one step with all that they could be. ``shares``: what each gets."""

    def __init__(self, tape: Tape) -> None:
        calls = [(call.graph, entry) for call in tape.calls if (entry := call.entry) is not None]
        self.tape, names = tape, [call.name for call in tape.calls]
        known = {name: _possible(graph, name[1:], entry) for name, (graph, entry) in zip(names, calls, strict=True)}
        self.possible = [known[name] for name in names]
        self.numbers = [list(known).index(name) for name in names]
        extra = tape.beside or (0,) * len(tape.events)
        moments = moments_of(tape.profiles, tape.events)
        self.moments = [(moment, always + made + more) for (moment, always, made), more in zip(moments, extra, strict=True)]
        self.limits: list[int | None] = [graph.limit_bytes(entry) for graph, entry in calls]
        self.shares: list[Share | None] = [entry.share for _, entry in calls]
        self.options: list[Options] = [graph.options for graph, _ in calls]

    def resolve(self) -> None:
        """A budget that is a share of the peak: of this step, without a plan."""
        entries = [entry for call in self.tape.calls if (entry := call.entry) is not None]
        unplanned = self.peak([point_of(entry, entry.unplanned) for entry in entries])
        for number, entry in enumerate(entries):
            budget = self.options[number].memory_budget
            if budget.needs_unplanned_peak:
                total = budget.resolve(unplanned_peak_bytes=unplanned, free_bytes=0)
                self.limits[number] = LEDGER.raise_total(entry.of_model(), budget, total or 0)

    def peak(self, points: Sequence[Point]) -> int:
        """Of the step, where call i runs as ``points[i]``."""
        return max((alive + moment.taken(points) for moment, alive in self.moments), default=0)

    @property
    def spare_bytes(self) -> float:
        """What is left of the budget: idle memory may stay there."""
        peak = self.peak(self.chosen(self.shares))
        return min((limit - peak for limit in self.limits if limit is not None), default=math.inf)

    def chosen(self, shares: Sequence[Share | None]) -> list[Point]:
        """The points of shares."""
        return [next(p.point for p in own if p.share == share) for own, share in zip(self.possible, shares, strict=True)]

    def holds(self, shares: Sequence[Share | None]) -> bool:
        """Whether every moment keeps its limit."""
        points = self.chosen(shares)
        limits = ((moment, alive, self.limit_of(moment)) for moment, alive in self.moments)
        return all(limit is None or alive + moment.taken(points) <= limit for moment, alive, limit in limits)

    def limit_of(self, moment: Moment) -> int | None:
        """The budget of the call that runs; where none does, the smallest of those that hold something."""
        calls = moment.beside if moment.call is None else (moment.call,)
        return min((limit for call in calls if (limit := self.limits[call]) is not None), default=None)

    def choose(self, began: int = 0) -> bool:
        """What each call from number ``began`` on gets; False where no choice is found. Earlier ones keep theirs."""
        moments = [
            replace(moment, limit_bytes=limit - alive)
            for moment, alive in self.moments
            if (limit := self.limit_of(moment)) is not None
        ]
        fixed = {i: [p.share for p in self.possible[i]].index(self.shares[i]) for i in range(began)}
        points = [[p.point for p in own] for own in self.possible]
        time_limit_s = self.options[0].solver_time_limit_s
        choice = choose(points, self.numbers, moments, fixed, time_limit_s=time_limit_s)
        if choice is None:
            return False
        self.shares[:] = [own[index].share for own, index in zip(self.possible, choice.points, strict=True)]
        log.info("a step of %d calls: %.3f ms above no plan (%s)", len(points), 1e3 * choice.seconds, choice.status)
        return True

    def least(self) -> None:
        """Every call as it holds least, of what was compiled."""
        for number, own in enumerate(self.possible):
            compiled = [p for p in own if p.exact]
            self.shares[number] = min(compiled, key=lambda p: (p.point.held_bytes, p.point.backward_bytes)).share

    def met(self, number: int, entry: GraphEntry) -> None:
        """The variant for call ``number`` was compiled, and the step is at it. What follows is chosen once more where it takes
        more than the model said. Raises `BudgetInfeasibleError`."""
        share, own = self.shares[number], self.possible[number]
        own[:] = [p for p in own if p.share != share]
        own.append(Possible(share, point_of(entry, None, entry.extra_seconds), exact=True))
        if not self.holds(self.shares) and not self.choose(number):
            self.shares[number:] = [LEAST if any(p.share == LEAST for p in o) else o[0].share for o in self.possible[number:]]
            if not self.holds(self.shares):
                self.refuse()

    def refuse(self) -> None:
        """Raise, unless the best that can be done is what the user asked for."""
        needed = self.peak(self.chosen(self.shares))
        number = max(range(len(self.limits)), key=lambda i: -(self.limits[i] or needed))
        limit = self.limits[number]
        log.info("the step takes %d bytes at least, of %s", needed, limit)
        if limit is None or all(options.on_infeasible != "raise" for options in self.options):
            return
        held = [
            Contributor(f"call {i}", point.held_bytes, f"held for the backward of graph {run.report.graph_id}")
            for i, (run, point) in enumerate(zip(self.tape.runs, self.chosen(self.shares), strict=True))
            if point.held_bytes
        ]
        held.sort(key=lambda item: -item.size_bytes)
        raise BudgetInfeasibleError(limit, needed, 0, held, LEVER)


def plan_step(tape: Tape) -> Course | None:
    """The course of a step that was seen once; None where a graph of it is gone. Raises `BudgetInfeasibleError`."""
    if not tape.runs or any(call.graph is None for call in tape.calls):
        return None
    plan = StepPlan(tape)
    if len(tape.calls) == 1:
        plan.shares = [None]
    else:
        plan.resolve()
        if not plan.choose():
            plan.least()
            if not plan.holds(plan.shares):
                plan.refuse()
    names, sizes = (tuple(of) for of in zip(*((call.name, call.sizes) for call in tape.calls), strict=True))
    return Course(names, tuple(tape.events), sizes, plan.shares, tape, plan)


def _possible(graph: CompiledGraph, state: tuple[object, ...], entry: GraphEntry) -> list[Possible]:
    """What was compiled for such a call, and what the model says could be."""
    exact = [
        Possible(share, point_of(variant.entry, None, variant.entry.extra_seconds), exact=True)
        for (known, share), variant in graph.variants.items()
        if known == state
    ]
    shares = {each.share for each in exact}
    modelled = [Possible(share, _cautious(point), exact=False) for share, point in entry.front() if share not in shares]
    return exact if graph.again is None else [*exact, *modelled]


def _cautious(point: Point) -> Point:
    held, forward, backward = (int(MARGIN * size) for size in (point.held_bytes, point.forward_bytes, point.backward_bytes))
    return Point(held, forward, backward, point.seconds)


def first_share(options: Options, inputs: Sequence[Any], ledger: Ledger = LEDGER) -> Share | None:
    """Of a graph that Dynamo hands over now: under a budget, the least where others of its step wait for their backward, or are
    known to come before its own."""
    if options.memory_budget.to_option() is None:
        return None
    if ledger.waiting:
        return LEAST
    trains = torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs)
    return LEAST if trains and (is_one_of_several() or capture_info().graph_break) else None
