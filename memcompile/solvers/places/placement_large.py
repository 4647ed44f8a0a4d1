"""The greedy placements of ``placement.py`` for many buffers: the same offsets from plain loops that numba compiles."""

from __future__ import annotations

import numpy as np

from memcompile.solvers.compiled import compiled
from memcompile.solvers.schedule.simulate import Ints

_FAR = 1 << 62


@compiled
def best_fit(begins: Ints, ends: Ints, sizes: Ints, fixed: Ints, order: Ints) -> Ints:
    """Offsets: in this order, each buffer in the smallest gap that holds it, the lowest of equals, else above all beside it."""
    count = len(sizes)
    offsets = fixed.copy()
    # What is placed, by offset.
    begin, end = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.int32)
    start, top = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    beside = np.empty(count, dtype=np.int64)
    for placed in range(count):
        i = order[placed]
        born, dead, size = np.int32(begins[i]), np.int32(ends[i]), sizes[i]
        if fixed[i] < 0:
            found = 0
            for at in range(placed):
                beside[found] = at  # kept only if the next one does not overwrite it: a branch is guessed wrong too often
                found += (begin[at] < dead) & (end[at] > born)
            offset, smallest, reach = np.int64(-1), np.int64(-1), np.int64(0)
            for at in beside[:found]:
                free = start[at] - reach
                if free >= size and (smallest < 0 or free < smallest):
                    offset, smallest = reach, free
                reach = max(reach, top[at])
            offsets[i] = reach if offset < 0 else offset
        place, above = 0, placed
        while place < above:
            middle = (place + above) // 2
            if start[middle] < offsets[i]:
                place = middle + 1
            else:
                above = middle
        begin[place + 1 : placed + 1] = begin[place:placed]
        end[place + 1 : placed + 1] = end[place:placed]
        start[place + 1 : placed + 1] = start[place:placed]
        top[place + 1 : placed + 1] = top[place:placed]
        begin[place], end[place], start[place], top[place] = born, dead, offsets[i], offsets[i] + size
    return offsets


@compiled
def canonical(begins: Ints, ends: Ints, sizes: Ints) -> Ints:
    """Offsets of buffers sorted by importance: again and again, the most important of those that can lie lowest."""
    count = len(sizes)
    offsets = np.zeros(count, dtype=np.int64)
    left = np.arange(count)  # by importance; those placed meanwhile lie ``_FAR`` and are swept out now and then
    begin, end, lowest = begins.astype(np.int32), ends.astype(np.int32), offsets.copy()
    chosen = 0
    for placed in range(count):
        last = left[chosen]
        offsets[last] = lowest[chosen]
        born, dead, top = begin[chosen], end[chosen], lowest[chosen] + sizes[last]
        lowest[chosen] = _FAR
        if (count - placed) * 8 < len(left) * 7:
            kept = np.flatnonzero(lowest < _FAR)
            left, begin, end, lowest = left[kept], begin[kept], end[kept], lowest[kept]
        low = _FAR
        for at in range(len(left)):
            beside = (begin[at] < dead) & (end[at] > born)
            lowest[at] = max(lowest[at], beside * top)
            if lowest[at] < low:
                low, chosen = lowest[at], at
    return offsets
