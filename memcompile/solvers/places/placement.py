"""Greedy placements of buffers: one pass each, in numpy.

``best_fit`` goes through the buffers by importance and puts each into the smallest gap between those placed that live at
the same time. ``canonical`` goes through the addresses: whatever can lie lowest is placed next, the most important first; some
arrangement of the smallest height has that form. Importance is the size, or first the largest sum of bytes alive during the
buffer's life (T), then its length in time (W) or its area (A).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memcompile.solvers import work
from memcompile.solvers.schedule.simulate import Ints, alive

COMPILED_FROM = 4000
"""Buffers from which the placements are those of ``placement_large.py``: loading and compiling it takes a while."""
LARGEST_WORK = 5 * 10**9
"""Squares of a part's buffers that its placements add up to: one takes about a second per thousand million."""
_TAKEN = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class PlacementPart:
    """Buffers without a time between them at which nothing lives. ``indices``: their places in the instance.

    ``begins``, ``ends``: lifetimes in sections, the times between which nothing is born or dies. ``sizes``: bytes, aligned.
    ``fixed``: prescribed offsets, -1 where there is none. ``crowd``: the largest sum of bytes alive during each life.
    ``unit``: every useful offset is a multiple of it.
    """

    indices: Ints
    begins: Ints
    ends: Ints
    sizes: Ints
    fixed: Ints
    crowd: Ints
    lower_bound: int
    unit: int

    @staticmethod
    def of(indices: Ints, lowers: Ints, uppers: Ints, sizes: Ints, fixed: Ints) -> PlacementPart:
        """From lifetimes in any unit of time."""
        times = np.unique(np.concatenate([lowers, uppers]))
        begins, ends = np.searchsorted(times, lowers), np.searchsorted(times, uppers)
        crowd = _range_max(alive(begins, ends, sizes, len(times)), begins, ends)
        held = fixed >= 0
        tops = (fixed + sizes)[held]
        bound = max(int(crowd.max()), int(tops.max()) if len(tops) else 0)
        unit = int(np.gcd.reduce(np.concatenate([sizes, fixed[held]])))
        return PlacementPart(indices, begins, ends, sizes, fixed, crowd, bound, unit)

    def height(self, offsets: Ints) -> int:
        """The end of the highest buffer."""
        return int((offsets + self.sizes).max())

    def next_height(self, height: int) -> int:
        """The smallest height above ``height`` that an arrangement can have."""
        return (height // self.unit + 1) * self.unit


def _range_max(values: Ints, begins: Ints, ends: Ints) -> Ints:
    """max(values[begin:end]) of each range, from a table of the maxima over powers of two."""
    table = [values]
    while 2 ** len(table) <= len(values):
        half = 2 ** (len(table) - 1)
        table.append(np.maximum(table[-1][:-half], table[-1][half:]))
    level = np.array([(end - begin).bit_length() - 1 for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)])
    result = np.empty(len(begins), dtype=np.int64)
    for k in np.unique(level).tolist():
        of_level = level == k
        result[of_level] = np.maximum(table[k][begins[of_level]], table[k][ends[of_level] - 2**k])
    return result


def orders(part: PlacementPart) -> dict[str, Ints]:
    """Buffers by importance, most important first."""
    width = part.ends - part.begins
    area = width * part.sizes
    return {
        "TWA": np.lexsort((-area, -width, -part.crowd)),
        "size": np.lexsort((-width, -part.sizes)),
        "TAW": np.lexsort((-width, -area, -part.crowd)),
        "WAT": np.lexsort((-part.crowd, -area, -width)),
    }


def placements(part: PlacementPart) -> Iterator[tuple[str, Ints]]:
    """The greedy placements of a part, those that are most often lowest first; of very large parts not all."""
    by = orders(part)
    ways = [("canonical", "TWA"), ("best fit", "TWA"), ("best fit", "WAT")]
    ways += [("canonical", "size"), ("best fit", "size"), ("best fit", "TAW")]
    if (part.fixed >= 0).any():
        ways = [(way, name) for way, name in ways if way == "best fit"]
    for way, name in ways[: max(1, LARGEST_WORK // len(part.sizes) ** 2)]:
        work.spend(1e-9 * len(part.sizes) ** 2 + 2e-5 * len(part.sizes))
        place = best_fit if way == "best fit" else canonical
        yield f"{way}, {name}", place(part, by[name])


def best_fit(part: PlacementPart, order: Ints) -> Ints:
    """Offsets: each buffer in the smallest gap that holds it, else above all that live with it."""
    count = len(part.sizes)
    order = np.concatenate([order[part.fixed[order] >= 0], order[part.fixed[order] < 0]])
    if count >= COMPILED_FROM:
        from memcompile.solvers.places import placement_large

        return placement_large.best_fit(part.begins, part.ends, part.sizes, part.fixed, order)
    begins, ends = part.begins.astype(np.int32), part.ends.astype(np.int32)
    offsets = part.fixed.copy()
    # What is placed, by offset.
    begin, end = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.int32)
    start, top = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    for placed, i in enumerate(order.tolist()):
        size = int(part.sizes[i])
        if part.fixed[i] < 0:
            beside = np.flatnonzero((begin[:placed] < ends[i]) & (end[:placed] > begins[i]))
            offsets[i] = _gap(start[beside], top[beside], size)
        offset = int(offsets[i])
        place = int(np.searchsorted(start[:placed], offset))
        for column, value in ((begin, begins[i]), (end, ends[i]), (start, offset), (top, offset + size)):
            column[place + 1 : placed + 1] = column[place:placed]
            column[place] = value
    return offsets


def _gap(starts: Ints, tops: Ints, size: int) -> int:
    """The offset of the smallest gap of at least ``size`` between intervals sorted by their start, or the end of them all."""
    if not len(starts):
        return 0
    reach = np.maximum.accumulate(tops)
    free = starts.copy()
    free[1:] -= reach[:-1]
    fitting = np.flatnonzero(free >= size)
    if not len(fitting):
        return int(reach[-1])
    best = fitting[np.argmin(free[fitting])]
    return int(starts[best] - free[best])


def canonical(part: PlacementPart, order: Ints) -> Ints:
    """Offsets: again and again, of the buffers that can lie lowest on those placed, the most important one."""
    count = len(part.sizes)
    begins, ends, sizes = part.begins[order], part.ends[order], part.sizes[order] // part.unit
    offsets = np.empty(count, dtype=np.int64)
    if count >= COMPILED_FROM:
        from memcompile.solvers.places import placement_large

        offsets[order] = placement_large.canonical(begins, ends, sizes) * part.unit
        return offsets
    lowest = np.zeros(count, dtype=np.int64)
    key = np.arange(count, dtype=np.int64)  # lowest * count + importance
    for _ in range(count):
        i = int(np.argmin(key))
        key[i] = _TAKEN
        top = lowest[i] + sizes[i]
        raised = np.flatnonzero((begins < ends[i]) & (ends > begins[i]) & (lowest < top) & (key < _TAKEN))
        lowest[raised] = top
        key[raised] = top * count + raised
    offsets[order] = lowest * part.unit
    return offsets
