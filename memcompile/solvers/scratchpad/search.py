"""How a network runs in a small fast memory with the fewest bytes moved. Read this first.

    parts between necks, each with an order and a bound    order.py (parts.py, exact.py, bound.py, annealing.py)
    the best replacement for that order                    replacement.py
    places for what lies in the scratchpad                 offsets.py
    the memories behind it                                 levels.py

Order, replacement and places in one model is what the paper (COSMA, Li et al. 2023) solves; two stages give the same answer in
a hundredth of the time wherever the places of the best replacement fit, which is nearly always. The answer says what is proven:
"optimal", "optimal for the order", or a bound.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from memcompile.solvers.scratchpad.levels import level_plan, plans_behind
from memcompile.solvers.scratchpad.offsets import Placed, placed
from memcompile.solvers.scratchpad.order import GIVEN, Ordered, ScratchpadEffort, order_of
from memcompile.solvers.scratchpad.problem import HOME, Level, ScratchpadProblem, ScratchpadSolution, check
from memcompile.solvers.scratchpad.replacement import check_room, replace


def plan_scratchpad(
    problem: ScratchpadProblem, levels: Sequence[Level] | int, *, reorder: bool = True, effort: ScratchpadEffort | None = None
) -> ScratchpadSolution:
    """Order, replacement and offsets for ``levels``: the scratchpad, then the memories behind it, the last one with room for
    all.

    A number is the size of a scratchpad in front of one large memory. ``reorder``: False keeps the order of ``problem``. Raises
    ``ProblemError``, and ``ScratchpadTooSmallError`` where an operator alone does not fit. Deterministic: work is counted, not
    timed.
    """
    began = time.perf_counter()
    memories = (Level("scratchpad", levels), HOME) if isinstance(levels, int) else tuple(levels)
    size = _checked(memories)
    check(problem)
    check_room(problem, size)
    found = order_of(problem, size, effort or ScratchpadEffort()) if reorder else _as_given(problem, size)
    order, (best, stays) = _placed(problem, size, found)
    first = level_plan(problem, memories[0], memories[1], best, stays)
    bound = min(found.bound_bytes, best.bound_bytes)
    return ScratchpadSolution(
        order=order,
        levels=(first, *plans_behind(problem, first, memories)),
        compulsory_bytes=problem.compulsory_bytes,
        moved_bytes=best.moved_bytes,
        order_bound_bytes=best.bound_bytes,
        bound_bytes=bound,
        method=found.method,
        solve_seconds=time.perf_counter() - began,
    )


def _placed(problem: ScratchpadProblem, size_bytes: int, found: Ordered) -> tuple[tuple[int, ...], Placed]:
    """The order found, or the one given where its places turn out to cost less."""
    best = placed(problem, found.order, size_bytes, replace(problem, found.order, size_bytes))
    given = tuple(range(len(problem.ops)))
    if best[0].moved_bytes > found.moved_bytes and found.order != given:
        other = placed(problem, given, size_bytes, replace(problem, given, size_bytes))
        if other[0].moved_bytes < best[0].moved_bytes:
            return given, other
    return found.order, best


def _checked(levels: Sequence[Level]) -> int:
    """The size of the scratchpad. Raises ``ValueError`` for memories that make no sense."""
    if len(levels) < 2:
        raise ValueError("give a scratchpad and the memory behind it")
    for level in levels[:-1]:
        if level.size_bytes is not None and level.size_bytes < 1:
            raise ValueError(f"{level.name}: {level.size_bytes} bytes")
    size = levels[0].size_bytes
    if size is None:
        raise ValueError(f"{levels[0].name}: the size of a scratchpad is a number of bytes")
    return size


def _as_given(problem: ScratchpadProblem, size_bytes: int) -> Ordered:
    """The order of the problem; its bound is that of any order only where nothing moves."""
    from memcompile.solvers.scratchpad.bound import lower_bound

    order = tuple(range(len(problem.ops)))
    moved = replace(problem, order, size_bytes).moved_bytes
    return Ordered(order, moved, min(moved, lower_bound(problem, size_bytes)), GIVEN)
