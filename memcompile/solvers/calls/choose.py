"""Which plan each call of a step gets: every moment of the step within its limit, at the least time.

A step is a chain of calls: forwards in order, their backwards later, usually in reverse. What a call holds from its forward to
its backward is there while others run. Each call may choose among points: (held, forward, backward, seconds). A multiple choice
knapsack with one row for each moment, solved as a 0-1 program: exact, or with a bound where the search ends early.

Nothing here knows torch. Sizes are bytes, durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from memcompile.solvers.schedule.milp import Model, solve_model

UNIT_S = 1e-7
"""Seconds that the program counts in."""
VARIANTS = 2
"""Of one graph that are compiled: each takes as long as the first."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one call of a step with several gets: most that its graph may take with its inputs, and most that it may hold from
    its forward to its backward. None: as much as there is; ``held_bytes`` 0: as little as can be. See also `UNPLANNED`,
    `LEAST`."""

    peak_bytes: int | None = None
    held_bytes: int | None = None


UNPLANNED = Share()
"""The graph as it would run without a budget."""
LEAST = Share(None, 0)
"""For a call of which nobody knows yet what comes after it."""


@dataclass(frozen=True, slots=True)
class Point:
    """One plan of a graph. ``held_bytes``: from the end of its forward to its backward. ``forward_bytes``, ``backward_bytes``:
    most that each half takes beside what is alive without it; the backward's with what was held."""

    held_bytes: int
    forward_bytes: int
    backward_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A half of ``call`` runs, or None of any does, while the calls ``beside`` hold what they hold. ``limit_bytes``: for
    all."""

    call: int | None
    backward: bool
    beside: tuple[int, ...]
    limit_bytes: int

    def taken(self, points: Sequence[Point]) -> int:
        """Bytes, where call i runs as ``points[i]``."""
        held = sum(points[i].held_bytes for i in self.beside)
        if self.call is None:
            return held
        return held + (points[self.call].backward_bytes if self.backward else points[self.call].forward_bytes)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of its points each call gets. No choice takes less than ``bound_seconds``."""

    points: tuple[int, ...]
    seconds: float
    bound_seconds: float
    status: Literal["optimal", "bounded"]


def choose(
    points: Sequence[Sequence[Point]],
    graphs: Sequence[int],
    moments: Sequence[Moment],
    fixed: Mapping[int, int] | None = None,
    *,
    time_limit_s: float,
) -> Choice | None:
    """``points``: of each call; ``graphs``: which calls are of one graph: they have the same points, of which at most
    `VARIANTS` are used. ``fixed``: calls whose point is settled. None where no choice keeps the limits, or none was found
    within ``time_limit_s`` of work."""
    model = Model()
    variables = [[model.add(round(point.seconds / UNIT_S)) for point in own] for own in points]
    used = {graph: [model.add() for _ in own] for graph, own in zip(graphs, points, strict=True)}
    for own, graph in zip(variables, graphs, strict=True):
        model.clause(tuple(own))
        for variable, use in zip(own, used[graph], strict=True):
            model.clause((use,), (variable,))
    for uses in used.values():
        model.at_most(uses, [1] * len(uses), VARIANTS)
    for call, point in (fixed or {}).items():
        model.fix(variables[call][point])
    for moment in moments:
        row = [
            (v, p.backward_bytes if moment.backward else p.forward_bytes)
            for call in (() if moment.call is None else (moment.call,))
            for v, p in _of(call, variables, points)
        ]
        row += [(v, p.held_bytes) for call in moment.beside for v, p in _of(call, variables, points)]
        model.at_most([v for v, _ in row], [size for _, size in row], moment.limit_bytes)
    answer = solve_model(model, "scip", time_limit_s=time_limit_s, gap=0, hint={}, seed=0)
    if not answer.values:
        return None
    chosen = tuple(
        min((point.seconds, i) for i, (v, point) in enumerate(zip(own, points[call], strict=True)) if answer.values[v])[1]
        for call, own in enumerate(variables)
    )
    seconds = sum(own[i].seconds for own, i in zip(points, chosen, strict=True))
    status: Literal["optimal", "bounded"] = "optimal" if answer.outcome == "optimal" else "bounded"
    return Choice(chosen, seconds, min(seconds, answer.bound * UNIT_S), status)


def _of(call: int, variables: Sequence[Sequence[int]], points: Sequence[Sequence[Point]]) -> zip[tuple[int, Point]]:
    return zip(variables[call], points[call], strict=True)
