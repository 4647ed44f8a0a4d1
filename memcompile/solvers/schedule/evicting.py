"""The greedy decoder of ``evict.py``: loops that numba compiles, a microsecond an execution."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from memcompile.solvers.compiled import compiled, inner
from memcompile.solvers.schedule.index import Steps
from memcompile.solvers.schedule.simulate import Ints

DEPTH = 64  # ancestors looked at when a remake is priced
NEVER = 1 << 62


class State(NamedTuple):
    """``now``: [base op under way]. ``used``: [bytes: the base, and storages that are resident]. ``wanted``: per storage, the
    base op that next uses it through something evicted. ``pins``: how many unfinished ops read it. ``weight``: noise on its
    score. ``visited``: per op, the last look at prices that came by, counted in ``look``. ``ancestors``: room for a look."""

    now: Ints
    used: Ints
    resident: Ints
    wanted: Ints
    pins: Ints
    weight: np.ndarray[tuple[int], np.dtype[np.float64]]
    visited: Ints
    look: Ints
    ancestors: Ints


@inner
def _direct(steps: Steps, s: int, now: int) -> int:
    """The first base op from ``now`` on that reads s."""
    low, high = steps.readers_start[s], steps.readers_start[s + 1]
    end = high
    while low < high:
        middle = (low + high) // 2
        if steps.readers[middle] < now:
            low = middle + 1
        else:
            high = middle
    return int(steps.readers[low]) if low < end else NEVER


@inner
def _next_use(steps: Steps, state: State, s: int, now: int) -> int:
    """Base op that next needs s, directly or to remake what was evicted."""
    return min(_direct(steps, s, now), int(state.wanted[s]))


@inner
def _remake_seconds(steps: Steps, state: State, s: int) -> float:
    """Seconds to make s again from what is resident (ancestors counted once, up to a depth); infinity when it cannot be."""
    state.look[0] += 1
    look = state.look[0]
    state.ancestors[0] = steps.producer[s]
    waiting, seen, total = 1, 0, 0.0
    while waiting and seen < DEPTH:
        waiting -= 1
        p = state.ancestors[waiting]
        if state.visited[p] == look:
            continue
        if not steps.again[p]:
            return np.inf
        state.visited[p] = look
        seen += 1
        total += steps.seconds[p]
        for i in range(steps.reads_start[p], steps.reads_start[p + 1]):
            if not state.resident[steps.reads[i]]:
                state.ancestors[waiting] = steps.producer[steps.reads[i]]
                waiting += 1
    return total


@inner
def _score(steps: Steps, state: State, s: int, power: float) -> float:
    """Cost of losing s: seconds per byte and per distance of the next use."""
    use = _next_use(steps, state, s, state.now[0])
    if use == NEVER:
        return 0.0
    distance = max(1.0, float(use - state.now[0])) ** power
    price: float = state.weight[s] * _remake_seconds(steps, state, s)
    return price / (max(1, int(steps.sizes[s])) * float(distance))


@inner
def _evict(steps: Steps, state: State, heap: list[tuple[float, int]], s: int, power: float) -> None:
    """Drop s; its parents are wanted when it is."""
    state.resident[s] = 0
    state.used[0] -= steps.sizes[s]
    stack = [(s, _next_use(steps, state, s, state.now[0]))]
    while stack:
        u, use = stack.pop()
        if use == NEVER:
            continue
        p = steps.producer[u]
        for i in range(steps.reads_start[p], steps.reads_start[p + 1]):
            v = steps.reads[i]
            if use < state.wanted[v]:
                state.wanted[v] = use
                if state.resident[v]:
                    heapq.heappush(heap, (_score(steps, state, v, power), v))
                else:
                    stack.append((v, use))


@inner
def _evictable(steps: Steps, state: State, s: int) -> bool:
    """Whether s may leave memory now."""
    if state.pins[s] or steps.output[s]:
        return False
    return bool(steps.again[steps.producer[s]]) or _next_use(steps, state, s, state.now[0]) == NEVER


@inner
def _make_room(steps: Steps, state: State, heap: list[tuple[float, int]], size: int, cap: int, power: float) -> bool:
    """Evict until ``size`` more bytes fit; False when they cannot."""
    aside = [(0.0, 0) for _ in range(0)]
    while state.used[0] + size > cap and heap:
        old, s = heapq.heappop(heap)
        if not state.resident[s]:
            continue
        if not _evictable(steps, state, s):
            aside.append((old, s))
            continue
        new = _score(steps, state, s, power)
        if new == np.inf:
            aside.append((new, s))
        elif new > old * 1.05:
            heapq.heappush(heap, (new, s))
        else:
            _evict(steps, state, heap, s, power)
    for entry in aside:
        heapq.heappush(heap, entry)
    return bool(state.used[0] + size <= cap)


@inner
def _in_place(steps: Steps, state: State, p: int, now: int, sacrifice: bool) -> list[int]:
    """Reads whose place the writes of p take: those that nothing needs after it, or any that can be remade, the one that is
    needed last first."""
    taken = [0 for _ in range(0)]
    for i in range(steps.writes_start[p], steps.writes_start[p + 1]):
        size = steps.sizes[steps.writes[i]]
        found, latest = -1, -1
        for j in range(steps.reads_start[p], steps.reads_start[p + 1]):
            s = steps.reads[j]
            if steps.sizes[s] != size or steps.output[s] or state.pins[s] > 1 or s in taken:
                continue
            use = _next_use(steps, state, s, now)
            if use >= latest and (use == NEVER or (sacrifice and steps.again[steps.producer[s]])):
                found, latest = s, use
        if found >= 0:
            taken.append(found)
    return taken


@inner
def _total(steps: Steps, storages: list[int]) -> int:
    total = 0
    for s in storages:
        total += steps.sizes[s]
    return total


@inner
def _execute(steps: Steps, state: State, heap: list[tuple[float, int]], p: int, base: bool, cap: int, power: float) -> bool:
    """Run p, whose reads are resident and pinned; False when there is no room."""
    grow = steps.workspace[p]
    for i in range(steps.writes_start[p], steps.writes_start[p + 1]):
        if not state.resident[steps.writes[i]]:
            grow += steps.sizes[steps.writes[i]]
    after = p + 1 if base else state.now[0]
    reused = [0 for _ in range(0)]
    dead = 0
    if steps.inplace[p]:
        dead = _total(steps, _in_place(steps, state, p, after, False))
        grow -= dead
    if not _make_room(steps, state, heap, grow, cap, power):
        if steps.inplace[p]:
            reused = _in_place(steps, state, p, after, True)
            grow += dead - _total(steps, reused)
        if not reused or not _make_room(steps, state, heap, grow, cap, power):
            return False
    state.now[0] = after
    for i in range(steps.writes_start[p], steps.writes_start[p + 1]):
        s = steps.writes[i]
        if not state.resident[s]:
            state.resident[s] = 1
            state.used[0] += steps.sizes[s]
        if state.wanted[s] < after:
            state.wanted[s] = NEVER
        heapq.heappush(heap, (_score(steps, state, s, power), s))
    for i in range(steps.reads_start[p], steps.reads_start[p + 1]):
        s = steps.reads[i]
        if base and state.wanted[s] < after:
            state.wanted[s] = NEVER
        heapq.heappush(heap, (_score(steps, state, s, power), s))
    for s in reused:
        _evict(steps, state, heap, s, power)
    return True


@inner
def _choose(steps: Steps, missing: list[int], order: int, draw: Ints) -> int:
    """The missing read to make next: the first, the one that needs the most room beside itself, or any."""
    if order == 0:
        return missing[0]
    if order > 1:
        draw[0] = (draw[0] * 1103515245 + 12345) % (1 << 31)
        return missing[int(draw[0] >> 8) % len(missing)]
    best, most = missing[0], -NEVER
    for s in missing:
        room = steps.footprint[steps.producer[s]] - steps.sizes[s]
        if room > most:
            best, most = s, room
    return best


@compiled
def decoded(
    steps: Steps, state: State, boundary: int, cap: int, max_executions: int, power: float, order: int
) -> tuple[Ints, int, bool]:
    """The executions, how many of them are before the boundary, and whether they are all; see ``evict.decode_capped``."""
    heap = [(0.0, 0) for _ in range(0)]
    sequence = [0 for _ in range(0)]
    under_way, begins = [0 for _ in range(0)], [0 for _ in range(0)]
    pinned = [0 for _ in range(0)]
    active = np.zeros(len(steps.seconds), dtype=np.bool_)
    draw = np.array([order], dtype=np.int64)
    split = -1
    for target in range(len(steps.seconds)):
        if target == boundary:
            split = len(sequence)
        under_way.append(target)
        begins.append(len(pinned))
        active[target] = True
        while under_way:  # depth first, reads of unfinished ops pinned
            p = under_way[-1]
            missing = [0 for _ in range(0)]
            for i in range(steps.reads_start[p], steps.reads_start[p + 1]):
                s = steps.reads[i]
                if not state.resident[s]:
                    missing.append(s)
                elif s not in pinned[begins[-1] :]:
                    pinned.append(s)
                    state.pins[s] += 1
            if missing:
                child = steps.producer[_choose(steps, missing, order, draw)]
                if active[child] or not steps.again[child]:
                    return np.array(sequence, dtype=np.int64), split, False
                under_way.append(child)
                begins.append(len(pinned))
                active[child] = True
                continue
            room = _execute(steps, state, heap, p, len(under_way) == 1, cap, power)
            if not room or len(sequence) >= max_executions:
                return np.array(sequence, dtype=np.int64), split, False
            sequence.append(p)
            while len(pinned) > begins[-1]:
                state.pins[pinned.pop()] -= 1
            under_way.pop()
            begins.pop()
            active[p] = False
    return np.array(sequence, dtype=np.int64), len(sequence) if split < 0 else split, True
