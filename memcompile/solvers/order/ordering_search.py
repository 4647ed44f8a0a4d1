"""Searches for an order of kernels with a small peak, over the sets of kernels that may have run so far.

What is alive between two kernels depends on which have run, not on their order (Ahn et al., "Ordering chaos: memory-aware
scheduling of irregularly wired neural networks for edge devices", MLSys 2020, section 3): a state is a set of kernels as bits.
A kernel that can run within the peak reached so far, and leaves no more alive than before, can run at once: moved to the
front of any continuation it raises nothing. So chains take no search at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memcompile.solvers.order.ordering import OrderProblem

FIRST_WINDOW = 64
"""Kernels in a window to begin with."""

History = tuple["History", int] | None
"""The kernels run so far, last one first."""


@dataclass(slots=True)
class OrderEffort:
    """Steps left: a step is one kernel tried in one state (a few microseconds)."""

    steps: int

    def spend(self) -> bool:
        """Take a step; whether there was one."""
        self.steps -= 1
        return self.steps >= 0


@dataclass(slots=True)
class OrderState:
    """``done``, ``ready``: kernels as bits. ``live``: bytes between two kernels."""

    done: int
    ready: int
    live: int
    history: History


@dataclass(frozen=True, slots=True)
class FoundOrder:
    """``order`` is None when nothing below the limit was found. ``bound_bytes``: no order has a smaller peak."""

    order: tuple[int, ...] | None
    peak_bytes: int
    bound_bytes: int


class Stepper:
    """Runs kernels in states. What a kernel always allocates or gives back is worked out once.

    ``scope``: the kernels to run, as bits; those before have run, those behind will not.
    """

    def __init__(self, problem: OrderProblem) -> None:
        self.problem = problem
        count = len(problem.kernels)
        self.after = [sum(1 << other for other in set(kernel.after)) for kernel in problem.kernels]
        self.readers: list[list[int]] = [[] for _ in range(count)]
        for k, kernel in enumerate(problem.kernels):
            for other in set(kernel.after):
                self.readers[other].append(k)
        self.allocates = [0] * count
        self.frees = [kernel.scratch_bytes for kernel in problem.kernels]
        self.may_allocate: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self.may_free: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self.may_take: list[list[tuple[int, list[tuple[int, int]]]]] = [[] for _ in range(count)]
        for k, kernel in enumerate(problem.kernels):
            self.allocates[k] = kernel.scratch_bytes
            for s in kernel.touches:
                self._add(k, s)
            for s, candidates in kernel.inplace:
                others = [(c, problem.touchers[c] & ~(1 << k)) for c in candidates]
                self.may_take[k].append((s, [(c, mask) for c, mask in others if not mask & problem.behind[k]]))

    def _add(self, k: int, s: int) -> None:
        storage = self.problem.storages[s]
        others = self.problem.touchers[s] & ~(1 << k)
        size = storage.size_bytes
        if not storage.at_start and not others & self.problem.before[k]:
            if others & ~self.problem.behind[k]:
                self.may_allocate[k].append((others, size))
            else:
                self.allocates[k] += size
        if not storage.at_end and not others & self.problem.behind[k]:
            if others & ~self.problem.before[k]:
                self.may_free[k].append((others, size))
            else:
                self.frees[k] += size

    def cost(self, k: int, done: int) -> tuple[int, int]:
        """(bytes added while kernel ``k`` runs, bytes added once it has run), after the kernels ``done``."""
        added, freed = self.allocates[k], self.frees[k]
        for others, size in self.may_allocate[k]:
            if not others & done:
                added += size
        for others, size in self.may_free[k]:
            if not others & ~done:
                freed += size
        after = added - freed
        if self.may_take[k]:
            added -= self._taken(k, done)
        return added, after

    def _taken(self, k: int, done: int) -> int:
        saved, taken = 0, set()
        for s, candidates in self.may_take[k]:
            for c, others in candidates:
                if c not in taken and not others & ~done:
                    taken.add(c)
                    saved += self.problem.storages[s].size_bytes
                    break
        return saved

    def start(self, done: int = 0, live: int | None = None) -> OrderState:
        """The state after the kernels ``done``."""
        count = len(self.after)
        ready = sum(1 << k for k in range(count) if not done >> k & 1 and not self.after[k] & ~done)
        return OrderState(done, ready, self.problem.entry_bytes if live is None else live, None)

    def run(self, state: OrderState, k: int, after: int) -> OrderState:
        """The state after one more kernel."""
        done = state.done | 1 << k
        ready = state.ready & ~(1 << k)
        for other in self.readers[k]:
            if not self.after[other] & ~done:
                ready |= 1 << other
        return OrderState(done, ready, state.live + after, (state.history, k))

    def settle(self, state: OrderState, peak: int, scope: int, effort: OrderEffort) -> OrderState:
        """Run what adds nothing and stays within ``peak``, as long as there is such a kernel."""
        ready = members(state.ready & scope)
        while ready:
            k = ready.pop()
            if not effort.spend():
                return state
            added, after = self.cost(k, state.done)
            if after <= 0 and state.live + added <= peak:
                state = self.run(state, k, after)
                ready = members(state.ready & scope)
        return state


def members(mask: int) -> list[int]:
    """The bits of ``mask``, lowest first."""
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return found


def beam(stepper: Stepper, floor: int, limit: int, width: int, effort: OrderEffort) -> FoundOrder | None:
    """Keep the ``width`` best states with the same number of kernels run. Returns an order with a peak below ``limit``, if any.

    ``floor``: a peak that no order stays below.
    """
    everything = (1 << len(stepper.after)) - 1
    levels: list[dict[int, tuple[int, OrderState]]] = [{} for _ in range(len(stepper.after) + 1)]
    start = stepper.settle(stepper.start(), floor, everything, effort)
    levels[start.done.bit_count()][start.done] = max(floor, stepper.problem.entry_bytes), start
    for depth in range(len(stepper.after)):
        kept = heapq.nsmallest(width, levels[depth].values(), key=_rank)
        levels[depth].clear()
        for peak, state in kept:
            for k in members(state.ready):
                if not effort.spend():
                    return None
                added, after = stepper.cost(k, state.done)
                reached = max(peak, state.live + added)
                if reached >= limit:
                    continue
                following = stepper.settle(stepper.run(state, k, after), reached, everything, effort)
                level = levels[following.done.bit_count()]
                known = level.get(following.done)
                if known is None or reached < known[0]:
                    level[following.done] = reached, following
    if not levels[-1]:
        return None
    peak, state = levels[-1][everything]
    return FoundOrder(sequence_of(state.history), peak, floor)


def _rank(item: tuple[int, OrderState]) -> tuple[int, int, int]:
    return item[0], item[1].live, item[1].done


def best_first(stepper: Stepper, start: OrderState, scope: int, floor: int, limit: int, effort: OrderEffort) -> FoundOrder:
    """The order of the kernels in ``scope`` with the smallest peak, by states in the order of the peak that reaches them.

    Proven to be the smallest unless the effort runs out: then the bound is the peak that was being looked at. Peaks of
    ``limit`` and above count as none.
    """
    goal = start.done | scope
    first = max(floor, start.live)
    if first >= limit:
        return FoundOrder(None, limit, limit)
    state = stepper.settle(start, first, scope, effort)
    best = {state.done: first}
    queue: list[tuple[int, int, int, int, OrderState]] = [(first, 0, state.live, 0, state)]
    serial = 0
    closed: set[int] = set()
    while queue:
        peak, _, _, _, state = heapq.heappop(queue)
        if state.done == goal:
            return FoundOrder(sequence_of(state.history), peak, peak)
        if state.done in closed:
            continue
        closed.add(state.done)
        for k in members(state.ready & scope):
            if not effort.spend():
                return FoundOrder(None, limit, peak)
            added, after = stepper.cost(k, state.done)
            reached = max(peak, state.live + added)
            if reached >= limit:
                continue
            following = stepper.settle(stepper.run(state, k, after), reached, scope, effort)
            if following.done not in closed and reached < best.get(following.done, limit):
                best[following.done] = reached
                serial += 1
                heapq.heappush(queue, (reached, -following.done.bit_count(), following.live, serial, following))
    return FoundOrder(None, limit, limit)


def sequence_of(history: History) -> tuple[int, ...]:
    """The kernels of a history, first one first."""
    return tuple(_backwards(history))[::-1]


def _backwards(history: History) -> Iterator[int]:
    while history is not None:
        history, k = history
        yield k


def windows(stepper: Stepper, order: Sequence[int], floor: int, effort: OrderEffort) -> tuple[int, ...]:
    """``order`` with its highest peaks lowered, one window of kernels around the first of them at a time, the rest fixed.

    A window that has nothing better is doubled.
    """
    width = FIRST_WINDOW
    best = tuple(order)
    while effort.steps > 0:
        states, highest = _along(stepper, best)
        peak = max(highest)
        if peak <= floor:
            break
        moment = highest.index(peak)
        low, high = max(0, moment - width // 2), min(len(best), moment + width // 2)
        outside = max(floor, *highest[:low], *highest[high:], 0)
        scope = sum(1 << k for k in best[low:high])
        found = best_first(stepper, states[low], scope, min(outside, peak - 1), peak, effort)
        if found.order is not None:
            best = (*best[:low], *found.order, *best[high:])
        elif low == 0 and high == len(best):
            break
        else:
            width *= 2
    return best


def _along(stepper: Stepper, order: Sequence[int]) -> tuple[list[OrderState], list[int]]:
    """The state before each kernel of ``order``, without its history, and the bytes alive while it runs."""
    state, states, highest = stepper.start(), [], []
    for k in order:
        states.append(OrderState(state.done, state.ready, state.live, None))
        added, after = stepper.cost(k, state.done)
        highest.append(state.live + added)
        state = stepper.run(state, k, after)
    return states, highest
