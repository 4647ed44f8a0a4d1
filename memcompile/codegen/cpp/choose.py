"""Which blocks of a run become one kernel together, and which stay library calls: all cuts of the run that may be best.

A cut has a time (the sum of its parts') and a peak (the largest of its parts'). Of the cuts of the first i blocks only those
are kept that no other beats in both: few, and exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SLACK = 1.05
"""What a cut may take above the smallest peak when that saves time."""


class Cost(NamedTuple):
    """Of a part of a run: ``seconds``, and the ``peak_bytes`` while it runs."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Cut:
    """``parts``: blocks ``begin`` up to ``end`` that are one kernel; the others are library calls."""

    seconds: float = 0.0
    peak_bytes: int = 0
    parts: tuple[tuple[int, int], ...] = ()

    def then(self, cost: Cost, *part: tuple[int, int]) -> Cut:
        """With one more part."""
        return Cut(self.seconds + cost.seconds, max(self.peak_bytes, cost.peak_bytes), (*self.parts, *part))


def cuts(count: int, apart: Callable[[int], Cost | None], together: Callable[[int, int], Cost | None]) -> list[Cut]:
    """The cuts of ``count`` blocks that no other beats in time and in peak, the fastest first.

    ``apart``: a block as library calls; ``together``: blocks ``begin`` up to ``end`` as one kernel. None: that cannot be; where
    a kernel cannot be, none that begins earlier can.
    """
    fronts: list[list[Cut]] = [[Cut()]]
    for end in range(1, count + 1):
        alone, found = apart(end - 1), list[Cut]()
        if alone is not None:
            found += [cut.then(alone) for cut in fronts[end - 1]]
        for begin in reversed(range(end)):
            cost = together(begin, end)
            if cost is None:
                break
            found += [cut.then(cost, (begin, end)) for cut in fronts[begin]]
        fronts.append(_front(found))
    return fronts[-1]


def best_cut(front: Sequence[Cut], limit_bytes: int | None, allowed_seconds: float | None) -> Cut:
    """Within the limit the fastest, or the smallest there is. Without one, of those that take no longer than is allowed the
    fastest near the smallest. Without either, the fastest."""
    if limit_bytes is not None:
        return next((cut for cut in front if cut.peak_bytes <= limit_bytes), front[-1])
    if allowed_seconds is None:
        return front[0]
    allowed = [cut for cut in front if cut.seconds <= allowed_seconds] or front[:1]
    return next(cut for cut in allowed if cut.peak_bytes <= SLACK * allowed[-1].peak_bytes)


def _front(found: Sequence[Cut]) -> list[Cut]:
    kept: list[Cut] = []
    for cut in sorted(found, key=lambda cut: (cut.seconds, cut.peak_bytes)):
        if not kept or cut.peak_bytes < kept[-1].peak_bytes:
            kept.append(cut)
    return kept
