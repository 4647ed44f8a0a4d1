"""What the scratchpad planner is compared with: an allocator that takes operators as they come, and evicts when there is no
gap.

Places are found as TensorFlow Lite's arena does it: a tensor goes into the smallest gap that holds it, and stays there until it
leaves. What leaves is chosen by Belady's rule (whatever is needed last), or so that this operator moves the fewest bytes
("greedy": a small integer program a step). Where the operands of one operator leave no gap themselves they move together.
Neither looks at what a choice does to later places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memcompile.solvers.scratchpad.gaps import store_bytes, uses_of
from memcompile.solvers.scratchpad.problem import ScratchpadProblem

Choose = Callable[["Arena", set[int], int, int], int]
"""(arena, tensors that must stay, step, bytes wanted) -> the tensor that leaves."""


@dataclass
class Arena:
    """The scratchpad while a network runs. ``at``: offsets of what is there. ``stored``: what has been stored since."""

    problem: ScratchpadProblem
    size: int
    uses: list[list[int]]
    at: dict[int, int] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)
    moved: int = 0

    def bytes_of(self, tensor: int) -> int:
        """Its size."""
        return self.problem.tensors[tensor].size_bytes

    def next_use(self, tensor: int, step: int) -> int:
        """The next step behind ``step`` that touches it; a number above all steps if there is none."""
        return next((use for use in self.uses[tensor] if use > step), len(self.problem.ops))

    def gap(self, size: int) -> int | None:
        """The start of the smallest gap that holds ``size`` bytes."""
        taken = sorted((offset, offset + self.bytes_of(tensor)) for tensor, offset in self.at.items())
        best: tuple[int, int] | None = None
        end = 0
        for start, stop in [*taken, (self.size, self.size)]:
            if start - end >= size and (best is None or start - end < best[0]):
                best = start - end, end
            end = max(end, stop)
        return None if best is None else best[1]

    def evict(self, tensor: int) -> None:
        """Take it out; it will be loaded again."""
        del self.at[tensor]
        self.moved += self.eviction_bytes(tensor)
        self.stored.add(tensor)

    def eviction_bytes(self, tensor: int) -> int:
        """What it costs to take it out and to load it again."""
        return self.bytes_of(tensor) + (0 if tensor in self.stored else store_bytes(self.problem, tensor))


def linear(problem: ScratchpadProblem, order: Sequence[int], size_bytes: int, choose: Choose) -> int:
    """Non-compulsory bytes of ``order`` with places as they come."""
    arena = Arena(problem, size_bytes, uses_of(problem, order))
    for step, op in enumerate(order):
        touched = set(problem.touches[op])
        missing = sorted(touched - set(arena.at), key=lambda t: (-arena.bytes_of(t), t))
        for number, tensor in enumerate(missing):
            _put(arena, tensor, touched, step, missing[:number], sum(map(arena.bytes_of, missing[number:])), choose)
        for tensor in touched:
            if arena.next_use(tensor, step) == len(order):
                del arena.at[tensor]
    return arena.moved


def _put(arena: Arena, tensor: int, touched: set[int], step: int, just: Sequence[int], wanted: int, choose: Choose) -> None:
    """``just``: operands that got their place a moment ago: before anything moves, they can get another."""
    while (offset := arena.gap(arena.bytes_of(tensor))) is None:
        if arena.at.keys() - touched:
            arena.evict(choose(arena, touched, step, wanted))
        else:
            _compact(arena, just)
    arena.at[tensor] = offset


def _compact(arena: Arena, just: Sequence[int]) -> None:
    """Operands side by side from the start: those that move are stored and loaded."""
    end = 0
    for tensor, offset in sorted(arena.at.items(), key=lambda item: (item[0] in just, item[1])):
        if offset != end and tensor not in just:
            arena.evict(tensor)
        arena.at[tensor] = end
        end += arena.bytes_of(tensor)


def belady(arena: Arena, touched: set[int], step: int, wanted: int) -> int:  # noqa: ARG001 - a `Choose`
    """What is needed last, the largest of equals."""
    return max(arena.at.keys() - touched, key=lambda t: (arena.next_use(t, step), arena.bytes_of(t), t))


def greedy(arena: Arena, touched: set[int], step: int, wanted: int) -> int:  # noqa: ARG001 - a `Choose`
    """One of the tensors whose leaving moves the fewest bytes and frees as many as are wanted."""
    free = arena.size - sum(map(arena.bytes_of, arena.at))
    others = sorted(arena.at.keys() - touched, key=lambda t: (-arena.bytes_of(t), t))
    excess = wanted - free
    if excess <= 0:  # there is room, if in pieces: the cheapest
        return min(others, key=lambda t: (arena.eviction_bytes(t), t))
    return _cheapest(arena, others, excess)[0]


def _cheapest(arena: Arena, others: Sequence[int], excess: int) -> list[int]:
    best: tuple[float, list[int]] = (float("inf"), list(others))
    chosen: list[int] = []

    def extend(start: int, left: int, price: int) -> None:
        nonlocal best
        if price >= best[0]:
            return
        if left <= 0:
            best = price, list(chosen)
            return
        for index in range(start, len(others)):
            chosen.append(others[index])
            tensor = others[index]
            extend(index + 1, left - arena.bytes_of(tensor), price + arena.eviction_bytes(tensor))
            chosen.pop()

    extend(0, excess, 0)
    return best[1]
