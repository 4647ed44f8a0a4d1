"""Bytes moved by an order when whatever is needed last makes room (Belady), and orders with few of them by simulated annealing.

Compiled by numba. The cost is that of a plan, if rarely of the best one for its
order; ``replacement.py`` then finds that. Deterministic: random numbers are those of a seed, work is counted in steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from memcompile.solvers.compiled import compiled
from memcompile.solvers.schedule.simulate import Ints
from memcompile.solvers.scratchpad.gaps import store_bytes
from memcompile.solvers.scratchpad.problem import ScratchpadProblem

_NEVER = 1 << 40


class Tables(NamedTuple):
    """A problem in arrays. ``touched[touched_of[op]:touched_of[op + 1]]``: tensors; ``readers`` likewise: operators, without
    repeats. ``sizes``: bytes. ``stores``: bytes of storing each tensor beyond what is compulsory."""

    touched_of: Ints
    touched: Ints
    readers_of: Ints
    readers: Ints
    sizes: Ints
    stores: Ints


def tables_of(problem: ScratchpadProblem) -> Tables:
    """The arrays of a problem."""
    touched_of, touched = _rows(problem.touches)
    readers_of, readers = _rows(problem.readers)
    sizes = np.array([tensor.size_bytes for tensor in problem.tensors], dtype=np.int64)
    stores = np.array([store_bytes(problem, t) for t in range(len(problem.tensors))], dtype=np.int64)
    return Tables(touched_of, touched, readers_of, readers, sizes, stores)


def _rows(rows: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    starts = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return starts, np.array([item for row in rows for item in row], dtype=np.int64)


def moved_by(tables: Tables, order: Sequence[int], size_bytes: int) -> int:
    """Non-compulsory bytes of ``order``; every operator alone must fit."""
    return int(_cost(tables, np.array(order, dtype=np.int64), size_bytes, np.inf, *_room_for(tables)))


def annealed(tables: Tables, order: Sequence[int], size_bytes: int, steps: int, seed: int = 0) -> tuple[list[int], int]:
    """The best order met on the way from ``order``, and its bytes. ``steps``: operators that are run, over all orders tried."""
    start = np.array(order, dtype=np.int64)
    tries = steps // max(1, len(order))
    best, cost = _anneal(tables, start, size_bytes, tries, seed, *_room_for(tables))
    return best.tolist(), int(cost)


def _room_for(tables: Tables) -> tuple[Ints, Ints, Ints, Ints]:
    """Scratch of ``_cost``: next uses of each touch, and of each tensor; marks; a list of tensors."""
    count = len(tables.sizes)
    nexts = np.empty(len(tables.touched), dtype=np.int64)
    return nexts, np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)


@compiled
def _cost(tables: Tables, order: Ints, size: int, limit: float, nexts: Ints, use: Ints, mark: Ints, inside: Ints) -> int:
    """``use``: the next step that touches each tensor. ``mark``: bit 0: lies inside, bit 1: is stored. Ends above ``limit``."""
    sizes, touched_of, touched = tables.sizes, tables.touched_of, tables.touched
    use[:] = _NEVER
    for step in range(len(order) - 1, -1, -1):
        op = order[step]
        for slot in range(touched_of[op], touched_of[op + 1]):
            nexts[slot] = use[touched[slot]]
            use[touched[slot]] = step
    mark[:] = 0
    count, held, moved = 0, 0, 0
    for step in range(len(order)):
        op = order[step]
        added = 0
        for slot in range(touched_of[op], touched_of[op + 1]):
            if not mark[touched[slot]] & 1:
                added += sizes[touched[slot]]
        first_out = count
        while held + added > size:
            victim = -1
            for place in range(first_out):
                t = inside[place]
                if use[t] > step and (victim < 0 or (use[t], sizes[t]) > (use[inside[victim]], sizes[inside[victim]])):
                    victim = place
            first_out -= 1
            t = inside[victim]
            inside[victim], inside[first_out] = inside[first_out], t
            held -= sizes[t]
        kept = first_out
        for place in range(first_out, count):  # the last one to go comes back first, where it fits after all
            t = inside[place]
            if held + added + sizes[t] <= size:
                held += sizes[t]
                inside[place], inside[kept] = inside[kept], t
                kept += 1
            else:
                moved += sizes[t]
                if not mark[t] & 2:
                    moved += tables.stores[t]
                mark[t] = 2
        if moved > limit:
            return moved
        count = kept
        for slot in range(touched_of[op], touched_of[op + 1]):
            t = touched[slot]
            if not mark[t] & 1:
                mark[t] |= 1
                inside[count] = t
                count += 1
                held += sizes[t]
            use[t] = nexts[slot]
        place = 0
        while place < count:
            t = inside[place]
            if use[t] == _NEVER:
                mark[t] &= 2
                held -= sizes[t]
                count -= 1
                inside[place] = inside[count]
            else:
                place += 1
    return moved


@compiled
def _swap(tables: Tables, order: Ints, place: Ints, first: int, middle: int, last: int) -> bool:
    """Run ``order[middle:last]`` before ``order[first:middle]``, unless some of it reads from that."""
    for at in range(first, middle):
        op = order[at]
        for slot in range(tables.readers_of[op], tables.readers_of[op + 1]):
            if middle <= place[tables.readers[slot]] < last:
                return False
    moved = order[first:middle].copy()
    order[first : first + last - middle] = order[middle:last].copy()
    order[first + last - middle : last] = moved
    for at in range(first, last):
        place[order[at]] = at
    return True


@compiled
def _anneal(
    tables: Tables, start: Ints, size: int, tries: int, seed: int, nexts: Ints, use: Ints, mark: Ints, inside: Ints
) -> tuple[Ints, int]:
    np.random.seed(seed)
    count = len(start)
    order, place = start.copy(), np.empty(count, dtype=np.int64)
    for at in range(count):
        place[order[at]] = at
    cost = _cost(tables, order, size, np.inf, nexts, use, mark, inside)
    best, lowest = order.copy(), cost
    hottest = 0.03 * cost
    done = 0
    for _ in range(20 * tries):
        if done == tries or lowest == 0 or count < 2:
            break
        first = np.random.randint(0, count - 1)
        left, right = 1 + int(np.random.exponential(4.0)), 1 + int(np.random.exponential(4.0))
        kind = np.random.random()
        if kind < 0.4:
            left = 1
        elif kind < 0.7:
            right = 1
        elif kind < 0.8:
            left, right = 4 * left, 4 * right
        middle, last = first + left, min(count, first + left + right)
        if middle >= last or not _swap(tables, order, place, first, middle, last):
            continue
        done += 1
        heat = hottest * (1.0 - done / tries) ** 2
        limit = cost - heat * np.log(1.0 - np.random.random())
        new = _cost(tables, order, size, limit, nexts, use, mark, inside)
        if new <= limit:
            cost = new
            if cost < lowest:
                lowest = cost
                best[:] = order
        else:
            _swap(tables, order, place, first, first + last - middle, last)
    return best, lowest
