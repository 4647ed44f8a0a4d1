"""A schedule under a cap of bytes, greedily: evict what is cheapest to remake per byte and needed furthest away.

Dynamic tensor rematerialization (Kirisame et al., 2021, section 4.1, their score h) with the future known: the next use
replaces staleness. It finds plans for tight budgets where the models of ``frontier`` see too few instants; it promises no
optimality.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left

from memcompile.solvers.index import Index
from memcompile.solvers.problem import Schedule

DEPTH = 64  # ancestors looked at when a remake is priced


class CapExceededError(Exception):
    """The greedy decoder found no way to run an op within the cap."""


class CappedDecoder:
    """State of one decoding. Invariant: ``used`` = base + bytes of resident storages, at most ``cap`` at each execution."""

    def __init__(self, index: Index, cap: int, max_executions: int, distance_power: float) -> None:
        self.index, self.cap, self.max_executions, self.power = index, cap, max_executions, distance_power
        self.used = index.problem.base_bytes
        self.resident = bytearray(len(index.sizes))
        self.executed = bytearray(len(index.reads))
        self.pins = [0] * len(index.sizes)
        self.wanted: dict[int, int] = {}  # storage -> op: next use through something evicted
        self.sequence: list[int] = []
        self.heap: list[tuple[float, int]] = []
        self.now = 0

    def may_run(self, p: int) -> bool:
        """Whether p may run now outside the base order."""
        return self.index.again[p] or (self.index.deferrable[p] and not self.executed[p])

    def next_use(self, s: int) -> float:
        """Base op that next needs s, directly or to remake what was evicted; infinity when none."""
        readers = self.index.readers[s]
        i = bisect_left(readers, self.now)
        direct = float(readers[i]) if i < len(readers) else float("inf")
        return min(direct, float(self.wanted.get(s, direct)))

    def remake_seconds(self, s: int) -> float:
        """Seconds to make s again from what is resident (ancestors counted once, up to a depth); infinity when it cannot be."""
        index, resident = self.index, self.resident
        seen: set[int] = set()
        stack = [index.producer[s]]
        total = 0.0
        while stack and len(seen) < DEPTH:
            p = stack.pop()
            if p in seen:
                continue
            if not self.may_run(p):
                return float("inf")
            seen.add(p)
            total += index.seconds[p]
            stack.extend(index.producer[u] for u in index.reads[p] if not resident[u])
        return total

    def score(self, s: int) -> float:
        """Cost of losing s: seconds per byte and per distance of the next use."""
        use = self.next_use(s)
        if use == float("inf"):
            return 0.0
        distance: float = max(1.0, use - self.now) ** self.power
        return self.remake_seconds(s) / (max(1, self.index.sizes[s]) * distance)

    def evictable(self, s: int) -> bool:
        """Whether s may leave memory now."""
        if self.pins[s] or self.index.output[s] or not self.resident[s]:
            return False
        return self.index.again[self.index.producer[s]] or self.next_use(s) == float("inf")

    def evict(self, s: int) -> None:
        """Drop s; its parents are wanted when it is."""
        self.resident[s] = 0
        self.used -= self.index.sizes[s]
        stack = [(s, self.next_use(s))]
        while stack:
            u, use = stack.pop()
            if use == float("inf"):
                continue
            for v in self.index.reads[self.index.producer[u]]:
                if use < self.wanted.get(v, float("inf")):
                    self.wanted[v] = int(use)
                    if self.resident[v]:
                        heapq.heappush(self.heap, (self.score(v), v))
                    else:
                        stack.append((v, use))

    def make_room(self, size: int) -> None:
        """Evict until ``size`` more bytes fit."""
        aside: list[tuple[float, int]] = []
        while self.used + size > self.cap:
            if not self.heap:
                raise CapExceededError
            old, s = heapq.heappop(self.heap)
            if not self.resident[s]:
                continue
            if not self.evictable(s):
                aside.append((old, s))
                continue
            new = self.score(s)
            if new == float("inf"):
                aside.append((new, s))
                continue
            if new > old * 1.05:
                heapq.heappush(self.heap, (new, s))
                continue
            self.evict(s)
        for entry in aside:
            heapq.heappush(self.heap, entry)

    def execute(self, p: int, base: bool) -> None:
        """Run p, whose reads are resident and pinned."""
        index = self.index
        op = index.problem.ops[p]
        grow = op.workspace_bytes + sum(index.sizes[s] for s in index.writes[p] if not self.resident[s])
        if op.inplace:
            grow -= self._in_place(p, base)
        self.make_room(grow)
        if len(self.sequence) >= self.max_executions:
            raise CapExceededError
        self.sequence.append(p)
        self.executed[p] = 1
        if base:
            self.now = p + 1
        for s in index.writes[p]:
            if not self.resident[s]:
                self.resident[s] = 1
                self.used += index.sizes[s]
            if self.wanted.get(s, self.now) < self.now:
                del self.wanted[s]
            heapq.heappush(self.heap, (self.score(s), s))
        for s in index.reads[p]:
            if base and self.wanted.get(s, self.now) < self.now:
                del self.wanted[s]
            heapq.heappush(self.heap, (self.score(s), s))

    def _in_place(self, p: int, base: bool) -> int:
        """Bytes that p reuses: reads that nothing needs after it. They are evicted here, before the writes are counted."""
        index = self.index
        free: dict[int, int] = {}
        saved, self.now = self.now, p + 1 if base else self.now
        for s in index.reads[p]:
            if not index.output[s] and self.pins[s] <= 1 and self.next_use(s) == float("inf"):
                free[index.sizes[s]] = free.get(index.sizes[s], 0) + 1
        self.now = saved
        reused = 0
        for s in index.writes[p]:
            if free.get(index.sizes[s], 0):
                free[index.sizes[s]] -= 1
                reused += index.sizes[s]
        return reused

    def run(self, target: int) -> None:
        """Run base op ``target``, making what it reads (depth first, reads of unfinished ops pinned)."""
        index = self.index
        frames: list[tuple[int, list[int]]] = [(target, [])]
        active = {target}
        while frames:
            p, pinned = frames[-1]
            gone = next((s for s in index.reads[p] if not self.resident[s]), None)
            for s in index.reads[p]:
                if self.resident[s] and s not in pinned:
                    pinned.append(s)
                    self.pins[s] += 1
            if gone is not None:
                child = index.producer[gone]
                if child in active or not self.may_run(child):
                    raise CapExceededError
                frames.append((child, []))
                active.add(child)
                continue
            self.execute(p, base=len(frames) == 1)
            for s in pinned:
                self.pins[s] -= 1
            frames.pop()
            active.discard(p)


def decode_capped(index: Index, cap: int, *, max_executions: int, distance_power: float = 1.0) -> Schedule:
    """A schedule whose executions each hold at most ``cap`` bytes (up to in-place reuse); CapExceededError when none is found.

    ``distance_power``: how much the distance of the next use counts against the price of a remake.
    """
    decoder = CappedDecoder(index, cap, max_executions, distance_power)
    boundary = index.problem.boundary
    split = None
    for p in range(len(index.reads)):
        if p == boundary:
            split = _cross(decoder)
        if not (index.deferrable[p] and p < boundary):
            decoder.run(p)
    if split is None:
        split = _cross(decoder)
    for p, done in enumerate(decoder.executed):
        if not done:
            decoder.run(p)
    return Schedule(tuple(decoder.sequence), split)


def _cross(decoder: CappedDecoder) -> int:
    """Evict what may not be saved."""
    for s, flag in enumerate(decoder.index.forbidden):
        if flag and decoder.resident[s]:
            decoder.evict(s)
    return len(decoder.sequence)
