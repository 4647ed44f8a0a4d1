"""Where the tiles of a stage begin and end along one axis of its last result."""

from __future__ import annotations

from typing import Literal

from memcompile.solvers.tiling.problem import Reach, Read, TilingProblem

Axis = Literal[0, 1]
LONGEST_PERIOD = 8
"""Largest step of a result after which its reads repeat, shifted: the factor of an enlargement."""
ALIGNMENTS = (1, 2, 4, 8, 16, 32)
SLACK = 8
"""A tile may grow by one part in this many to begin where its neighbours' reads repeat."""


def split(extent: int, parts: int, alignment: int = 1) -> list[int]:
    """The ``parts + 1`` bounds of equal parts, the last one smaller; parts of two sizes where those would be fewer.

    Parts begin at multiples of ``alignment``, or of the largest half, quarter, ... of it that keeps their number and lets
    none grow by more than an eighth. More parts than indices: some are empty.
    """
    if parts >= extent:
        return [extent * part // parts for part in range(parts + 1)]
    size = -(-extent // parts)
    while alignment > 1:
        aligned = -(-size // alignment) * alignment
        if -(-extent // aligned) == parts and aligned * SLACK <= size * (SLACK + 1):
            size = aligned
            break
        alignment //= 2
    if -(-extent // size) == parts:
        return [min(extent, size * part) for part in range(parts + 1)]
    return [extent * part // parts for part in range(parts + 1)]


def reach_of(read: Read, axis: Axis) -> Reach | None:
    """Which indices along an axis are read."""
    return read.rows if axis == 0 else read.columns


def period(reach: Reach) -> tuple[int, int] | None:
    """(step, shift): what index i + step reads is what i reads, moved by shift; None where there is no such small step."""
    for step in range(1, min(LONGEST_PERIOD, len(reach) - 1) + 1):
        moved = reach[step:] - reach[:-step]
        if (moved == moved[0, 0]).all():
            return step, int(moved[0, 0])
    return None


class Periods:
    """Periods of a problem's reads, each found once."""

    def __init__(self, problem: TilingProblem) -> None:
        self._problem = problem
        self._known: dict[int, tuple[int, int] | None] = {}
        self._alignments: dict[tuple[int, Axis], int] = {}

    def alignment(self, root: int, axis: Axis) -> int:
        """The smallest power of two: tiles of ``root`` that begin at its multiples read equal shapes of all it is made from."""
        if (root, axis) not in self._alignments:
            steps = (step for step in ALIGNMENTS if self._repeats(root, axis, step))
            self._alignments[root, axis] = next(steps, 1)
        return self._alignments[root, axis]

    def _repeats(self, root: int, axis: Axis, step: int) -> bool:
        """Whether every operator before ``root`` moves by whole pixels as the tile moves by ``step``."""
        moves = {root: step}
        for index in range(root, -1, -1):
            move = moves.get(index)
            if move is None:
                continue
            for read in self._problem.operators[index].reads:
                known = self._of(reach_of(read, axis))
                if known is None:
                    continue
                if move % known[0]:
                    return False
                moves.setdefault(read.source, move // known[0] * known[1])
        return True

    def _of(self, reach: Reach | None) -> tuple[int, int] | None:
        if reach is None:
            return None
        if id(reach) not in self._known:
            self._known[id(reach)] = period(reach)
        return self._known[id(reach)]
