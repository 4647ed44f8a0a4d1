"""Offsets for buffers that live at known times in one address space: the smallest height, with a proof. Read this first.

No arrangement is lower than the largest sum of bytes alive at once. Greedy placements (``placement.py``) mostly reach that
bound; where none does and the instance is small enough, a search (``placement_exact.py``) finds an arrangement of a given
height or proves that there is none. Times without live bytes cut an instance into parts that are solved on their own.

Nothing here knows torch. Sizes and offsets are bytes; a buffer lives from ``lower`` up to, not including, ``upper``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from memcompile.solvers import work
from memcompile.solvers.places.placement import PlacementPart, placements
from memcompile.solvers.places.placement_exact import Verdict, search_height
from memcompile.solvers.schedule.simulate import Ints

EXACT_BUFFERS = 2000
"""Buffers of a part up to which it is searched."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """``size`` bytes, alive in ``[lower, upper)``. ``offset``: where it has to lie; None: anywhere.

    ``alias``: the name of a buffer that it lies in the storage of, ``shift`` bytes behind its start. A storage is alive from
    the first birth to the last death of its buffers, and covers them all.
    """

    name: str
    lower: int
    upper: int
    size: int
    offset: int | None = None
    alias: str | None = None
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each buffer lies, in the order given. No arrangement is lower than ``lower_bound``."""

    offsets: tuple[int, ...]
    height: int
    lower_bound: int
    method: str
    seconds: float

    @property
    def status(self) -> Literal["optimal", "bounded"]:
        """Whether the height is proven to be the smallest."""
        return "optimal" if self.height == self.lower_bound else "bounded"


class CapacityError(ValueError):
    """No arrangement within the capacity was found. ``proven``: there is none. ``best``: the lowest one found."""

    def __init__(self, capacity: int, best: Packing) -> None:
        self.capacity, self.best = capacity, best
        self.proven = best.lower_bound > capacity
        reason = f"no arrangement is below {best.lower_bound}" if self.proven else "more time may find one"
        super().__init__(f"capacity {capacity}: the lowest arrangement found has {best.height} bytes; {reason}")


class PackingError(ValueError):
    """Buffers or offsets that break a rule; the message names the buffer."""


def pack(
    buffers: Sequence[Buffer],
    *,
    capacity: int | None = None,
    alignment: int = 1,
    time_limit_s: float = 10.0,
    seed: int = 0,
) -> Packing:
    """Offsets of the smallest height found; with a ``capacity``, the first arrangement within it.

    Offsets, but for those of aliases, are multiples of ``alignment`` and sizes count as rounded up to it. The same input gives
    the same answer: the time limit is one of work (``work.py``). Raises ``CapacityError``, and ``PackingError`` for buffers
    that cannot be.
    """
    began, deadline = time.monotonic(), work.now() + time_limit_s
    check(buffers, alignment)
    storages, places = merge(buffers)
    parts = split(storages, alignment)
    goal = max([0, *(part.lower_bound for part in parts)])
    goal = goal if capacity is None else max(goal, capacity // alignment * alignment)
    offsets: Ints = np.zeros(len(storages), dtype=np.int64)
    height, lower_bound, method = 0, 0, "nothing to do"
    for part in sorted(parts, key=lambda part: -len(part.sizes)):
        left_s = deadline - work.now()
        found, bound, how = _solve(part, max(goal, height), capacity is None, left_s, seed)
        offsets[part.indices] = found
        if (top := int((found + part.sizes).max())) > height:
            height, method = top, how
        lower_bound = max(lower_bound, bound)
    starts = offsets.tolist()
    offsets_of_all = tuple(starts[storage] + shift for storage, shift in places)
    packing = Packing(offsets_of_all, height, lower_bound, method, time.monotonic() - began)
    if capacity is not None and height > capacity:
        raise CapacityError(capacity, packing)
    return packing


def _solve(part: PlacementPart, goal: int, smallest: bool, time_limit_s: float, seed: int) -> tuple[Ints, int, str]:
    """Offsets of one part, a height that none of its arrangements is below, and who found them.

    Ends at a height of ``goal``; where there is none, goes on to the smallest one if that is wanted. There is always one greedy
    placement, however long it takes; another only if one like the last ends in time.
    """
    deadline = work.now() + time_limit_s
    bound = part.lower_bound
    best, height, method = np.zeros(0, dtype=np.int64), -1, ""
    began = work.now()
    for name, offsets in placements(part):
        if height < 0 or part.height(offsets) < height:
            best, height, method = offsets, part.height(offsets), name
        now = work.now()
        if height <= goal or now + (now - began) > deadline:
            break
        began = now
    low = max(bound, goal)
    while height > low and len(part.sizes) <= EXACT_BUFFERS and (left_s := deadline - work.now()) > 0:
        verdict, offsets = search_height(part, low, left_s, seed)
        if verdict is Verdict.FOUND:
            best, height, method = offsets, part.height(offsets), "search"
        elif verdict is Verdict.NONE:
            bound = part.next_height(low)
        if verdict is Verdict.UNKNOWN or (verdict is Verdict.NONE and not smallest):
            break
        low = max(bound, goal, (bound + height) // 2 // part.unit * part.unit)
    return best, min(bound, height), method


def check(buffers: Sequence[Buffer], alignment: int = 1) -> None:
    """Raise ``PackingError`` for what cannot be placed: no lifetime, a negative size, fixed offsets that are not aligned or
    overlap."""
    if alignment < 1:
        raise PackingError(f"alignment {alignment}: a positive number of bytes, such as 64")
    for buffer in buffers:
        if buffer.upper <= buffer.lower:
            raise PackingError(f"{buffer.name}: lives in [{buffer.lower}, {buffer.upper}), which is empty")
        if buffer.size < 0:
            raise PackingError(f"{buffer.name}: {buffer.size} bytes")
        if buffer.offset is not None and (buffer.offset < 0 or buffer.offset % alignment):
            raise PackingError(f"{buffer.name}: its fixed offset {buffer.offset} is no multiple of the alignment {alignment}")
        if buffer.alias is not None and (buffer.offset is not None or buffer.shift < 0):
            raise PackingError(f"{buffer.name}: an alias has no offset of its own, and lies no bytes before {buffer.alias}")
    held = [(storage, storage.offset) for storage in merge(buffers)[0] if storage.offset is not None]
    validate([storage for storage, _ in held], [offset for _, offset in held], alignment=alignment)


def merge(buffers: Sequence[Buffer]) -> tuple[list[Buffer], list[tuple[int, int]]]:
    """The storages, and for each buffer the index of its storage and how many bytes behind the start of that it lies."""
    if all(buffer.alias is None for buffer in buffers):
        return list(buffers), [(i, 0) for i in range(len(buffers))]
    if len({buffer.name for buffer in buffers}) < len(buffers):
        raise PackingError("two buffers have the same name, and aliases refer to names")
    named = {buffer.name: buffer for buffer in buffers}
    numbers = {buffer.name: i for i, buffer in enumerate(buffer for buffer in buffers if buffer.alias is None)}
    storages = [named[name] for name in numbers]
    places = []
    for buffer in buffers:
        root, shift, seen = buffer, 0, {buffer.name}
        while root.alias is not None:
            if root.alias not in named or root.alias in seen:
                raise PackingError(f"{buffer.name}: an alias of {root.alias}, which is no buffer or again an alias of it")
            root, shift = named[root.alias], shift + root.shift
            seen.add(root.name)
        number = numbers[root.name]
        places.append((number, shift))
        whole = storages[number]
        lower, upper = min(whole.lower, buffer.lower), max(whole.upper, buffer.upper)
        storages[number] = replace(whole, lower=lower, upper=upper, size=max(whole.size, shift + buffer.size))
    return storages, places


def split(buffers: Sequence[Buffer], alignment: int = 1) -> list[PlacementPart]:
    """The parts of an instance between times at which nothing lives; buffers without bytes are in none."""
    order = sorted((i for i, buffer in enumerate(buffers) if buffer.size), key=lambda i: buffers[i].lower)
    groups: list[list[int]] = []
    end = 0
    for i in order:
        if not groups or buffers[i].lower >= end:
            groups.append([])
        groups[-1].append(i)
        end = max(end, buffers[i].upper)
    return [_part(buffers, sorted(group), alignment) for group in groups]


def _part(buffers: Sequence[Buffer], indices: list[int], alignment: int) -> PlacementPart:
    chosen = [buffers[i] for i in indices]
    sizes = np.array([-(-b.size // alignment) * alignment for b in chosen], dtype=np.int64)
    fixed = np.array([-1 if b.offset is None else b.offset for b in chosen], dtype=np.int64)
    lowers, uppers = (np.array([getattr(b, name) for b in chosen], dtype=np.int64) for name in ("lower", "upper"))
    return PlacementPart.of(np.array(indices, dtype=np.int64), lowers, uppers, sizes, fixed)


def validate(buffers: Sequence[Buffer], offsets: Sequence[int], *, alignment: int = 1, capacity: int | None = None) -> int:
    """Compare every pair of buffers; returns the height. Raises ``PackingError``. Shares no code with the solvers.

    Aliases may overlap within their storage. Towards all others each of them lives as long as that.
    """
    if len(offsets) != len(buffers):
        raise PackingError(f"{len(offsets)} offsets for {len(buffers)} buffers")
    height = 0
    merge(buffers)  # for its errors
    start_of = {buffer.name: offset for buffer, offset in zip(buffers, offsets, strict=True)}
    for buffer, offset in zip(buffers, offsets, strict=True):
        if buffer.alias is not None and offset != start_of[buffer.alias] + buffer.shift:
            raise PackingError(f"{buffer.name}: at {offset}, but it has to lie {buffer.shift} bytes behind {buffer.alias}")
        if offset < 0 or (offset % alignment and buffer.alias is None):
            raise PackingError(f"{buffer.name}: offset {offset} is no multiple of the alignment {alignment}")
        if buffer.offset is not None and buffer.size and offset != buffer.offset:
            raise PackingError(f"{buffer.name}: at {offset}, but it has to lie at {buffer.offset}")
        height = max(height, -(-(offset + buffer.size) // alignment) * alignment)
    if capacity is not None and height > capacity:
        raise PackingError(f"{height} bytes, above the capacity of {capacity}")
    storage = _storages(buffers)
    lower, upper, size, start = (
        np.array(column, dtype=np.int64).reshape(-1)
        for column in ([b.lower for b in buffers], [b.upper for b in buffers], [b.size for b in buffers], list(offsets))
    )
    born, dead = lower.copy(), upper.copy()
    np.minimum.at(born, storage, lower)
    np.maximum.at(dead, storage, upper)
    lower, upper = born[storage], dead[storage]
    for i, buffer in enumerate(buffers):
        both = (lower[i + 1 :] < upper[i]) & (upper[i + 1 :] > lower[i]) & (storage[i + 1 :] != storage[i])
        both &= (start[i + 1 :] < offsets[i] + buffer.size) & (start[i + 1 :] + size[i + 1 :] > offsets[i])
        both &= (size[i + 1 :] > 0) & (buffer.size > 0)
        if both.any():
            other = buffers[i + 1 + int(np.argmax(both))]
            raise PackingError(f"{buffer.name} and {other.name} live at the same time and overlap")
    return height


def _storages(buffers: Sequence[Buffer]) -> Ints:
    """For each buffer the index of the one that is no alias."""
    index = {buffer.name: i for i, buffer in enumerate(buffers)}
    roots = np.array([i if b.alias is None else index[b.alias] for i, b in enumerate(buffers)], dtype=np.int64)
    for _ in range(len(buffers).bit_length()):
        roots = roots[roots]
    return roots
