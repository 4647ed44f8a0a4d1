"""Depth-first search for an arrangement of a given height, compiled by numba: a few microseconds a step.

After MiniMalloc (Moffitt, "MiniMalloc: a lightweight memory allocator for hardware-accelerated machine learning", ASPLOS 2023):
canonical arrangements, inference by section, a subproblem of its own for each part that has come apart in time. Three things
differ. Branching is binary: a buffer under which nothing else fits lies at its lowest offset, or it rests on a neighbour that
is still to be placed, which raises that offset to the lowest top among them, and its twins' too. It need not be the lowest
buffer of all, so a search can stay where it fails: sections are weighted by their failures (Boussemart et al., "Boosting
systematic search by weighting constraints", ECAI 2004). And a search is cut after some steps, for another order to try.

Fixed offsets are not for this search: arrangements around them have no canonical form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memcompile.solvers.compiled import compiled
from memcompile.solvers.places.placement import PlacementPart
from memcompile.solvers.schedule.simulate import Ints

FOUND, NONE, UNKNOWN = 1, 0, -1
"""Answers of a search: an arrangement, a proof that there is none, out of steps."""
_TRAIL, _STEPS = 0, 1
_FAR = 1 << 60


class PlacementState(NamedTuple):
    """An arrangement in the making, of ``n`` buffers over ``S`` sections; offsets and sizes in units of the part.

    ``beside[beside_of[i]:beside_of[i + 1]]``: the buffers that live with buffer i; ``alive`` likewise: those of each section.
    ``twin``: the next buffer with the same life and size, in a ring. ``lowest``: the lowest offset a buffer may have, final
    once it is placed. ``support``: the highest top among those placed that live with it. ``floor``, ``rest``: of each section,
    the lowest offset and the sum of sizes of the buffers to place. ``crossing``: how many of these live both before and after
    the section begins. ``failures``: 1 for each section, and how often it had no room. ``trail``: what to undo, as
    (buffer, lowest, support), or (buffer, -1, 0) for a placement. ``counts``: the length of the trail, steps left.
    """

    begins: Ints
    ends: Ints
    sizes: Ints
    twin: Ints
    beside_of: Ints
    beside: Ints
    alive_of: Ints
    alive: Ints
    lowest: Ints
    support: Ints
    placed: npt.NDArray[np.bool_]
    floor: Ints
    rest: Ints
    crossing: Ints
    failures: npt.NDArray[np.float64]
    trail: Ints
    counts: Ints


class PlacementSearch:
    """Searches for arrangements of at most ``height`` bytes. ``failures`` of each section add up over the attempts."""

    def __init__(self, part: PlacementPart, height: int, failures: npt.NDArray[np.float64]) -> None:
        count, sections = len(part.sizes), int(part.ends.max())
        begins, ends = part.begins, part.ends
        all_ = np.arange(count)
        beside_of, beside = _rows([np.flatnonzero((begins < ends[i]) & (ends > begins[i]) & (all_ != i)) for i in range(count)])
        alive_of, alive = _rows([np.flatnonzero((begins <= section) & (ends > section)) for section in range(sections)])
        self._height, self._unit = height // part.unit, part.unit
        lowest, support = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        floor, rest, crossing = (np.zeros(sections, dtype=np.int64) for _ in range(3))
        self._state = PlacementState(
            begins=begins,
            ends=ends,
            sizes=part.sizes // part.unit,
            twin=_twins(part),
            beside_of=beside_of,
            beside=beside,
            alive_of=alive_of,
            alive=alive,
            lowest=lowest,
            support=support,
            placed=np.zeros(count, dtype=np.bool_),
            floor=floor,
            rest=rest,
            crossing=crossing,
            failures=failures,
            trail=np.zeros((0, 3), dtype=np.int64),
            counts=np.zeros(2, dtype=np.int64),
        )

    @property
    def steps_left(self) -> int:
        """Of the last attempt."""
        return max(0, int(self._state.counts[_STEPS]))

    def attempt(self, order: Ints, upwards: bool, steps: int) -> tuple[bool | None, Ints]:
        """One search of about ``steps`` steps: whether there is an arrangement, None if they did not suffice; offsets in bytes.

        ``order``: buffers by importance, which decides between those that can lie equally low. ``upwards``: always go on with
        the buffer that can lie lowest; else with the lowest one of the section that fails often and has little room.
        """
        count, sections = len(self._state.sizes), len(self._state.rest)
        # On one path of the search, each pair of neighbours is written down once and each raise takes a step.
        trail = np.zeros((count + len(self._state.beside) // 2 + steps + count, 3), dtype=np.int64)
        state = self._state._replace(trail=trail)
        for column in (state.lowest, state.support, state.placed, state.crossing, state.counts):
            column[:] = 0
        crossing = np.zeros(sections + 1, dtype=np.int64)
        np.add.at(crossing, state.begins + 1, 1)
        np.add.at(crossing, state.ends, -1)
        state.crossing[:] = np.cumsum(crossing)[:-1]
        state.counts[_STEPS] = steps
        rank = np.empty(count, dtype=np.int64)
        rank[order] = np.arange(count)
        if not _refresh(state, self._height, 0, sections):
            return False, state.lowest
        answer = _search(state, self._height, rank, upwards, 0, sections)
        return (None if answer == UNKNOWN else bool(answer == FOUND)), state.lowest * self._unit


def _rows(rows: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Rows of different lengths as one: where each begins, and all of them."""
    return np.cumsum([0, *(len(row) for row in rows)]), np.concatenate(rows)


def _twins(part: PlacementPart) -> Ints:
    rings: dict[tuple[int, ...], list[int]] = {}
    for i, key in enumerate(zip(part.begins.tolist(), part.ends.tolist(), part.sizes.tolist(), strict=True)):
        rings.setdefault(key, []).append(i)
    twin = np.empty(len(part.sizes), dtype=np.int64)
    for ring in rings.values():
        twin[ring] = [*ring[1:], ring[0]]
    return twin


@compiled
def _search(state: PlacementState, height: int, rank: Ints, upwards: bool, first: int, last: int) -> int:
    """Place the buffers left within the sections from ``first`` to before ``last``; undoes what it did if there is no way."""
    began = state.counts[_TRAIL]
    while True:
        if state.counts[_STEPS] <= 0:
            return UNKNOWN
        state.counts[_STEPS] -= 1
        chosen = _lowest(state, rank, first, last) if upwards else _hardest(state, height, rank, first, last)
        if chosen < 0:
            return FOUND
        if state.lowest[chosen] == state.support[chosen]:
            before = state.counts[_TRAIL]
            if _place(state, height, chosen):
                answer = FOUND
                start = first
                for section in range(first + 1, last + 1):
                    if section < last and state.crossing[section]:
                        continue
                    if section - start > 1 or state.rest[start]:
                        answer = _search(state, height, rank, upwards, start, section)
                        if answer != FOUND:
                            break
                    start = section
                if answer != NONE:
                    return answer
            _undo(state, height, before)
        if not _raise(state, height, chosen):
            _undo(state, height, began)
            return NONE


@compiled
def _lowest(state: PlacementState, rank: Ints, first: int, last: int) -> int:
    """The buffer that can lie lowest, the most important one of equals; -1 if all are placed."""
    best = -1
    for i in range(len(state.sizes)):
        if not state.placed[i] and state.begins[i] >= first and state.ends[i] <= last:
            if best < 0 or state.lowest[i] < state.lowest[best]:
                best = i
            elif state.lowest[i] == state.lowest[best] and rank[i] < rank[best]:
                best = i
    return best


@compiled
def _hardest(state: PlacementState, height: int, rank: Ints, first: int, last: int) -> int:
    """The lowest buffer of the section with many failures and little room, or one that fits beneath it; -1: all are placed."""
    hardest, most = -1, -1.0
    for section in range(first, last):
        if state.rest[section]:
            room = (height - state.floor[section] - state.rest[section]) / height
            if state.failures[section] > most * (1.0 + 100.0 * room):
                hardest, most = section, state.failures[section] / (1.0 + 100.0 * room)
    if hardest < 0:
        return -1
    best = -1
    for at in range(state.alive_of[hardest], state.alive_of[hardest + 1]):
        i = state.alive[at]
        if not state.placed[i]:
            if best < 0 or state.lowest[i] < state.lowest[best]:
                best = i
            elif state.lowest[i] == state.lowest[best] and rank[i] < rank[best]:
                best = i
    beneath = best
    while beneath >= 0:
        best, beneath = beneath, -1
        for at in range(state.beside_of[best], state.beside_of[best + 1]):
            i = state.beside[at]
            if not state.placed[i] and state.lowest[i] + state.sizes[i] <= state.lowest[best]:
                if beneath < 0 or state.lowest[i] < state.lowest[beneath]:
                    beneath = i
                elif state.lowest[i] == state.lowest[beneath] and rank[i] < rank[beneath]:
                    beneath = i
    return best


@compiled
def _place(state: PlacementState, height: int, chosen: int) -> bool:
    """Let a buffer lie at its lowest offset; whether the rest may still fit."""
    top = state.lowest[chosen] + state.sizes[chosen]
    first, last = state.begins[chosen], state.ends[chosen]
    _note(state, chosen, -1, 0)
    state.placed[chosen] = True
    for section in range(first + 1, last):
        state.crossing[section] -= 1
    for at in range(state.beside_of[chosen], state.beside_of[chosen + 1]):
        i = state.beside[at]
        if not state.placed[i] and state.support[i] < top:
            _note(state, i, state.lowest[i], state.support[i])
            state.support[i] = top
            state.lowest[i] = max(state.lowest[i], top)
            first, last = min(first, state.begins[i]), max(last, state.ends[i])
    return _refresh(state, height, first, last)


@compiled
def _raise(state: PlacementState, height: int, chosen: int) -> bool:
    """Let a buffer, and so its twins, rest on one that is still to be placed; whether that may fit."""
    offset = state.lowest[chosen]
    i = chosen
    while True:
        if not state.placed[i] and state.lowest[i] == offset:
            lowest = _FAR
            for at in range(state.beside_of[i], state.beside_of[i + 1]):
                j = state.beside[at]
                if not state.placed[j]:
                    lowest = min(lowest, state.lowest[j] + state.sizes[j])
            if lowest + state.sizes[i] > height:
                return False
            _note(state, i, state.lowest[i], state.support[i])
            state.lowest[i] = lowest
            state.counts[_STEPS] -= 1
        i = state.twin[i]
        if i == chosen:
            return _refresh(state, height, state.begins[chosen], state.ends[chosen])


@compiled
def _refresh(state: PlacementState, height: int, first: int, last: int) -> bool:
    """Floors and sums of sections; False, and a failure for the section, where what is left does not fit above the floor."""
    for section in range(first, last):
        floor, rest = _FAR, 0
        for at in range(state.alive_of[section], state.alive_of[section + 1]):
            i = state.alive[at]
            if not state.placed[i]:
                rest += state.sizes[i]
                floor = min(floor, state.lowest[i])
        state.floor[section], state.rest[section] = floor, rest
        if rest and floor + rest > height:
            state.failures[section] += 1.0
            return False
    return True


@compiled
def _note(state: PlacementState, buffer: int, lowest: int, support: int) -> None:
    at = state.counts[_TRAIL]
    state.trail[at, 0], state.trail[at, 1], state.trail[at, 2] = buffer, lowest, support
    state.counts[_TRAIL] += 1


@compiled
def _undo(state: PlacementState, height: int, length: int) -> None:
    """Back to a trail of that length."""
    first, last = len(state.rest), 0
    while state.counts[_TRAIL] > length:
        state.counts[_TRAIL] -= 1
        i, lowest, support = state.trail[state.counts[_TRAIL]]
        first, last = min(first, state.begins[i]), max(last, state.ends[i])
        if lowest < 0:
            state.placed[i] = False
            for section in range(state.begins[i] + 1, state.ends[i]):
                state.crossing[section] += 1
        else:
            state.lowest[i], state.support[i] = lowest, support
    _refresh(state, height, first, last)
