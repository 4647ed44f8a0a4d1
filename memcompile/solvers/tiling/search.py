"""The stages in which a network fits into a number of bytes with the fewest operations. Read this first.

Stages are consecutive ranges of the order, and what crosses a cut between two is whole. A stage's peak therefore does not
depend on other stages, and the fewest multiply-adds below a peak are those of a cheapest path over the cuts (``paths.py``),
whose edges are stages of all kinds and grids (``ranges.py``). Skip connections that are made again where they are read, in
place of being kept, are paths of a longer problem (``again.py``). The answer is the best of the stages that are considered,
which is not all there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from memcompile.solvers.tiling.again import CopyVariant, variants
from memcompile.solvers.tiling.memory import cost, costed
from memcompile.solvers.tiling.paths import Path, Paths
from memcompile.solvers.tiling.problem import FREE, Prices, Stage, StageKind, TilingProblem, TilingSolution
from memcompile.solvers.tiling.stages import members, results, sources

MOST_WORK = 14_000
"""Steps of building paths (``Paths.work``) after which no further variants are tried."""
STEP = 0.02
"""Peaks on the frontier are this share apart."""


Left = Callable[[], float]
"""How many seconds a search may still take."""


def unhurried() -> float:
    """As many as it wants."""
    return math.inf


class LimitError(Exception):
    """No plan that was considered fits. ``floor``: the one with the smallest peak."""

    def __init__(self, limit_bytes: int, floor: TilingSolution) -> None:
        self.limit_bytes, self.floor = limit_bytes, floor
        super().__init__(f"limit of {limit_bytes} bytes is below the smallest peak found, {floor.peak_bytes} bytes")


Candidate = tuple[tuple[int, ...], Path, CopyVariant]
"""A key, smaller for better plans, and a plan of a variant."""


class TilingSearch:
    """The stages of a problem, found once; then plans of them, one limit after the other.

    ``kinds``: of tiled stages that may be used. ``prices``: of what takes time beside multiply-adds. ``left``: once nothing is
    left, what has not been looked at stays layerwise. Of equal plans the one with fewer tiles and less made again is taken, so
    that a network that cannot gain stays layerwise.
    """

    def __init__(
        self,
        problem: TilingProblem,
        kinds: Collection[StageKind] = ("patches", "rows"),
        prices: Prices = FREE,
        left: Left = unhurried,
    ) -> None:
        self.problem, self.prices = problem, prices
        self._base = cost(problem, Stage(0, len(problem.operators), "layerwise"))
        self._left = left
        self._built = _built(problem, kinds, prices, left)
        self._frontier: tuple[tuple[int, int], ...] | None = None

    def within(self, limit_bytes: int) -> TilingSolution:
        """The least time with a peak within a limit; LimitError if nothing fits."""
        found = list[Candidate]()
        for order, (variant, paths) in enumerate(self._built):
            path = paths.cheapest(limit_bytes)
            found += [] if path is None else [((path.cost, path.tiles, order), path, variant)]
        if not found:
            raise LimitError(limit_bytes, self.floor())
        return self._of(min(found, key=lambda candidate: candidate[0]))

    def smallest(self, max_overhead: float, max_delay: float = math.inf) -> TilingSolution:
        """The smallest peak with at most that share of multiply-adds more than layerwise, and of time."""
        longest = math.inf if math.isinf(max_delay) else self._built[0][1].layerwise_cost() * (1 + max_delay)
        return self._smallest(self._base.macs * (1 + max_overhead), longest)

    def floor(self) -> TilingSolution:
        """The smallest peak of all."""
        return self._smallest(math.inf, math.inf)

    def _smallest(self, most_macs: float, most_cost: float) -> TilingSolution:
        found = list[Candidate]()
        for order, (variant, paths) in enumerate(self._built):
            path = paths.smallest(most_macs, most_cost)
            found += [] if path is None else [((path.peak_bytes, path.cost, path.tiles, order), path, variant)]
        return self._of(min(found, key=lambda candidate: candidate[0]))  # layerwise at least

    def _of(self, candidate: Candidate) -> TilingSolution:
        """The stages of a path, with all that is said about them."""
        _, path, variant = candidate
        stages = costed(self.problem, with_results(self.problem, merged(stages_of(variant, path))))
        peak, macs = max((s.peak_bytes for s in stages), default=0), sum(s.macs for s in stages)
        return TilingSolution(stages, peak, macs, self._base.peak_bytes, self._base.macs, "heuristic", self.frontier())

    def frontier(self) -> tuple[tuple[int, int], ...]:
        """(peak bytes, multiply-adds) of the best plans."""
        if self._frontier is None:
            points = sorted((p.peak_bytes, p.macs) for _, paths in self._built for p in paths.frontier(STEP, self._left))
            best, least = list[tuple[int, int]](), math.inf
            for peak, macs in points:
                if macs < least:
                    best.append((peak, macs))
                    least = macs
            self._frontier = tuple(best)
        return self._frontier


def _built(problem: TilingProblem, kinds: Collection[StageKind], prices: Prices, left: Left) -> list[tuple[CopyVariant, Paths]]:
    """Variants of the problem with their stages, as far as the work and the time allow: the problem as it is at least."""
    built, work = list[tuple[CopyVariant, Paths]](), 0
    for variant in variants(problem):
        paths = Paths(variant, kinds, prices, left)
        built.append((variant, paths))
        work += paths.work
        if work + paths.work > MOST_WORK or left() <= 0:
            break
    return built


def stages_of(variant: CopyVariant, path: Path) -> list[Stage]:
    """The stages of a path in the problem as given; inputs alone are none."""
    stages = list[Stage]()
    for edge in path.edges:
        inside = range(edge.first, edge.last)
        own = [variant.origin[index] for index in inside if not variant.copied[index]]
        again = tuple(sorted(variant.origin[index] for index in inside if variant.copied[index]))
        if any(variant.problem.operators[index].kind != "input" for index in inside):
            kind, down, across = edge.grid
            stages.append(Stage(own[0], own[-1] + 1, kind, (down, across), again))
    return stages


def with_results(problem: TilingProblem, stages: Sequence[Stage]) -> list[Stage]:
    """The stages, told which results no later one reads because it makes them again, and which it reads because of that."""
    needed, told = set(problem.outputs), list[Stage]()
    for stage in reversed(stages):
        in_order = results(problem, stage)
        kept = needed.intersection(index for index in members(problem, stage) if index not in stage.again)
        dropped = tuple(index for index in in_order if index not in needed)
        told.append(replace(stage, dropped=dropped, kept=tuple(sorted(kept.difference(in_order)))))
        needed.update(sources(problem, stage))
    return told[::-1]


def merged(stages: Sequence[Stage]) -> list[Stage]:
    """Layerwise neighbours as one stage, unless an operator would be in it twice."""
    done = list[Stage]()
    for stage in stages:
        before = done[-1] if done else stage
        repeats = set(stage.again) & {*before.again, *range(before.first, before.last)}
        if done and before.kind == stage.kind == "layerwise" and not repeats:
            again = tuple(sorted((*before.again, *stage.again)))
            done[-1] = replace(before, last=stage.last, again=again)
        else:
            done.append(stage)
    return done
