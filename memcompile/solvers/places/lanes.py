"""Lanes of an arena: places for part of the buffers where there is next to nothing to waste.

An arrangement of all buffers is often a few percent higher than what is alive in it, and a step that fills its budget does not
have these few percent. A lane is a range of addresses that is taken all the time and that buffers take one after the other;
what is not in a lane stays outside. Only the moments at which a lane is not full cost anything, and only there has to be slack.

Lanes are opened one at a time, the highest first. Each takes the chain of buffers with the most bytes that slack can pay for:
weighted interval scheduling (Kleinberg and Tardos, Algorithm Design, section 6.1), where an empty moment too is only passed
with enough slack. A heuristic: no lane is opened again for the sake of a later one.

Nothing here knows torch. Sizes, slack and offsets are in any one unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memcompile.solvers.schedule.simulate import Ints

LEAST_SHARE = 0.001
"""Share of all bytes that a chain has to hold: smaller ones are not worth a lane."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """``offsets``: one for each buffer, -1 for those outside. The lanes take ``height`` together."""

    offsets: Ints
    height: int


def lanes(begins: Ints, ends: Ints, sizes: Ints, slack: Ints) -> Lanes:
    """Places in lanes; buffer i is alive in ``[begins[i], ends[i])``.

    ``slack``: at each moment, what the lanes may take above what is alive in them.
    """
    offsets = np.full(len(sizes), -1, dtype=np.int64)
    if not len(sizes) or int(slack.min()) < 0:
        return Lanes(offsets, 0)
    left, first, last = moments(begins, ends, slack)
    least = max(1, int(LEAST_SHARE * int(sizes.sum())))
    height = 0
    for lane in np.unique(sizes)[::-1].tolist():
        while lane and (chain := _chain(lane, first, last, np.where(offsets < 0, sizes, 0), left, least)):
            left = left - lane
            for i in chain:
                offsets[i] = height
                left[first[i] : last[i]] += sizes[i]
            height += lane
    return Lanes(offsets, height)


def _chain(lane: int, first: Ints, last: Ints, sizes: Ints, left: Ints, least: int) -> list[int]:
    """The buffers that together have the most bytes in a lane; none where they have less than ``least``.

    ``sizes``: 0 for buffers that have a place already.
    """
    fits = np.flatnonzero((sizes > 0) & (sizes <= lane))
    if sizes[fits].sum() < least:
        return []
    fits = fits[least_between(left, first[fits], last[fits]) >= lane - sizes[fits]]
    starting: dict[int, list[int]] = {}
    for i in fits.tolist():
        starting.setdefault(int(first[i]), []).append(i)
    end = len(left)
    most, via = [-1] * (end + 1), [-1] * (end + 1)  # bytes of the best chain up to each moment, and the last buffer in it
    most[0] = 0
    ends, weights = last.tolist(), sizes.tolist()
    for time, passes in enumerate((left >= lane).tolist()):
        if most[time] < 0:
            continue
        if passes and most[time] > most[time + 1]:
            most[time + 1], via[time + 1] = most[time], -1
        for i in starting.get(time, ()):
            if most[time] + weights[i] > most[ends[i]]:
                most[ends[i]], via[ends[i]] = most[time] + weights[i], i
    if most[end] < least:
        return []
    chain, time = [], end
    while time:
        i = via[time]
        if i >= 0:
            chain.append(i)
        time = int(first[i]) if i >= 0 else time - 1
    return chain


def moments(begins: Ints, ends: Ints, slack: Ints) -> tuple[Ints, Ints, Ints]:
    """Only the moments at which something begins or ends: the least slack from each to the next, begins, ends."""
    times = np.unique(np.concatenate([begins, ends, [0]]))
    left = np.minimum.reduceat(slack, times[times < len(slack)])
    return left, np.searchsorted(times, begins), np.searchsorted(times, ends)


def least_between(values: Ints, begins: Ints, ends: Ints) -> Ints:
    """The minimum of each range ``[begin, end)``, by a table of the minima of all ranges of 1, 2, 4 ... values."""
    table = [values]
    while 2 << (len(table) - 1) <= len(values):
        half = 1 << (len(table) - 1)
        table.append(np.minimum(table[-1][:-half], table[-1][half:]))
    found = np.empty(len(begins), dtype=values.dtype)
    levels = np.log2(ends - begins).astype(np.int64)
    for level in np.unique(levels).tolist():
        here = levels == level
        found[here] = np.minimum(table[level][begins[here]], table[level][ends[here] - (1 << level)])
    return found
