"""Problems in which long-lived results are made again just before a late reader: skip connections of a U-Net.

The copies are ordinary operators of a longer problem, so that the search needs to know nothing else about them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from memcompile.solvers.tiling.lives import ResultLives
from memcompile.solvers.tiling.problem import Operator, TilingProblem

SHARE = 16
"""Results of less than one part in this many of the peak stay."""
SMALL = 256
"""Results of up to one part in this many of the peak are kept for chains rather than made again."""
LONGEST_CHAIN = 16
"""Operators that may be made again for one result."""
GAP = 4
"""Operators between two readers from which a result may be made again."""
MOST = 12
"""Results made again in one plan."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A result that is made again for ``reader`` and those behind it, up to ``last_reader``. ``before``: the reader before."""

    index: int
    before: int
    reader: int
    last_reader: int


@dataclass(frozen=True, slots=True, eq=False)
class CopyVariant:
    """A problem with copies. ``origin``: of each operator the one in the problem as given. ``copied``: it is a copy.

    ``barriers``: of copies, the latest place of the same operator before. ``closed``: cuts that would part copies and readers.
    """

    problem: TilingProblem
    origin: tuple[int, ...]
    copied: tuple[bool, ...]
    barriers: dict[int, int]
    closed: frozenset[int]


def variants(problem: TilingProblem) -> Iterator[CopyVariant]:
    """The problem as it is; then with more and more results made again.

    In turn those with the most bytes for the longest, and those with the most bytes for the fewest operations.
    """
    lives = ResultLives(problem)
    longest = choices(lives)
    cheapest = sorted(longest, key=lambda group: _price(lives, group))
    tried = list[frozenset[Choice]]()
    for count in range(max(1, len(longest) + 1)):
        for order in (longest, cheapest):
            chosen = frozenset(choice for group in order[:count] for choice in group)
            if chosen not in tried:
                tried.append(chosen)
                yield with_copies(lives, sorted(chosen, key=lambda choice: (choice.reader, choice.index)))


def choices(lives: ResultLives) -> list[tuple[Choice, ...]]:
    """Results worth making again after each long pause between two readers, and behind each barrier.

    No tile reads across a reduction, so that what is normalised by its own mean is whole unless it is made twice.
    """
    operators, peak = lives.problem.operators, max(lives.layerwise_bytes)
    weighed = list[tuple[int, int, tuple[Choice, ...]]]()
    for index, operator in enumerate(operators):
        if lives.last[index] == len(operators) or operator.size_bytes * SHARE < peak:
            continue
        group = tuple(_pauses(lives, index))
        if group and all(x.last_reader - x.reader <= GAP and chain_of(lives, x, group) for x in group):
            weighed.append((-operator.size_bytes * max(x.reader - x.before for x in group), index, group))
    return [group for *_, group in sorted(weighed, key=lambda x: x[:2])[:MOST]]


def _pauses(lives: ResultLives, index: int) -> Iterator[Choice]:
    """Readers after each pause, up to the next one."""
    reads = [index, *lives.readers[index]]
    kinds = [operator.kind for operator in lives.problem.operators]
    begins = [
        position
        for position, (before, reader) in enumerate(pairwise(reads), 1)
        if reader - before > GAP or any(kind in ("reduction", "whole") for kind in kinds[before:reader])
    ]
    for begin, end in pairwise([*begins, len(reads)]):
        yield Choice(index, reads[begin - 1], reads[begin], reads[end - 1])


def _price(lives: ResultLives, group: Sequence[Choice]) -> float:
    """Multiply-adds for each byte."""
    macs = sum(lives.macs[index] for choice in group for index in chain_of(lives, choice, group))
    return macs / lives.problem.operators[group[0].index].size_bytes


def chain_of(lives: ResultLives, choice: Choice, chosen: Sequence[Choice]) -> tuple[int, ...]:
    """What has to run to make a result from inputs and what is there anyway; nothing where that is too much.

    Small results, such as means, are kept for longer.
    """
    peak = max(lives.layerwise_bytes)
    there = dict[int, int]()
    for other in chosen:
        there[other.index] = min(other.before, there.get(other.index, other.before))
    chain, waiting = set[int](), [choice.index]
    while waiting:
        at = waiting.pop()
        operator = lives.problem.operators[at]
        kept = there.get(at, lives.last[at]) >= choice.reader or operator.size_bytes * SMALL <= peak
        if at in chain or operator.kind == "input" or kept:
            continue
        if operator.kind != "local" or len(chain) == LONGEST_CHAIN:
            return ()
        chain.add(at)
        waiting.extend(read.source for read in operator.reads)
    return tuple(sorted(chain))


def with_copies(lives: ResultLives, chosen: Sequence[Choice]) -> CopyVariant:
    """The problem with copies of what some choices make again before their readers."""
    chains = {choice: chain_of(lives, choice, chosen) for choice in chosen}
    longer = _Longer(lives.problem)
    for index in range(len(lives.problem.operators)):
        for choice in chosen:
            if choice.reader == index and chains[choice]:
                longer.copy(chains[choice], range(index, choice.last_reader + 1))
        longer.append(index)
    outputs = tuple(longer.places[output] for output in lives.problem.outputs)
    problem = replace(lives.problem, operators=tuple(longer.operators), outputs=outputs)
    return CopyVariant(problem, tuple(longer.origin), tuple(longer.copied), longer.barriers, frozenset(longer.closed))


class _Longer:
    """A problem as it grows by originals and copies."""

    def __init__(self, problem: TilingProblem) -> None:
        self._problem = problem
        self.operators, self.origin, self.copied = list[Operator](), list[int](), list[bool]()
        self.places, self.barriers, self.closed = dict[int, int](), dict[int, int](), set[int]()
        self._latest = dict[int, int]()
        self._readers = dict[int, dict[int, int]]()

    def copy(self, chain: Sequence[int], readers: range) -> None:
        """Add copies; ``readers`` will read that of the last one, and no cut parts them."""
        places = dict[int, int]()
        for index in chain:
            self.barriers[len(self.operators)] = self._latest[index]
            places[index] = self._put(index, places)
            self.closed.add(len(self.operators))
        for reader in readers:
            self._readers.setdefault(reader, {})[chain[-1]] = places[chain[-1]]

    def append(self, index: int) -> None:
        """Add an operator of the problem."""
        redirected = self._readers.get(index, {})
        self.places[index] = self._put(index, redirected)
        if index + 1 in self._readers and redirected.items() & self._readers[index + 1].items():
            self.closed.add(len(self.operators))

    def _put(self, index: int, places: dict[int, int]) -> int:
        operator = self._problem.operators[index]
        reads = tuple(
            replace(read, source=places.get(read.source, self.places.get(read.source, -1))) for read in operator.reads
        )
        self.operators.append(replace(operator, reads=reads))
        self.origin.append(index)
        self.copied.append(len(self.operators) - 1 in self.barriers)
        self._latest[index] = len(self.operators) - 1
        return len(self.operators) - 1
