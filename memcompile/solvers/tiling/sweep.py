"""Intervals along one axis that tiles need of every operator, from the last result back to the stage's sources.

An interval depends on later operators alone, so one sweep from a result serves all stages that end there. All grids and all
their parts are swept at once: arrays are ``[grids, parts]``, and grids of fewer parts end in empty ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcompile.solvers.tiling.grids import Axis, reach_of
from memcompile.solvers.tiling.problem import Operator, Reach, TilingProblem

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Interval:
    """``[start, stop)`` in every part; empty where they are equal."""

    start: Ints
    stop: Ints

    def union(self, other: Interval) -> Interval:
        """The hull of both; an empty one adds nothing."""
        mine, theirs = self.start < self.stop, other.start < other.stop
        start = np.where(mine & theirs, np.minimum(self.start, other.start), np.where(mine, self.start, other.start))
        stop = np.where(mine & theirs, np.maximum(self.stop, other.stop), np.where(mine, self.stop, other.stop))
        return Interval(start, stop)

    @property
    def length(self) -> Ints:
        """Indices in it."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Spans:
    """Of one operator: what each part makes; its ``share`` of a result; what is ``kept`` for it of what earlier parts made."""

    made: Interval
    share: Interval | None = None
    kept: Interval | None = None


def extent(operator: Operator, axis: Axis) -> int:
    """Rows or columns of a result."""
    return operator.height if axis == 0 else operator.width


def hull(reach: Reach | None, source_extent: int, made: Interval) -> Interval:
    """What is read of a source to make an interval, without padding: at least one index where anything is made."""
    some = made.start < made.stop
    if reach is None:
        return Interval(np.zeros_like(made.start), np.where(some, source_extent, 0))
    start = np.minimum(np.maximum(reach[np.minimum(made.start, len(reach) - 1), 0], 0), source_extent - 1)
    stop = np.minimum(np.maximum(reach[np.maximum(made.stop - 1, 0), 1], start + 1), source_extent)
    return Interval(np.where(some, start, 0), np.where(some, stop, 0))


def pads(reach: Reach | None, source_extent: int, made: Interval) -> NDArray[np.bool_]:
    """Whether padding is read to make an interval."""
    some: NDArray[np.bool_] = made.start < made.stop
    if reach is None:
        return np.zeros_like(some)
    start = reach[np.minimum(made.start, len(reach) - 1), 0]
    stop = reach[np.maximum(made.stop - 1, 0), 1]
    found: NDArray[np.bool_] = some & ((start < 0) | (stop > source_extent))
    return found


def evened(stop: Ints) -> Ints:
    """``[grids, parts]``, never falling: what is needed in jumps is made in equal steps that lead up to them."""
    before = np.hstack([np.zeros_like(stop[:, :1]), stop[:, :-1]])
    jumps = stop > before
    uneven = (~jumps & (before < stop[:, -1:])).any(axis=1) & ((stop - before).max(axis=1) > 1)
    if not uneven.any():
        return stop
    steps = stop.copy()
    steps[uneven] = _steps(stop[uneven], before[uneven], jumps[uneven])
    return steps


def _steps(stop: Ints, before: Ints, jumps: NDArray[np.bool_]) -> Ints:
    """Between two jumps, as large a part of the second as of the time between them."""
    count = stop.shape[1]
    parts = np.arange(count)
    latest = np.maximum.accumulate(np.where(jumps, parts, -1), axis=1)
    start = np.hstack([np.full_like(latest[:, :1], -1), latest[:, :-1]])
    end = np.minimum.accumulate(np.where(jumps, parts, count)[:, ::-1], axis=1)[:, ::-1]
    reached = np.take_along_axis(stop, np.minimum(end, count - 1), axis=1)
    steps: Ints = np.where(end < count, before + (reached - before) * (parts - start) // (end - start), stop)
    return steps


def padded(bounds: Sequence[Sequence[int]]) -> Ints:
    """Bounds of several grids as one array, short ones followed by empty parts."""
    longest = max(len(row) for row in bounds)
    return np.array([[*row, *([row[-1]] * (longest - len(row)))] for row in bounds], dtype=np.int64)


class TilingSweep:
    """Visit operators from the last to the first. ``root``: the operator that ``bounds`` ``[grids, parts + 1]`` divide.

    ``keep``: parts run in order and keep what later ones read; else each part makes all it needs.
    """

    def __init__(self, problem: TilingProblem, axis: Axis, root: int, bounds: Ints, *, keep: bool) -> None:
        self._operators, self._axis, self._root, self._bounds, self._keep = problem.operators, axis, root, bounds, keep
        self._nothing = Interval(np.zeros_like(bounds[:, 1:]), np.zeros_like(bounds[:, 1:]))
        self._needs: dict[int, Interval] = {}
        self._reduced: set[int] = set()

    def visit(self, index: int, *, is_result: bool) -> Spans:
        """What each part makes of an operator of the stage; what it reads for that is remembered."""
        operator = self._operators[index]
        if operator.kind == "reduction":
            self._reduced.add(operator.reads[0].source)
            everything = Interval(np.zeros_like(self._bounds[:, 1:]), (np.diff(self._bounds) > 0).astype(np.int64))
            for read in operator.reads[1:]:
                self._need(read.source, hull(None, extent(self._operators[read.source], self._axis), everything))
            return Spans(everything)
        covered = is_result or index in self._reduced or index == self._root
        spans = self._once(index, covered) if self._keep else self._again(index, covered)
        for read in operator.reads:
            reach = reach_of(read, self._axis)
            self._need(read.source, hull(reach, extent(self._operators[read.source], self._axis), spans.made))
        return spans

    def outside(self, index: int) -> Spans:
        """What each part reads of a source, and its share where the stage reduces it."""
        need = self._needs.get(index, self._nothing)
        if index not in self._reduced:
            return Spans(need)
        share = self._shares(index, need)
        return Spans(need.union(share), share)

    def _need(self, source: int, need: Interval) -> None:
        self._needs[source] = self._needs[source].union(need) if source in self._needs else need

    def _again(self, index: int, covered: bool) -> Spans:
        """Every part makes what it needs, halos included, and its share of a result."""
        need = self._needs.pop(index, self._nothing)
        if not covered:
            return Spans(need)
        share = self._shares(index, need)
        return Spans(need.union(share), share)

    def _once(self, index: int, covered: bool) -> Spans:
        """Every part makes what no earlier one has, up to what it needs; a result leaves nothing out."""
        need = self._needs.pop(index, self._nothing)
        size = extent(self._operators[index], self._axis)
        stop = need.stop
        if covered:
            stop = np.maximum(stop, self._shares(index, need).stop)
        stop = evened(np.maximum.accumulate(stop, axis=1))
        done = np.hstack([np.zeros_like(stop[:, :1]), stop[:, :-1]])
        first = np.where(need.start < need.stop, need.start, size)
        first = np.minimum.accumulate(first[:, ::-1], axis=1)[:, ::-1]
        made = Interval(done if covered else np.minimum(np.maximum(done, first), stop), stop)
        return Spans(made, made if covered else None, Interval(np.minimum(first, done), done))

    def _shares(self, index: int, need: Interval) -> Interval:
        """Disjoint parts that cover an operator: the bounds of the root, or what they come to amid the overlaps of needs."""
        if index == self._root:
            return Interval(self._bounds[:, :-1], self._bounds[:, 1:])
        size, total = extent(self._operators[index], self._axis), self._bounds[:, -1:]
        bounds = self._bounds * size // total
        if not self._keep:
            some = need.start < need.stop
            middle = (need.start[:, 1:] + need.stop[:, :-1]) // 2
            inner = some[:, 1:] & some[:, :-1] & (self._bounds[:, 1:-1] < total)
            bounds[:, 1:-1] = np.where(inner, middle, bounds[:, 1:-1])
        elif (need.stop > 0).any():
            bounds[:, 1:] = np.where(self._bounds[:, 1:] < total, need.stop, size)
        bounds = np.maximum.accumulate(bounds, axis=1)
        return Interval(bounds[:, :-1], bounds[:, 1:])
