"""Order and replacement together, proven: the cheapest way through all states that a small network can be in.

A state is which operators have run, which tensors lie in the scratchpad, and which have been stored. Its cost is the bytes
moved so far, and those that are already due: a tensor that makes room will be loaded again, which is paid as it goes. States
are taken in the order of their cost (Dijkstra), so the first one in which all has run is the cheapest, and at any time no
solution is cheaper than the state in hand. Places are not looked at: with them it can only cost more.

Two rules keep the states few. Paid in advance, a tensor outside is worth no less than one inside: of two states with the same
operators run, one can always be turned into the other by evictions, and is needless if that is not dearer. And an operator
whose results need no more room than an operand that dies in it runs at once, where that operand would have cost as much to
evict.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from memcompile.solvers.scratchpad.gaps import store_bytes
from memcompile.solvers.scratchpad.problem import ScratchpadProblem

History = tuple["History", int] | None


@dataclass(frozen=True, slots=True)
class ExactOrder:
    """``order``: None where the states ran out. No order moves fewer than ``bound_bytes``."""

    order: tuple[int, ...] | None
    bound_bytes: int


@dataclass(slots=True)
class _State:
    """``done``, ``ready``: operators, ``inside``, ``stored``: tensors that will be read again, as bits. ``held``: bytes
    inside."""

    cost: int
    done: int
    ready: int
    inside: int
    stored: int
    held: int
    history: History


def cheapest(problem: ScratchpadProblem, size_bytes: int, states: int, limit: int | None = None) -> ExactOrder:
    """An order with the fewest non-compulsory bytes. ``states``: how many may be made. ``limit``: only orders below it are
    wanted: where there is none the bound is the limit."""
    return _Search(problem, size_bytes).run(states, limit)


class _Search:
    def __init__(self, problem: ScratchpadProblem, size_bytes: int) -> None:
        self.problem, self.size = problem, size_bytes
        self.sizes = [tensor.size_bytes for tensor in problem.tensors]
        self.stores = [store_bytes(problem, t) for t in range(len(problem.tensors))]
        self.touched = [_bits(touched) for touched in problem.touches]
        self.written = [_bits(op.writes) for op in problem.ops]
        self.sources = [_bits(sources) for sources in problem.sources]
        self.readers = [0] * len(problem.tensors)
        for index, op in enumerate(problem.ops):
            for tensor in op.reads:
                self.readers[tensor] |= 1 << index
        self.first = sum(1 << op for op, sources in enumerate(self.sources) if not sources)
        self.everything = (1 << len(problem.ops)) - 1

    def run(self, states: int, limit: int | None) -> ExactOrder:
        """See ``cheapest``."""
        queue: list[tuple[int, int, int, int, _State]] = [(0, 0, 0, 0, self._settled(_State(0, 0, self.first, 0, 0, 0, None)))]
        serial = 0
        settled: dict[int, list[_State]] = {}
        cost = 0
        while queue:
            cost, *_, state = heapq.heappop(queue)
            if limit is not None and cost >= limit:
                return ExactOrder(None, limit)
            if state.done == self.everything:
                return ExactOrder(_sequence(state.history), cost)
            known = settled.setdefault(state.done, [])
            if any(self._replaces(other, state) for other in known):
                continue
            known.append(state)
            for following in self._following(state):
                states -= 1
                if states < 0:
                    return ExactOrder(None, cost if limit is None else min(limit, cost))
                if not any(self._replaces(other, following) for other in settled.get(following.done, ())):
                    serial += 1
                    rank = -following.done.bit_count()
                    heapq.heappush(queue, (following.cost, rank, following.held, serial, following))
        raise AssertionError("every operator alone fits, so there is always a way on")

    def _following(self, state: _State) -> Iterator[_State]:
        for op in _members(state.ready):
            yield from (self._settled(ran) for ran in self._ways(state, op))

    def _ways(self, state: _State, op: int) -> Iterator[_State]:
        """``op`` run after the fewest evictions: every set of victims of which none could stay."""
        touched = self.touched[op]
        added = self._bytes(touched & ~state.inside)
        excess = state.held + added - self.size
        if excess <= 0:
            yield self._ran(state, op, added, 0, 0)
            return
        victims = sorted(_members(state.inside & ~touched), key=lambda t: -self.sizes[t])
        for chosen, freed in _covers([self.sizes[t] for t in victims], excess):
            gone = _bits(victims[index] for index in chosen)
            yield self._ran(state, op, added, gone, freed)

    def _ran(self, state: _State, op: int, added: int, gone: int, freed: int) -> _State:
        cost = state.cost + self._price(gone, state.stored)
        done = state.done | 1 << op
        inside = (state.inside & ~gone) | self.touched[op]
        stored = state.stored | gone
        held = state.held + added - freed
        for tensor in _members(self.touched[op]):
            if not self.readers[tensor] & ~done:
                held -= self.sizes[tensor]
                inside &= ~(1 << tensor)
                stored &= ~(1 << tensor)
        ready = state.ready & ~(1 << op)
        for reader in self.problem.readers[op]:
            if not self.sources[reader] & ~done:
                ready |= 1 << reader
        return _State(cost, done, ready, inside, stored, held, (state.history, op))

    def _settled(self, state: _State) -> _State:
        """With all that costs nothing to run now."""
        again = True
        while again:
            again = False
            for op in _members(state.ready):
                if self._is_free(state, op):
                    added = self._bytes(self.touched[op] & ~state.inside)
                    state = self._ran(state, op, added, 0, 0)
                    again = True
        return state

    def _is_free(self, state: _State, op: int) -> bool:
        """Whether no plan loses by running ``op`` now."""
        done = state.done | 1 << op
        outside = self.touched[op] & ~self.written[op] & ~state.inside
        written = self._bytes(self.written[op])
        if outside or state.held + written > self.size:
            return False
        lasting = sum(self.sizes[t] for t in _members(self.written[op]) if self.readers[t] & ~done)
        dying = (t for t in self.problem.ops[op].reads if not self.readers[t] & ~done)
        dear = (t for t in dying if self.stores[t] == self.sizes[t] and not state.stored >> t & 1)
        return lasting == 0 or any(self.sizes[t] >= lasting for t in dear)

    def _replaces(self, one: _State, other: _State) -> bool:
        """Whether ``one`` is never dearer than ``other``; both have run the same operators."""
        price = one.cost + self._price(one.inside & ~other.inside, one.stored)
        late = one.inside & other.inside & other.stored & ~one.stored
        return price + sum(self.stores[t] for t in _members(late)) <= other.cost

    def _price(self, gone: int, stored: int) -> int:
        """Bytes of evicting tensors and of loading them again."""
        return sum(self.sizes[t] + (0 if stored >> t & 1 else self.stores[t]) for t in _members(gone))

    def _bytes(self, mask: int) -> int:
        return sum(self.sizes[t] for t in _members(mask))


def _covers(sizes: list[int], excess: int) -> Iterator[tuple[list[int], int]]:
    """Sets of indices whose sizes reach ``excess`` and of which none can be left out, with their sum. ``sizes`` decrease."""
    chosen: list[int] = []

    def extend(start: int, total: int, rest: int) -> Iterator[tuple[list[int], int]]:
        if total >= excess:
            if not chosen or total - sizes[chosen[-1]] < excess:
                yield list(chosen), total
            return
        if total + rest < excess:
            return
        for index in range(start, len(sizes)):
            chosen.append(index)
            yield from extend(index + 1, total + sizes[index], sum(sizes[index + 1 :]))
            chosen.pop()

    yield from extend(0, 0, sum(sizes))


def _bits(items: object) -> int:
    mask = 0
    for item in items:  # type: ignore[attr-defined]
        mask |= 1 << item
    return mask


def _members(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _sequence(history: History) -> tuple[int, ...]:
    found = []
    while history is not None:
        history, op = history
        found.append(op)
    return tuple(found[::-1])
