"""Relays: blocks of memory that buffers hand on to each other, for as long as slack pays for the moments between them.

A lane (``lanes.py``) is there all the time. A relay begins with its first buffer and ends with its last: where a step fills its
budget at some moments, blocks can still be handed on between these. The first buffer of a relay touches memory for the first
time, the others do not: what a relay saves are the bytes of its buffers less those of its block. The relay that saves most is
found as a lane's chain is, by weighted interval scheduling, and taken, the largest blocks first, until none is worth it.

Nothing here knows torch. Sizes and slack are in any one unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcompile.solvers.places.lanes import LEAST_SHARE, least_between, moments
from memcompile.solvers.schedule.simulate import Ints, alive

NONE, PASSED = -2, -1


@dataclass(frozen=True, slots=True)
class Relay:
    """A block of ``size``, and the buffers that it is handed to, one after the other."""

    size: int
    buffers: tuple[int, ...]

    def saved(self, sizes: Ints) -> int:
        """What is not touched for the first time."""
        return int(sizes[list(self.buffers)].sum()) - self.size

    def wasted(self, begins: Ints, ends: Ints, sizes: Ints, count: int) -> Ints:
        """What the block takes above the buffers alive in it, at each of ``count`` moments."""
        here = list(self.buffers)
        block = alive(begins[here[:1]], ends[here[-1:]], np.array([self.size], dtype=np.int64), count)
        return block - alive(begins[here], ends[here], sizes[here], count)


def relays_of_halves(begins: Ints, ends: Ints, sizes: Ints, slack: Ints, boundary: int) -> list[Relay]:
    """Relays that stay within their half of a step: what is alive across ``boundary`` hands nothing on."""
    found: list[Relay] = []
    for half in (begins < boundary, begins >= boundary):
        group = relays(begins, ends, np.where(half, sizes, 0), slack, (begins < boundary) & (ends > boundary))
        for relay in group:
            slack = slack - relay.wasted(begins, ends, sizes, len(slack))
        found += group
    return found


def relays(begins: Ints, ends: Ints, sizes: Ints, slack: Ints, only_last: NDArray[np.bool_]) -> list[Relay]:
    """Relays of two buffers and more; buffer i is alive in ``[begins[i], ends[i])``, and in one relay at most.

    ``slack``: at each moment, what blocks may take above the buffers alive in them. ``only_last``: which buffers hand nothing
    on.
    """
    if not len(sizes) or int(slack.min()) < 0:
        return []
    left, first, last = moments(begins, ends, slack)
    least = max(1, int(LEAST_SHARE * int(sizes.sum())))
    free = sizes.copy()
    found = []
    for block in np.unique(sizes)[::-1].tolist():
        while block and (buffers := _relay(block, first, last, free, left, least, only_last)):
            size = int(sizes[list(buffers)].max())
            left[first[buffers[0]] : last[buffers[-1]]] -= size
            for i in buffers:
                left[first[i] : last[i]] += sizes[i]
                free[i] = 0
            found.append(Relay(size, buffers))
    return found


def _relay(
    block: int, first: Ints, last: Ints, sizes: Ints, left: Ints, least: int, only_last: NDArray[np.bool_]
) -> tuple[int, ...]:
    """The buffers whose relay saves the most; none where it saves less than ``least``. ``sizes``: 0 for what is in a relay."""
    fits = np.flatnonzero((sizes > 0) & (sizes <= block))
    if sizes[fits].sum() - block < least:
        return ()
    fits = fits[least_between(left, first[fits], last[fits]) >= block - sizes[fits]]
    starting: dict[int, list[int]] = {}
    for i in fits.tolist():
        starting.setdefault(int(first[i]), []).append(i)
    ends, weights, closes = last.tolist(), sizes.tolist(), only_last.tolist()
    saved, via = [-block] * (len(left) + 1), [NONE] * (len(left) + 1)  # by the best relay under way at a moment; what led there
    follows: dict[int, bool] = {}
    most, final = 0, NONE
    for time, passes in enumerate((left >= block).tolist()):
        here = saved[time]
        if passes and via[time] != NONE and here > saved[time + 1]:
            saved[time + 1], via[time + 1] = here, PASSED
        for i in starting.get(time, ()):
            follows[i] = via[time] != NONE
            if here + weights[i] > most:
                most, final = here + weights[i], i
            if not closes[i] and here + weights[i] > saved[ends[i]]:
                saved[ends[i]], via[ends[i]] = here + weights[i], i
    if most < least:
        return ()
    chain = [final]
    while follows[chain[-1]]:
        time = int(first[chain[-1]])
        while via[time] == PASSED:
            time -= 1
        chain.append(via[time])
    return tuple(reversed(chain))
