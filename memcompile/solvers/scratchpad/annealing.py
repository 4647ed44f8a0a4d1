"""Orders of a large part of a network: annealed as a whole, then window by window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memcompile.solvers.scratchpad.evicting import Tables, annealed, moved_by, tables_of
from memcompile.solvers.scratchpad.exact import cheapest
from memcompile.solvers.scratchpad.gaps import uses_of
from memcompile.solvers.scratchpad.parts import window
from memcompile.solvers.scratchpad.problem import Problem
from memcompile.solvers.scratchpad.replacement import Replacement, replace

if TYPE_CHECKING:
    from memcompile.solvers.scratchpad.order import Effort


def improved(
    problem: Problem, size_bytes: int, starts: Sequence[Sequence[int]], effort: Effort, share: float
) -> tuple[tuple[int, ...], str]:
    """The best order found from ``starts``, and how. ``share``: of the effort that this part may take."""
    tables = tables_of(problem)
    steps = int(effort.anneal_steps * share)
    ranked = sorted(starts, key=lambda order: moved_by(tables, order, size_bytes))
    found = [tuple(ranked[0])]
    for seed in range(effort.starts):
        start = ranked[seed % len(ranked)]
        found.append(tuple(annealed(tables, start, size_bytes, steps // (2 * effort.starts), seed)[0]))
    best = min(found, key=lambda order: replace(problem, order, size_bytes).moved_bytes)
    return best, "annealing"
