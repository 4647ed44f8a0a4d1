"""Plans as paths over cuts: an edge is a stage, and neither its peak nor its multiply-adds depend on other edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from memcompile.solvers.tiling.again import CopyVariant
from memcompile.solvers.tiling.grids import Periods
from memcompile.solvers.tiling.layers import Grid
from memcompile.solvers.tiling.lives import ResultLives
from memcompile.solvers.tiling.problem import FREE, Prices, StageKind
from memcompile.solvers.tiling.ranges import Limits, Ranges, reachable, tiled_ranges
from memcompile.solvers.tiling.sweep import Ints

MOST_CUTS = 128
"""Cuts at which tiled stages may begin and end: of more, the one that fewest bytes cross in each of as many parts."""
LONGEST = 128
"""Operators in a tiled stage."""
NEAR = 8
"""Operators after which a stage ends soon."""
WALKS = 8
"""Steps for each cut that looking for plans takes."""
DISCOUNTS = (1, 4, 16, 64, 0)
"""What prices are divided by, in turn, where full prices would make a plan of too many multiply-adds."""
NEVER = np.iinfo(np.int64).max // 4
LAYERWISE: Grid = ("layerwise", 1, 1)


@dataclass(frozen=True, slots=True)
class Edge:
    """A stage between two cuts of a variant."""

    first: int
    last: int
    grid: Grid


@dataclass(frozen=True, slots=True)
class Path:
    """Stages from the first to the last cut. ``cost``: multiply-adds, and what else takes time, in them.

    ``tiles``: of all tiled stages together.
    """

    edges: tuple[Edge, ...]
    peak_bytes: int
    macs: int
    cost: int
    tiles: int


@dataclass(frozen=True, slots=True)
class _Into:
    """Edges that end at one cut; the first is layerwise."""

    cut: int
    grids: tuple[Grid, ...]
    first: Ints
    grid: Ints
    peak_bytes: Ints
    macs: Ints
    tiles: Ints
    extra: Ints


class Paths:
    """All stages of a variant that are considered, and the cheapest plans of them. ``prices``: of all but arithmetic. ``left``:
    seconds for finding stages; where they end, no further ones are looked for."""

    def __init__(self, variant: CopyVariant, kinds: Collection[StageKind], prices: Prices, left: Callable[[], float]) -> None:
        self._lives, self._prices = ResultLives(variant.problem), prices
        self._open = [cut for cut in range(len(variant.problem.operators) + 1) if cut not in variant.closed]
        cuts = frozenset(promising_cuts(self._lives, self._open))
        self._limits = Limits(cuts, LONGEST, variant.barriers, frozenset(kinds), prices)
        periods = Periods(variant.problem)
        tiled: dict[int, Ranges | None] = {}
        for cut in sorted(cuts - {0}, key=self._urgency):
            if left() <= 0:
                break
            tiled[cut] = tiled_ranges(self._lives, cut, self._limits, periods)
        self._into = [self._edges(before, cut, tiled.get(cut)) for before, cut in pairwise(self._open)]
        self.thresholds: Ints = np.unique(np.concatenate([into.peak_bytes for into in self._into]))

    @property
    def work(self) -> int:
        """Steps that building and walking them takes, about a quarter of a millisecond each."""
        steps = sum(len(reachable(self._lives, cut, self._limits)) for cut in self._limits.starts if cut)
        return steps + WALKS * len(self._open)

    def _urgency(self, cut: int) -> tuple[int, int]:
        """Stages that end soon after most is alive come first."""
        return -max(self._lives.layerwise_bytes[max(0, cut - NEAR) : cut]), cut

    def _edges(self, before: int, cut: int, ranges: Ranges | None) -> _Into:
        peak = max(self._lives.layerwise_bytes[before:cut])
        macs = sum(self._lives.macs[before:cut])
        extra = sum(map(self._prices.of_layer, self._lives.problem.operators[before:cut]))
        single = [np.array([x], dtype=np.int64) for x in (before, 0, peak, macs, 0, extra)]
        if ranges is None:
            return _Into(cut, (LAYERWISE,), *single)
        tiled = (ranges.first, ranges.grid + 1, ranges.peak_bytes, ranges.macs, ranges.tiles, ranges.extra)
        return _Into(cut, (LAYERWISE, *ranges.grids), *(np.concatenate(pair) for pair in zip(single, tiled, strict=True)))

    def cheapest(self, threshold: int, discount: int = 1) -> Path | None:
        """The smallest cost, then the fewest tiles, with all peaks up to a threshold. ``discount``: what prices are divided by;
        0: multiply-adds alone."""
        count = self._open[-1] + 1
        cost, tiles = np.full(count, NEVER, dtype=np.int64), np.full(count, NEVER, dtype=np.int64)
        taken = dict[int, tuple[_Into, int]]()
        cost[0] = tiles[0] = 0
        for into in self._into:
            work = into.macs + into.extra // discount if discount else into.macs
            total = np.where(into.peak_bytes <= threshold, cost[into.first] + work, NEVER)
            least = total.min()
            if least >= NEVER:
                continue
            ties = np.where(total == least, tiles[into.first] + into.tiles, NEVER)
            best = int(ties.argmin())
            cost[into.cut], tiles[into.cut], taken[into.cut] = least, ties[best], (into, best)
        return self._trace(taken, int(tiles[-1])) if self._open[-1] in taken or count == 1 else None

    def _trace(self, taken: dict[int, tuple[_Into, int]], tiles: int) -> Path:
        edges, peak, macs, extra, cut = list[Edge](), 0, 0, 0, self._open[-1]
        while cut:
            into, best = taken[cut]
            first = int(into.first[best])
            edges.append(Edge(first, cut, into.grids[int(into.grid[best])]))
            peak = max(peak, int(into.peak_bytes[best]))
            macs += int(into.macs[best])
            extra += int(into.extra[best])
            cut = first
        return Path(tuple(reversed(edges)), peak, macs, macs + extra, tiles)

    def smallest(self, most_macs: float, most_cost: float = math.inf) -> Path | None:
        """The smallest peak with so many multiply-adds and at that cost. Of plans with that peak the cheapest that is found."""
        low, high, found = 0, len(self.thresholds), None
        while low < high:
            middle = (low + high) // 2
            path = self._within(int(self.thresholds[middle]), most_macs, most_cost)
            low, high, found = (middle + 1, high, found) if path is None else (low, middle, path)
        return found

    def _within(self, threshold: int, most_macs: float, most_cost: float) -> Path | None:
        """A cheap plan: by lower and lower prices, down to the one with the fewest multiply-adds."""
        for discount in DISCOUNTS if self._prices != FREE else (0,):
            path = self.cheapest(threshold, discount)
            if path is None or (discount == 1 and path.cost > most_cost):
                return None
            if path.macs <= most_macs and path.cost <= most_cost:
                return path
        return None

    def layerwise_cost(self) -> int:
        """Of the network run layer by layer."""
        return sum(int(into.macs[0] + into.extra[0]) for into in self._into)

    def frontier(self, step: float, left: Callable[[], float]) -> list[Path]:
        """Cheapest plans from the largest peak down, each at least a share ``step`` below the one before, while there is time
        left; then the smallest."""
        paths, threshold = list[Path](), int(self.thresholds[-1])
        while left() > 0 and (path := self.cheapest(threshold)) is not None:
            paths.append(path)
            threshold = min(path.peak_bytes - 1, int(path.peak_bytes * (1 - step)))
        smallest = self.smallest(math.inf)
        return paths if smallest is None else [*paths, smallest]


def promising_cuts(lives: ResultLives, opened: Sequence[int]) -> list[int]:
    """Cuts after what is read later and is not changed in its place: of many, the one that fewest bytes cross in each part."""
    ends = [0, len(lives.problem.operators)]
    inner = [cut for cut in opened if cut not in ends and lives.last[cut - 1] >= cut and not lives.folded(cut)]
    parts = min(len(inner), MOST_CUTS)
    bounds = [len(inner) * part // parts for part in range(parts + 1)] if parts else []
    groups = [inner[a:b] for a, b in pairwise(bounds)]
    return sorted({*ends, *(min(group, key=lambda cut: (lives.alive_bytes[cut], cut)) for group in groups)})
