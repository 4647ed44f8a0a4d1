"""A step within a budget: plan, lower, count, plan again.

    order the kernels for the smallest peak    passes/order/, codegen/inductor/scheduled.py
    lower it, count its exact peak             codegen/inductor/trial.py, step/trace.py
    fits? then nothing is changed
    else gather facts                          step/facts.py, step/cost.py
    run early what frees memory                reorder.py
    plan within a target: keep, recompute      rematerialize.py, solvers/schedule/
    or move                                    swap.py, solvers/transfers/
    what will be one kernel? if it breaks the
    target, plan again, or keep loops apart    step/calibrate.py
    write the plan down as a joint graph       rematerialize.py
    lower again, count again; above the budget: tighten the target and plan again

The model of the planner guides; the exact count of the lowered code decides, before anything runs. A plan that fits by the
model, as most do, is lowered for good at once (``trust``): should its exact peak be above the budget, the graph is compiled
once more with every plan lowered on trial. ``BudgetInfeasibleError`` is only raised on what trial lowerings say.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memcompile.codegen.inductor.joint import JointGraph
from memcompile.codegen.inductor.partition import extract
from memcompile.codegen.inductor.trial import lower_graphs
from memcompile.logs import get_logger
from memcompile.passes.base import Plan
from memcompile.passes.schedule import rematerialize, swap
from memcompile.passes.schedule.front import front, known_facts, sparing
from memcompile.passes.schedule.reorder import reordered
from memcompile.runtime.transfers.sources import Moved
from memcompile.solvers import work
from memcompile.solvers.schedule.floor import quick_bound
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import InfeasibleError, RematSolution
from memcompile.step.bound import least_bytes
from memcompile.step.calibrate import calibrated, crowded, fused
from memcompile.step.cost import CostModel
from memcompile.step.facts import Facts, StepGraphs
from memcompile.step.lowered import Fitted, Front, Lowered, Lowering
from memcompile.step.trace import GraphTrace, StepPeak

log = get_logger(__name__)

MAX_LOWERINGS = 5
LEAST_S = 1.0
"""Seconds that a further plan may take when the earlier ones have spent the time limit."""
LEAST_STEP = 0.002
"""Share of the budget by which the target is lowered at least when knowing the code better was not enough; then twice that."""
LEAST_GAIN = 0.25
"""By how much the exact peak falls at least, so it is assumed, where the target falls by one."""
TRUSTED_SHARE = 0.998
"""What of the budget a plan may take by the model that is not lowered on trial: the model misses the smallest buffers."""
FAR_ABOVE = 1.25
"""Where no plan takes less than so many times the target by the model, none keeps it once it is lowered."""
CLOSE_TO_FLOOR = 1.01
"""A smallest plan whose exact peak is that close to the model's cannot be made smaller by knowing the code better."""
RUNGS, LOOKED_AT = 40, 2
"""Targets that share a peak without a plan evenly; how many of them below a target are looked at for a faster plan."""
HELD_STEPS = 7
"""Plans that are looked at for the one that holds least within a budget."""
CLOSE_ENOUGH = 0.97
"""A plan whose exact peak is at least this share of the budget is not worth another lowering for a few percent of time."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One plan: what the planner knew, what it answered, and what the lowered code really takes.

    ``at_floor``: no plan within ``target_bytes`` was found, this is the smallest. ``trusted``: not lowered yet, its peak is
    that of the model.
    """

    target_bytes: int
    facts: Facts
    solution: RematSolution
    at_floor: bool
    joint: JointGraph
    lowered: Lowered
    trusted: bool

    def is_cheap(self) -> bool:
        """Whether a looser plan could gain next to nothing."""
        return self.solution.extra_seconds <= 0.01 * self.facts.problem.total_seconds


@dataclass(slots=True)
class Outcome(Plan):
    """What became of one graph. ``chosen`` is None when the step fits as it is (or no budget was named).

    ``floor_bytes`` and ``lower_bound_bytes`` are known where the smallest plan was searched. Neither depends on the budget.
    ``lever``, ``front``: see `Fitted`.
    """

    base: Lowered
    budget_bytes: int | None
    tiers: swap.Tiers = field(default_factory=swap.Tiers)
    facts: Facts | None = None
    attempts: list[Attempt] = field(default_factory=list)
    chosen: Attempt | None = None
    floor_bytes: int | None = None
    lower_bound_bytes: int = 0
    lever: str = ""
    front: Front = tuple
    plan_seconds: float = 0.0
    lower_seconds: float = 0.0
    began: float = field(default_factory=work.now)

    def left_s(self, time_limit_s: float) -> float:
        """Seconds of work that the next plan may take: what earlier ones left, however long they were waited for."""
        return max(LEAST_S, time_limit_s - (work.now() - self.began))

    @property
    def final(self) -> Lowered:
        """What is compiled: without a plan, with as few dead buffers as the budget asks for."""
        if self.chosen is not None:
            return self.chosen.lowered
        return replace(self.base, peak=self.base.tight_peak) if self.is_tight else self.base

    @property
    def is_tight(self) -> bool:
        """Whether a step without a plan holds fewer dead buffers than usual, to keep the budget."""
        return self.chosen is None and self.budget_bytes is not None and self.base.peak.peak_bytes > self.budget_bytes

    @property
    def keeps(self) -> tuple[Moved, ...]:
        """Storages that leave: the engine finds them by key."""
        return () if self.chosen is None else self.chosen.joint.moved

    @property
    def fitted(self) -> Fitted:
        """As it stands now."""
        trusted = self.chosen is not None and self.chosen.trusted
        return Fitted(
            self.base,
            self.budget_bytes,
            self.final,
            self.floor_bytes,
            self.lower_bound_bytes,
            trusted,
            self.lever,
            self.front,
        )

    def settle(self, traces: Mapping[str, GraphTrace], peak: StepPeak) -> None:
        """What the code that was compiled takes."""
        if self.chosen is not None:
            lowered = Lowered(self.chosen.lowered.graphs, tuple(traces.values()), peak, peak)
            self.chosen = replace(self.chosen, lowered=lowered, trusted=False)


def fit(
    base: Lowered,
    budget_bytes: int | None,
    costs: Callable[[], CostModel],
    time_limit_s: float,
    lowering: Lowering = lower_graphs,
    trust: bool = False,
    tiers: Callable[[], swap.Tiers] = swap.Tiers,
    may_change: bool = True,
    held_bytes: int | None = None,
) -> Outcome:
    """Make a lowered step keep ``budget_bytes``, at the least time that the planner finds.

    Returns the smallest plan where none keeps the budget: the caller raises or takes it (``Fitted.fits``). ``trust``: take
    a plan that fits by the model without lowering it; the caller compares what it then takes (``Outcome.settle``). ``tiers``:
    where storages may move; only asked where the step does not fit as it is. ``may_change``: False leaves it as it is.
    ``held_bytes``: most that may be held between forward and backward; 0: as little as can be, for graphs of which nobody
    knows what runs in between.
    """
    outcome = Outcome(base, budget_bytes)
    outcome.front = functools.partial(front, base, costs, time_limit_s)
    held = base.peak.held_bytes if held_bytes is None else held_bytes
    if budget_bytes is None or (base.tight_peak.peak_bytes <= budget_bytes and base.peak.held_bytes <= held):
        return outcome
    if not may_change:
        outcome.floor_bytes = base.tight_peak.peak_bytes
        outcome.lower_bound_bytes = least_bytes(base.graphs, base.peak.entry_bytes)
        return outcome
    outcome.tiers = tiers()
    trust = trust and not outcome.tiers.links  # what a fused kernel holds beside what leaves is only known once it is lowered
    start = time.perf_counter()
    gathered, facts = known_facts(base, costs(), budget_bytes)
    outcome.plan_seconds += time.perf_counter() - start
    if held_bytes == 0:
        _least(outcome, facts, budget_bytes, time_limit_s, lowering)
    elif outcome.tiers.links or quick_bound(RematIndex.of(facts.problem)) <= FAR_ABOVE * budget_bytes:
        between = 0 if held_bytes is None else max(0, budget_bytes - base.peak.entry_bytes - held_bytes)
        _within(outcome, sparing(facts, between), budget_bytes, time_limit_s, lowering, trust)
    if outcome.chosen is None:
        _smallest(outcome, reordered(gathered), time_limit_s, lowering)
    return outcome


def _least(outcome: Outcome, facts: Facts, budget_bytes: int, time_limit_s: float, lowering: Lowering) -> None:
    """The plan that holds as little between the halves as can be while it keeps the budget; the fastest of those, if any.

    It is asked for next to nothing where as much is spared as the step takes without a plan. Where that takes too much inside,
    the least that the budget has a plan for is searched by the model.
    """
    peak = outcome.base.peak
    spared = sparing(facts, peak.peak_bytes)
    try:
        swap.plan(spared, 1, time_limit_s, outcome.tiers)
    except InfeasibleError as infeasible:
        least = _attempt(outcome, spared, infeasible.floor.peak_bytes, 1, time_limit_s, lowering, False)
        if least.lowered.peak.peak_bytes <= budget_bytes:
            outcome.chosen = least
            return
    target = budget_bytes
    for _ in range(MAX_LOWERINGS - len(outcome.attempts)):
        held = _least_held(outcome, facts, target, time_limit_s)
        if held is None:
            return
        between = max(0, target - peak.entry_bytes - held)
        attempt = _attempt(outcome, sparing(facts, between), target, budget_bytes, time_limit_s, lowering, False)
        exact = attempt.lowered.peak.peak_bytes
        log.info("least held %d within %d: exact %d of %d", held, target, exact, budget_bytes)
        if exact <= budget_bytes:
            outcome.chosen = attempt
            return
        known = _known(attempt, budget_bytes)
        if known is attempt.facts:
            target -= exact - budget_bytes
        facts = sparing(known, -between)


def _least_held(outcome: Outcome, facts: Facts, target: int, time_limit_s: float) -> int | None:
    """Fewest bytes between the halves, to ``HELD_STEPS`` halvings, for which the model has a plan within ``target``."""
    peak, found = outcome.base.peak, None
    low, high = 0, peak.held_bytes
    for _ in range(HELD_STEPS):
        held = high if found is None else (low + high) // 2
        try:
            spared = sparing(facts, max(0, target - peak.entry_bytes - held))
            swap.plan(spared, target, time_limit_s / HELD_STEPS, outcome.tiers)
        except InfeasibleError:
            if found is None:
                return None
            low = held
        else:
            found = high = held
    return found


def _within(outcome: Outcome, facts: Facts, budget_bytes: int, time_limit_s: float, lowering: Lowering, trust: bool) -> None:
    """The fastest plan found that keeps the budget once it is lowered, if any.

    Above the budget the target is lowered, far below it raised once; where that is too far, targets in between are tried.
    """
    target, misses = int(TRUSTED_SHARE * budget_bytes) if trust else budget_bytes, 0
    fitting = 0
    for _ in range(MAX_LOWERINGS):
        left_s = outcome.left_s(time_limit_s)
        attempt = _attempt(outcome, facts, target, budget_bytes, left_s, lowering, trust)
        if attempt.trusted:
            outcome.chosen = attempt
            return
        exact = attempt.lowered.peak.peak_bytes
        log.info("target %d: model %d, exact %d of %d", target, attempt.solution.peak_bytes, exact, budget_bytes)
        if exact <= budget_bytes:
            if outcome.chosen is None or attempt.solution.extra_seconds < outcome.chosen.solution.extra_seconds:
                outcome.chosen = attempt
            if len(outcome.attempts) > 1 or exact >= CLOSE_ENOUGH * budget_bytes or attempt.is_cheap():
                return
            fitting, target = target, target + (budget_bytes - exact)
            continue
        if outcome.chosen is not None:
            if target - fitting < 2 * LEAST_STEP * budget_bytes:
                return
            target = (fitting + target) // 2
            continue
        if attempt.at_floor:
            return
        facts = _known(attempt, budget_bytes)
        misses += 1
        if facts is attempt.facts or misses > 1:
            excess = int((exact - budget_bytes) / _gain(outcome.attempts))
            target -= max(excess, int(LEAST_STEP * budget_bytes) << (misses - 1))


def _smallest(outcome: Outcome, facts: Facts, time_limit_s: float, lowering: Lowering) -> None:
    """The plan with the smallest exact peak. The search asks for next to nothing and knows no budget: whatever was asked, it
    finds the same.

    The smallest plan by the model is not the smallest once it is lowered: first the model learns what the code holds, then
    targets between the model's smallest peak and the exact one are tried.
    """
    found: list[Attempt] = []

    def attempt(facts: Facts, goal: int) -> Attempt:
        made = _attempt(outcome, facts, goal, 1, time_limit_s, lowering, False)
        log.info("floor %d: model %d, exact %d", goal, made.solution.peak_bytes, made.lowered.peak.peak_bytes)
        found.append(made)
        return made

    known, last = facts, attempt(facts, 1)
    if last.lowered.peak.peak_bytes > CLOSE_TO_FLOOR * last.solution.peak_bytes:
        known = _known(last, 1)
        last = attempt(known, 1)
    low = min(made.solution.peak_bytes for made in found)
    while len(found) < MAX_LOWERINGS:
        smallest = min(made.lowered.peak.peak_bytes for made in found)
        goal = (low + smallest) // 2
        if goal * CLOSE_TO_FLOOR > smallest:
            break
        last = attempt(facts, goal)
        if last.at_floor:
            low = goal
        if last.lowered.peak.peak_bytes > goal:
            facts = _known(last, goal)
    best = min(found, key=lambda made: made.lowered.peak.peak_bytes)
    base = outcome.base
    outcome.chosen = best if best.lowered.peak.peak_bytes < base.tight_peak.peak_bytes else None
    outcome.floor_bytes = min(best.lowered.peak.peak_bytes, base.tight_peak.peak_bytes)
    outcome.facts = best.facts
    if not outcome.tiers.links:
        outcome.lower_bound_bytes = least_bytes(base.graphs, base.peak.entry_bytes)


def _known(attempt: Attempt, budget_bytes: int) -> Facts:
    """Facts with what an attempt showed. Where the budget is below all that was found, the smallest plan is what to better."""
    limit = max(budget_bytes, attempt.solution.peak_bytes) if attempt.at_floor else budget_bytes
    lowered, names = attempt.lowered, attempt.joint.positions
    return calibrated(attempt.facts, attempt.solution.schedule, names, lowered.by_half(), lowered.peak, limit)


def _attempt(
    outcome: Outcome, facts: Facts, target: int, limit_bytes: int, time_limit_s: float, lowering: Lowering, trust: bool
) -> Attempt:
    """``limit_bytes``: up to which lowered code may hold dead buffers."""
    start, began = time.perf_counter(), work.now()
    solution, at_floor = _planned(outcome, facts, target, time_limit_s)
    if (known := fused(facts, solution.schedule, max(target, solution.peak_bytes))) is not facts:
        facts, left_s = known, time_limit_s - (work.now() - began)
        solution, at_floor = _planned(outcome, facts, target, max(LEAST_S, left_s))
    apart = crowded(facts, solution.schedule, max(target, solution.peak_bytes))
    joint = rematerialize.apply(facts, solution.schedule, apart, outcome.tiers.names, outcome.tiers.mover)
    planned = time.perf_counter()
    graphs = extract(joint, facts.graphs)
    trusted = trust and not at_floor
    lowered = _expected(graphs, outcome.base.peak, solution) if trusted else lowering(graphs, limit_bytes)
    outcome.plan_seconds += planned - start
    outcome.lower_seconds += time.perf_counter() - planned
    attempt = Attempt(target, facts, solution, at_floor, joint, lowered, trusted)
    outcome.attempts.append(attempt)
    return attempt


def _expected(graphs: StepGraphs, base: StepPeak, solution: RematSolution) -> Lowered:
    """A plan before it is lowered: the peak of the model, no traces."""
    peak = replace(base, peak_bytes=solution.peak_bytes, timeline=(), live_at_peak=())
    return Lowered(graphs, (), peak, peak)


def _planned(outcome: Outcome, facts: Facts, target: int, time_limit_s: float) -> tuple[RematSolution, bool]:
    """A plan within ``target``; the smallest one, and True, where there is none."""
    outcome.facts = facts
    began = work.now()
    try:
        solution = swap.plan(facts, target, time_limit_s, outcome.tiers)
    except InfeasibleError as infeasible:
        return infeasible.floor, True
    return _no_slower(outcome, facts, target, solution, time_limit_s - (work.now() - began)), False


def _no_slower(outcome: Outcome, facts: Facts, target: int, solution: RematSolution, time_limit_s: float) -> RematSolution:
    """A plan for less is a plan for ``target``, too. Where the search is not exact it may find a faster one there: so that more
    memory does not make a slower step, the next rungs below are looked at, the same ones from wherever one comes."""
    rung = max(1, outcome.base.peak.peak_bytes // RUNGS)
    began = work.now()
    for below in range(target // rung * rung, 0, -rung)[:LOOKED_AT]:
        left_s = time_limit_s - (work.now() - began)
        if solution.status == "optimal" or outcome.tiers.links or left_s <= 0:
            break
        try:
            tighter = swap.plan(facts, below, left_s, outcome.tiers)
        except InfeasibleError:
            break
        if tighter.extra_seconds < solution.extra_seconds:
            bound = solution.lower_bound_seconds
            solution = replace(tighter, lower_bound_seconds=bound, status="bounded" if bound > 0 else "heuristic")
    return solution


def _gain(attempts: Sequence[Attempt]) -> float:
    """How far the exact peak of the last attempt fell for each byte by which its target was lower than the one before."""
    if len(attempts) < 2 or attempts[-2].target_bytes <= attempts[-1].target_bytes:
        return 1.0
    fell = attempts[-2].lowered.peak.peak_bytes - attempts[-1].lowered.peak.peak_bytes
    return min(1.0, max(LEAST_GAIN, fell / (attempts[-2].target_bytes - attempts[-1].target_bytes)))
