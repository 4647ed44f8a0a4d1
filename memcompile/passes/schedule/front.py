"""What a graph could be beside others of its step: plans that hold little or much, and take little or much inside.

By the model alone: nothing is lowered. Which of them a call gets, ``solvers/calls/choose.py`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace

from memcompile.passes.schedule.rematerialize import plan
from memcompile.passes.schedule.reorder import reordered
from memcompile.solvers import work
from memcompile.solvers.calls.choose import UNPLANNED, Point, Share
from memcompile.solvers.schedule.problem import InfeasibleError, RematSchedule
from memcompile.solvers.schedule.simulate import Replay
from memcompile.step.calibrate import base_names, calibrated
from memcompile.step.cost import CostModel
from memcompile.step.facts import Facts, gather_facts
from memcompile.step.lowered import Lowered
from memcompile.step.signature import signature

HELD = (0.0, 0.12, 0.25, 0.5, 0.75, 1.0)
"""What is held, between the least and what is held without a plan."""
INSIDE = (1.0, 0.5, 0.25, 0.12)
"""Most that is taken inside, between what is held and the peak without a plan."""
MOST_KNOWN = 64
_known: dict[Hashable, tuple[tuple[Share, Point], ...]] = {}
"""Fronts that were found, of the last steps that differ."""


def known_facts(base: Lowered, costs: CostModel, budget_bytes: int) -> tuple[Facts, Facts]:
    """Facts of a step as gathered; and with what its code shows, in an order that frees early."""
    gathered = gather_facts(base.graphs, base.traces, costs, base.peak.entry_bytes)
    unplanned = RematSchedule(tuple(range(len(gathered.problem.ops))), gathered.problem.boundary)
    facts = calibrated(gathered, unplanned, base_names(gathered), base.by_half(), base.tight_peak, budget_bytes)
    return gathered, reordered(facts)


def sparing(facts: Facts, between_bytes: int) -> Facts:
    """Facts whose first operation of the backward takes ``between_bytes`` more."""
    ops = list(facts.problem.ops)
    if between_bytes and facts.problem.boundary < len(ops):
        first = ops[facts.problem.boundary]
        ops[facts.problem.boundary] = replace(first, workspace_bytes=first.workspace_bytes + between_bytes)
    return replace(facts, problem=replace(facts.problem, ops=tuple(ops)))


def front(base: Lowered, costs: Callable[[], CostModel], time_limit_s: float) -> tuple[tuple[Share, Point], ...]:
    """Plans of a step, each with what it is to be asked for; none is worse than another in all. Searched once for steps that
    are the same, as blocks of a model are."""
    same = signature(base.graphs)
    if same is None:
        return _front(base, costs(), time_limit_s)
    events = tuple(event for trace in base.traces for event in trace.events if event.kind != "free")
    key = same, events, base.peak.timeline, repr(costs().device), time_limit_s
    if key not in _known:
        _known[key] = _front(base, costs(), time_limit_s)
        for old in list(_known)[:-MOST_KNOWN]:
            del _known[old]
    return _known[key]


def _front(base: Lowered, costs: CostModel, time_limit_s: float) -> tuple[tuple[Share, Point], ...]:
    peak = base.peak
    _, facts = known_facts(base, costs, peak.peak_bytes)
    without = Point(
        peak.held_bytes, peak.forward_peak_bytes - peak.entry_bytes, peak.backward_peak_bytes - peak.entry_bytes, 0.0
    )
    return undominated([(UNPLANNED, without), *_planned(base, facts, work.now() + time_limit_s)])


def undominated(points: list[tuple[Share, Point]]) -> tuple[tuple[Share, Point], ...]:
    """Without those that another one is as good as in everything."""
    kept: list[tuple[Share, Point]] = []
    for share, point in sorted(points, key=lambda item: (item[1].seconds, item[1].held_bytes)):
        if not any(_covers(other, point) for _, other in kept):
            kept.append((share, point))
    return tuple(kept)


def _covers(one: Point, other: Point) -> bool:
    return (
        one.held_bytes <= other.held_bytes
        and one.forward_bytes <= other.forward_bytes
        and one.backward_bytes <= other.backward_bytes
    )


def _planned(base: Lowered, facts: Facts, deadline: float) -> Iterator[tuple[Share, Point]]:
    entry, top = base.peak.entry_bytes, base.peak.peak_bytes
    least = _least_held(facts, entry, top, (deadline - work.now()) / 4)
    replay = Replay(facts.problem)
    each_s = (deadline - work.now()) / (len(HELD) * len(INSIDE))
    for share in HELD:
        held = least + int(share * (base.peak.held_bytes - least))
        for inside in INSIDE:
            limit = entry + held + int(inside * (top - entry - held))
            try:
                solution = plan(sparing(facts, limit - entry - held), limit, each_s)
            except InfeasibleError:
                break
            yield Share(limit, held), _point(replay, facts, solution.schedule, solution.extra_seconds)


def _least_held(facts: Facts, entry: int, top: int, time_limit_s: float) -> int:
    """Least bytes between the halves: where as much is spared as the step takes without a plan, they make the peak."""
    try:
        plan(sparing(facts, top), 1, time_limit_s)
    except InfeasibleError as infeasible:
        return max(0, infeasible.floor.peak_bytes - top - entry)
    return 0


def _point(replay: Replay, facts: Facts, schedule: RematSchedule, seconds: float) -> Point:
    timeline, problem = replay.run(schedule), facts.problem
    live, split = timeline.live_bytes - problem.base_bytes, schedule.split
    written = {s for op in schedule.sequence[:split] for s in problem.ops[op].writes}
    returned = {s for s in written if problem.storages[s].is_output}
    held = sum(problem.storages[s].size_bytes for s in returned | set(timeline.saved))
    forward = int(live[:split].max(initial=0))
    return Point(held, forward, int(live[split:].max(initial=0)), seconds)
