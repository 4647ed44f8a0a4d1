"""A number of bytes that no schedule stays below.

At the first execution of op w there are alive: what w reads, what it adds, every output created before, and every storage that
cannot be made again and is needed from then on. That alone misses how the reads came to be alive together, so the bound looks
back: let Q be alive at once when the base order has reached op w (ops before w have run, w has not). The last execution that
happened before, among those that write a part of Q and the first execution of op w-1, is one of

- a remake e of some of Q, while the rest of Q was alive: Q minus its writes, plus its reads, were alive just before it;
- op w-1 itself: Q minus its writes, plus its reads, were alive just before it, and the base order had reached w-1.

Each is an execution with a known least memory, and a new Q. The bound of Q is the least over these cases of the larger of that
memory and the bound of the new Q, to a fixed depth (at depth 0 it is nothing, which is valid).
"""

from __future__ import annotations

from dataclasses import dataclass

from memcompile.solvers.schedule.index import RematIndex


@dataclass(slots=True)
class Lookback:
    """The recursion, with a bounded number of cases. ``held[w]``: bytes of base, outputs, unmakeable storages at progress w."""

    index: RematIndex
    held: list[int]
    fixed: list[set[int]]
    nodes: int

    def execution_bytes(self, p: int, w: int, rest: frozenset[int]) -> int:
        """Least memory while p runs at progress w, with ``rest`` alive and needed after it."""
        index, fixed = self.index, self.fixed[w]
        alive = {*rest, *index.reads[p]} - fixed
        op = index.problem.ops[p]
        total = self.held[w] + op.workspace_bytes + sum(index.sizes[s] for s in (*alive, *index.writes[p]))
        if not op.inplace:
            return total
        free = [index.sizes[s] for s in index.reads[p] if s not in rest and not index.output[s]]
        for s in index.writes[p]:
            if index.sizes[s] in free:
                free.remove(index.sizes[s])
                total -= index.sizes[s]
        return total

    def bound(self, needed: frozenset[int], w: int, depth: int, enough: int) -> int:
        """Least peak of what led to ``needed`` alive at progress w; stops early at any value up to ``enough``."""
        if depth == 0 or w == 0 or self.nodes <= 0:
            return 0
        index = self.index
        cases: list[tuple[int, int, int, frozenset[int]]] = []
        makers = {index.producer[s] for s in needed if not index.output[s]}
        for p in {*(p for p in makers if p < w and index.again[p]), w - 1}:
            rest = needed.difference(index.writes[p])
            before = rest.union(index.reads[p])
            if p != w - 1:
                cases.append((self.execution_bytes(p, w, rest), p, w, before))
                continue
            cases.append((self.execution_bytes(p, w - 1, rest), p, w - 1, before))
            if p in makers and index.again[p]:
                cases.append((self.execution_bytes(p, w, rest), p, w, before))
        best = -1
        for size, _, progress, before in sorted(cases, key=lambda c: c[:3]):
            if 0 <= best <= size:
                break
            self.nodes -= 1
            value = max(size, self.bound(before, progress, depth - 1, max(enough, size)))
            best = value if best < 0 else min(best, value)
            if best <= enough:
                break
        return max(best, 0)


def floor_bound(index: RematIndex, depth: int = 8, nodes: int = 60_000) -> int:
    """Largest over all ops of the bound at the op's first execution."""
    look = Lookback(index, *_held(index), nodes)
    direct = _direct(look)
    best = max(direct.values(), default=index.problem.base_bytes)
    order = sorted(direct, key=lambda w: -direct[w])
    for w in order:
        if look.nodes <= 0:
            break
        share = min(look.nodes, 2_000)
        left, look.nodes = look.nodes - share, share
        best = max(best, look.bound(frozenset(index.reads[w]), w, depth, best))
        look.nodes += left
    return best


def quick_bound(index: RematIndex) -> int:
    """The same without looking back: smaller, and found at once."""
    return max(_direct(Lookback(index, *_held(index), 0)).values(), default=index.problem.base_bytes)


def _direct(look: Lookback) -> dict[int, int]:
    return {w: look.execution_bytes(w, w, frozenset()) for w in range(len(look.index.reads))}


def _held(index: RematIndex) -> tuple[list[int], list[set[int]]]:
    """Per progress w: bytes of base, outputs and unmakeable storages that are alive for certain; and which these are."""
    count = len(index.reads)
    enter: list[list[int]] = [[] for _ in range(count + 1)]
    leave: list[list[int]] = [[] for _ in range(count + 1)]
    for s, p in enumerate(index.producer):
        if index.output[s]:
            enter[p + 1].append(s)
        elif not index.again[p]:
            last = max(index.readers[s], default=-1)
            if last > p:
                enter[p + 1].append(s)
                leave[last + 1 if last + 1 <= count else count].append(s)
    now: set[int] = set()
    held: list[int] = []
    fixed: list[set[int]] = []
    for w in range(count + 1):
        if enter[w] or leave[w]:
            now = (now | set(enter[w])) - set(leave[w])
        held.append(
            index.problem.base_bytes + sum(index.sizes[s] for s in now) if enter[w] or leave[w] or not held else held[-1]
        )
        fixed.append(now)
    return held, fixed
