"""Orders of a large part of a network: annealed as a whole, then window by window.

A window between two moments of a plan is a network of its own (``parts.py``), tens of times smaller and so tens of times as
fast to try; that is how networks of a thousand operators are searched as thoroughly as small ones (the divide and conquer of
the paper, without the optimum lost at the borders: windows overlap).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memcompile.solvers.scratchpad.evicting import Tables, annealed, moved_by, tables_of
from memcompile.solvers.scratchpad.offsets import place, stays_of
from memcompile.solvers.scratchpad.parts import OrderSection, window
from memcompile.solvers.scratchpad.problem import ScratchpadProblem
from memcompile.solvers.scratchpad.replacement import replace

WINDOW = 80
"""Operators in a window."""
WHOLE = 0.8
"""Share of the work that goes into the network as a whole."""


def improved(
    problem: ScratchpadProblem, size_bytes: int, starts: Sequence[Sequence[int]], tries: int
) -> tuple[tuple[int, ...], str]:
    """The best order found from ``starts``, each annealed once, and how; of which there are places, if of any. ``tries``:
    orders that are run."""
    tables, steps = tables_of(problem), tries * len(problem.ops)
    found = list[tuple[int, int, list[int]]]()
    for seed, start in enumerate(starts):
        order, cost = annealed(tables, start, size_bytes, int(WHOLE * steps / len(starts)), seed)
        found.append((cost, seed, order))
    cost, _, best = min(found)
    windowed = _by_windows(problem, tables, size_bytes, best, cost, int((1 - WHOLE) * steps))
    found.append((moved_by(tables, windowed, size_bytes), -1, windowed))
    for _, seed, order in sorted(found):
        dropped = replace(problem, order, size_bytes).dropped
        if place(problem, stays_of(problem, order, dropped), size_bytes) is not None:
            return tuple(order), "annealing, windows" if seed < 0 and order != best else "annealing"
    return tuple(windowed), "annealing"


def _by_windows(
    problem: ScratchpadProblem, tables: Tables, size_bytes: int, order: list[int], cost: int, steps: int
) -> list[int]:
    places = list(_places(len(order), WINDOW))
    dropped = replace(problem, order, size_bytes).dropped
    for first, last in places:
        section = window(problem, order, dropped, first, last)
        inside = _better(section, size_bytes, steps // len(places))
        if inside is not None:
            candidate = [*order[:first], *section.order(inside), *order[last:]]
            new = moved_by(tables, candidate, size_bytes)
            if new < cost:
                order, cost = candidate, new
                dropped = replace(problem, order, size_bytes).dropped
    return order


def _places(count: int, width: int) -> Iterator[tuple[int, int]]:
    """Windows that overlap by half."""
    for first in range(0, max(1, count - width // 2), width // 2):
        yield first, min(count, first + width)


def _better(section: OrderSection, size_bytes: int, steps: int) -> Sequence[int] | None:
    """An order of a window that moves fewer bytes; None where none is found."""
    tables, given = tables_of(section.problem), range(len(section.problem.ops))
    base = moved_by(tables, given, size_bytes)
    if not base:
        return None
    order, cost = annealed(tables, given, size_bytes, steps)
    return order if cost < base else None
