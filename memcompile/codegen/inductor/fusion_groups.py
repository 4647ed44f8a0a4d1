"""Which kernels Inductor's scheduler fuses: a greedy model of it.

Two kernels may share their loops when they run over the same elements and neither has to wait for a third one between them.
The CPU also fuses a reduction with what follows over the same outer loops (softmax, layer norm).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from torch import fx

from memcompile.step.fxutil import node_bytes, none_between

Reads = frozenset[fx.Node]

NEAR = 64
"""Kernels further apart than this that only read the same data are left apart: fusing them could raise the peak."""
MAX_KERNELS = 64
"""Kernels in one fused kernel at most (``max_fusion_size``)."""
MAX_READERS = 24
"""Readers of one buffer that are paired with each other."""


@dataclass(frozen=True, slots=True)
class Loops:
    """Lengths of the loops of a kernel: those over its result and, for a reduction, those that it reduces."""

    kept: tuple[int, ...]
    reduced: tuple[int, ...]

    @property
    def total(self) -> int:
        """Iterations in all."""
        return math.prod(self.kept) * math.prod(self.reduced)


@dataclass(slots=True, eq=False)
class FusionKernel:
    """``root``: the node it computes. ``loops`` is None for a library kernel. ``results``: items of a tuple that it makes."""

    root: fx.Node
    reads: Reads
    loops: Loops | None
    results: list[fx.Node] = field(default_factory=list)

    def written(self) -> list[fx.Node]:
        """The nodes whose buffers it fills."""
        return self.results or ([self.root] if node_bytes(self.root) else [])


@dataclass(slots=True, eq=False)
class _Group:
    members: list[int]
    first: int
    last: int
    sources: set[int]
    users: set[int]


def fuse(kernels: list[FusionKernel], recomputed: Collection[int] | None = None) -> list[list[FusionKernel]]:
    """Fused kernels in the order in which they run; the members of each in the order given.

    ``recomputed``: of a planned graph, the kernels that run again. They are not fused with others that only read the same data,
    and nothing is fused over a library kernel (``codegen/inductor/fusion.py``).
    """
    scheduler = _Scheduler(kernels, recomputed)
    scheduler.run()
    return [[kernels[index] for index in sorted(group.members)] for group in scheduler.ordered()]


class _Scheduler:
    def __init__(self, kernels: list[FusionKernel], recomputed: Collection[int] | None) -> None:
        self.kernels = kernels
        self.recomputed = recomputed or ()
        self.barriers = [] if recomputed is None else [i for i, kernel in enumerate(kernels) if kernel.loops is None]
        maker = {node: index for index, kernel in enumerate(kernels) for node in (kernel.root, *kernel.results)}
        sources = [{maker[node] for node in kernel.reads if node in maker} - {i} for i, kernel in enumerate(kernels)]
        self.groups = [_Group([i], i, i, set(found), set()) for i, found in enumerate(sources)]
        self.of = list(range(len(kernels)))
        for index, found in enumerate(sources):
            for source in found:
                self.groups[source].users.add(index)
        self.sources = sources

    def run(self) -> None:
        """Fuse pairs, those that share most bytes first, until nothing changes."""
        pairs = sorted(self._pairs(), key=lambda pair: (-pair[0], pair[2] - pair[1], pair[1]))
        for _ in range(4):
            if not sum(self._try(first, second) for _, first, second in pairs):
                break

    def _pairs(self) -> Iterator[tuple[int, int, int]]:
        readers: dict[fx.Node, list[int]] = {}
        for index, kernel in enumerate(self.kernels):
            if kernel.loops is not None:
                for node in kernel.reads:
                    readers.setdefault(node, []).append(index)
        shared: dict[tuple[int, int], int] = {}
        for index, kernel in enumerate(self.kernels):
            for node in kernel.written() if kernel.loops is not None else ():
                for user in readers.get(node, ()):
                    shared[index, user] = shared.get((index, user), 0) + node_bytes(node)
        for node, indices in readers.items():
            for place, first in enumerate(indices):
                for second in indices[place + 1 : place + MAX_READERS]:
                    if second - first <= NEAR and (first in self.recomputed) == (second in self.recomputed):
                        shared[first, second] = shared.get((first, second), 0) + node_bytes(node)
        for (first, second), size in shared.items():
            if first != second:
                yield size, min(first, second), max(first, second)

    def _try(self, first: int, second: int) -> bool:
        one, two = self.groups[self.of[first]], self.groups[self.of[second]]
        if one is two or len(one.members) + len(two.members) > MAX_KERNELS:
            return False
        if not self._is_near(one, two) or not self._compatible(one, two) or self._waits(one, two) or self._waits(two, one):
            return False
        self._merge(one, two)
        return True

    def _is_near(self, one: _Group, two: _Group) -> bool:
        """Whether no library kernel of a planned graph stands between the two."""
        first, second = sorted((one, two), key=lambda group: group.first)
        return none_between(self.barriers, first.last, second.first)

    def _compatible(self, one: _Group, two: _Group) -> bool:
        for a in one.members:
            for b in two.members:
                first, second = self.kernels[min(a, b)], self.kernels[max(a, b)]
                depends = self.of[min(a, b)] in {self.of[s] for s in self.sources[max(a, b)]} and any(
                    node in second.reads for node in (first.root, *first.results)
                )
                if first.loops is None or second.loops is None or not _share_loops(first.loops, second.loops, depends):
                    return False
        return True

    def _waits(self, one: _Group, two: _Group) -> bool:
        """Whether ``two`` needs something that needs ``one`` and is in neither."""
        own, target = self.of[one.members[0]], self.of[two.members[0]]
        stack = [user for user in one.users if user not in (own, target)]
        seen = set(stack)
        while stack:
            group = self.groups[stack.pop()]
            if group.first > two.last:
                continue
            for user in group.users:
                if user == target:
                    return True
                if user not in seen and user != own:
                    seen.add(user)
                    stack.append(user)
        return False

    def _merge(self, one: _Group, two: _Group) -> None:
        kept, gone = self.of[one.members[0]], self.of[two.members[0]]
        for index in two.members:
            self.of[index] = kept
        one.members += two.members
        one.first, one.last = min(one.first, two.first), max(one.last, two.last)
        for source in two.sources:
            self.groups[source].users.discard(gone)
            self.groups[source].users.add(kept)
        for user in two.users:
            self.groups[user].sources.discard(gone)
            self.groups[user].sources.add(kept)
        one.sources = (one.sources | two.sources) - {kept, gone}
        one.users = (one.users | two.users) - {kept, gone}

    def ordered(self) -> Iterator[_Group]:
        """Groups so that each follows what it reads, otherwise by their last member."""
        done: set[int] = set()
        for start in sorted(set(self.of), key=lambda index: self.groups[index].last):
            stack = [start]
            while stack:
                index = stack[-1]
                missing = sorted(source for source in self.groups[index].sources if source not in done)
                if index in done or not missing:
                    stack.pop()
                    if index not in done:
                        done.add(index)
                        yield self.groups[index]
                else:
                    stack += missing


def _share_loops(first: Loops, second: Loops, depends: bool) -> bool:
    """Whether ``second`` may run inside the loops of ``first``."""
    if not first.reduced and not second.reduced:
        return first.total == second.total
    if first.reduced and second.reduced:
        same = first.kept == second.kept and first.reduced == second.reduced
        return (same and not depends) or _outer(first, second)
    if second.reduced:  # an elementwise kernel before or beside a reduction
        return first.kept == second.kept + second.reduced or (first.total == second.total and _trailing(first, second))
    return _outer(first, second)


def _trailing(elementwise: Loops, reduction: Loops) -> bool:
    """Whether the reduction runs over the innermost dimensions of the elements."""
    rest = math.prod(reduction.reduced)
    for length in reversed(elementwise.kept):
        if rest % length:
            return False
        rest //= length
        if rest == 1:
            return True
    return rest == 1


def _outer(first: Loops, second: Loops) -> bool:
    """Whether a reduction and what follows it share their outer loops."""
    rows = math.prod(first.kept)
    if rows <= 1 or not second.kept:
        return False
    count = 1
    for length in second.kept:
        if count == rows:
            break
        count *= length
    return count == rows
