"""The order of Inductor's fused kernels with the smallest exact peak.

Inductor tries three greedy orders by an estimate of their peaks. Here the peak is that of the lowered code: what is written in
place, what a library kernel takes while it runs, and what loops that share a function give back late all count. The order is
only changed where that lowers the peak, so the rest keeps Inductor's locality; loops are kept apart only where it takes that.

Graphs with a recompute plan keep the planned order: the plan counts on it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from memcompile.solvers.order.ordering import OrderProblem, OrderSolution, peak_of
from memcompile.solvers.order.ordering_solve import STEPS, solve

INDUCTOR, APART = "Inductor's order", "Inductor's order, loops apart"


@dataclass(frozen=True, slots=True)
class Ordering:
    """What became of one graph. ``kind``: "forward", "backward" or "inference". ``order.method`` is `INDUCTOR` where nothing
    is done.

    Peaks are of this graph alone: its own buffers, and the inputs that die in it. ``before_bytes``: as Inductor orders it;
    ``apart_bytes``: the same with all loops apart.
    ``known_bytes``: by the other orders that were given, loops joining as they do.
    """

    kind: str
    kernels: int
    before_bytes: int
    apart_bytes: int
    order: OrderSolution
    known_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether anything is done: another order, or loops kept apart."""
        return self.order.peak_bytes < self.before_bytes


def plan_order(kind: str, problem: OrderProblem, known: Mapping[str, Sequence[int]], steps: int = STEPS) -> Ordering:
    """The best order found for ``problem``, whose kernels stand in Inductor's order.

    ``known``: other orders by name; those that the problem does not allow are left out. ``steps``: see ``ordering_solve``.
    """
    started = time.perf_counter()
    given = tuple(range(len(problem.kernels)))
    if not problem.allows(given):
        raise AssertionError("the kernels of the graph depend on later ones")
    before = peak_of(problem, given, ())
    others = {name: order for name, order in known.items() if problem.allows(order)}
    found = solve(problem, {INDUCTOR: given, **others}, steps)
    if found.peak_bytes < before and found.sequence == given:
        found = replace(found, method=APART)
    elif found.peak_bytes >= before:
        found = replace(found, sequence=given, apart=frozenset(), peak_bytes=before, method=INDUCTOR)
    known_bytes = {name: peak_of(problem, order, ()) for name, order in others.items()}
    found = replace(found, seconds=time.perf_counter() - started)
    return Ordering(kind, len(problem.kernels), before, peak_of(problem, given), found, known_bytes)
