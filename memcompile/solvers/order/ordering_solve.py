"""The best order that bounded work finds: known orders, a beam, a complete search, windows around the peak."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from memcompile.solvers.order.ordering import OrderProblem, OrderSolution, kept_apart, peak_of
from memcompile.solvers.order.ordering_bound import lower_bound
from memcompile.solvers.order.ordering_search import OrderEffort, Stepper, beam, best_first, windows

STEPS = 500_000
"""Steps of each of the three searches: about a second for all of them together."""
PROOF_KERNELS, PROOF_FACTOR = 60, 3
"""A graph with at most so many kernels is worth so many times the steps for a proof of its optimum."""
WIDTHS = (8, 50, 400)
"""Of the beam, as far as the steps last. It is not monotone: a wider one may find less."""


def solve(problem: OrderProblem, known: Mapping[str, Sequence[int]], steps: int = STEPS) -> OrderSolution:
    """The order with the smallest peak that is found: one of ``known`` (name to order, the first of equals), or a new one.

    Deterministic. ``peak_bytes`` is that of the order with loops kept apart where it takes it.
    """
    started = time.perf_counter()
    bound = lower_bound(problem)
    peaks = {name: peak_of(problem, order) for name, order in known.items()}
    method = min(peaks, key=peaks.__getitem__)
    order, peak = tuple(known[method]), peaks[method]
    if peak > bound:
        order, peak, bound, method = _search(problem, order, peak, bound, method, steps)
    apart = kept_apart(problem, order, peak)
    exact = peak_of(problem, order, apart)
    if exact > peak:  # a kernel without code cannot be kept apart: what dies in it waits
        joined = {name: peak_of(problem, other, ()) for name, other in known.items()}
        best = min(joined, key=joined.__getitem__)
        if joined[best] < exact:
            order, apart, exact, method = tuple(known[best]), frozenset(), joined[best], best
    return OrderSolution(order, apart, exact, min(bound, exact), method, time.perf_counter() - started)


def _search(
    problem: OrderProblem, order: tuple[int, ...], peak: int, bound: int, method: str, steps: int
) -> tuple[tuple[int, ...], int, int, str]:
    stepper = Stepper(problem)
    effort = OrderEffort(steps)
    for width in WIDTHS:
        found = beam(stepper, bound, peak, width, effort)
        if found is not None and found.order is not None:
            order, peak, method = found.order, found.peak_bytes, f"beam of {width}"
        if peak <= bound or effort.steps <= 0:
            break
    if peak > bound:
        everything = (1 << len(problem.kernels)) - 1
        complete = OrderEffort(PROOF_FACTOR * steps if len(problem.kernels) <= PROOF_KERNELS else steps)
        exact = best_first(stepper, stepper.start(), everything, bound, peak, complete)
        bound = max(bound, exact.bound_bytes)
        if exact.order is not None:
            order, peak, method = exact.order, exact.peak_bytes, "complete search"
    if peak > bound:
        better = windows(stepper, order, bound, OrderEffort(steps))
        if better != order:
            order, peak, method = better, peak_of(problem, better), "windows around the peak"
    return order, peak, bound, method
