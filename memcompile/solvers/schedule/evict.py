"""A schedule under a cap of bytes, greedily: evict what is cheapest to remake per byte and needed furthest away.

Dynamic tensor rematerialization (Kirisame et al., 2021, section 4.1, their score h) with the future known: the next use
replaces staleness. It finds plans for tight budgets where the models of ``frontier`` see too few instants; it promises no
optimality.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left

from memcompile.solvers import work
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import RematSchedule

DEPTH = 64  # ancestors looked at when a remake is priced
EXECUTION_S = 1.5e-5


class CapExceededError(Exception):
    """The greedy decoder found no way to run an op within the cap."""


class CappedDecoder:
    """State of one decoding. Invariant: ``used`` = base + bytes of resident storages, at most ``cap`` at each execution."""

    def __init__(self, index: RematIndex, cap: int, max_executions: int, distance_power: float, order: int) -> None:
        self.index, self.cap, self.max_executions = index, cap, max_executions
        self.power, self.order, self.random = distance_power, order, random.Random(order)
        self.weight = [4.0 ** self.random.uniform(-1, 1) if order > 1 else 1.0 for _ in index.sizes]
        self.used = index.problem.base_bytes
        self.resident = bytearray(len(index.sizes))
        self.pins = [0] * len(index.sizes)
        self.wanted: dict[int, int] = {}  # storage -> op: next use through something evicted
        self.sequence: list[int] = []
        self.heap: list[tuple[float, int]] = []
        self.now = 0

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
            if not index.again[p]:
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
        return self.weight[s] * self.remake_seconds(s) / (max(1, self.index.sizes[s]) * distance)

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

    def make_room(self, size: int) -> bool:
        """Evict until ``size`` more bytes fit; False when they cannot."""
        aside: list[tuple[float, int]] = []
        while self.used + size > self.cap:
            if not self.heap:
                break
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
        return self.used + size <= self.cap

    def execute(self, p: int, base: bool) -> None:
        """Run p, whose reads are resident and pinned."""
        index = self.index
        op = index.problem.ops[p]
        grow = op.workspace_bytes + sum(index.sizes[s] for s in index.writes[p] if not self.resident[s])
        reused: list[int] = []
        if op.inplace:
            dead = self._in_place(p, base, sacrifice=False)
            grow -= sum(index.sizes[s] for s in dead)
        if not self.make_room(grow):
            if op.inplace:
                reused = self._in_place(p, base, sacrifice=True)
                grow += sum(index.sizes[s] for s in dead) - sum(index.sizes[s] for s in reused)
            if not reused or not self.make_room(grow):
                raise CapExceededError
        if len(self.sequence) >= self.max_executions:
            raise CapExceededError
        self.sequence.append(p)
        work.spend(EXECUTION_S)
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
        for s in reused:
            self.evict(s)

    def _in_place(self, p: int, base: bool, sacrifice: bool) -> list[int]:
        """Reads whose place the writes of p take: those that nothing needs after it, or any that can be remade."""
        index = self.index
        free: dict[int, list[int]] = {}
        saved, self.now = self.now, p + 1 if base else self.now
        for s in sorted(index.reads[p], key=self.next_use):
            dead = self.next_use(s) == float("inf")
            spare = dead or (sacrifice and index.again[index.producer[s]])
            if spare and not index.output[s] and self.pins[s] <= 1:
                free.setdefault(index.sizes[s], []).append(s)
        self.now = saved
        return [free[size].pop() for size in (index.sizes[s] for s in index.writes[p]) if free.get(size)]

    def _choose(self, missing: list[int]) -> int | None:
        """The missing read to make next."""
        if not missing:
            return None
        if self.order == 1:
            return max(missing, key=self.footprint)
        return missing[0] if self.order == 0 else self.random.choice(missing)

    def footprint(self, s: int) -> int:
        """Bytes held while s is made, beside s itself."""
        index, p = self.index, self.index.producer[s]
        held = sum(index.sizes[u] for u in {*index.reads[p], *index.writes[p]})
        return held + index.problem.ops[p].workspace_bytes - index.sizes[s]

    def run(self, target: int) -> None:
        """Run base op ``target``, making what it reads (depth first, reads of unfinished ops pinned)."""
        index = self.index
        frames: list[tuple[int, list[int]]] = [(target, [])]
        active = {target}
        while frames:
            p, pinned = frames[-1]
            gone = self._choose([s for s in index.reads[p] if not self.resident[s]])
            for s in index.reads[p]:
                if self.resident[s] and s not in pinned:
                    pinned.append(s)
                    self.pins[s] += 1
            if gone is not None:
                child = index.producer[gone]
                if child in active or not index.again[child]:
                    raise CapExceededError
                frames.append((child, []))
                active.add(child)
                continue
            self.execute(p, base=len(frames) == 1)
            for s in pinned:
                self.pins[s] -= 1
            frames.pop()
            active.discard(p)


def decode_capped(
    index: RematIndex, cap: int, *, max_executions: int, distance_power: float = 0.5, order: int = 0
) -> RematSchedule:
    """A schedule whose executions each hold at most ``cap`` bytes (up to in-place reuse); CapExceededError when none is found.

    ``distance_power``: how much the distance of the next use counts against the price of a remake. ``order``: which
    missing read of an op is made first: 0 the first, 1 the one that needs the most room beside itself (Sethi and Ullman, 1970),
    from 2 on any, with noise on the scores (a seed).
    """
    decoder = CappedDecoder(index, cap, max_executions, distance_power, order)
    for p in range(index.problem.boundary):
        decoder.run(p)
    split = len(decoder.sequence)
    for p in range(index.problem.boundary, len(index.reads)):
        decoder.run(p)
    return RematSchedule(tuple(decoder.sequence), split)
