"""The tiles of a stage: which rows and columns of every operator each makes, keeps and reads.

Pull-based: the grid divides the last result, and every operator makes the hull of what its readers in the stage ask for (as
in fused-layer CNNs, Alwani et al. 2016). Other results are divided into disjoint shares that cover them. "patches" make
overlaps again; "rows" keep them, as line buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from memcompile.solvers.tiling.grids import Axis, Periods, split
from memcompile.solvers.tiling.problem import Stage, TilingProblem
from memcompile.solvers.tiling.stages import StageError, check_tiled, members, results, sources
from memcompile.solvers.tiling.sweep import Interval, Spans, TilingSweep, extent


class Span(NamedTuple):
    """Indices ``[start, stop)``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Indices in it."""
        return self.stop - self.start


class Rectangle(NamedTuple):
    """Rows and columns of an operator's result."""

    rows: Span
    columns: Span

    @property
    def pixels(self) -> int:
        """Pixels in it."""
        return self.rows.length * self.columns.length


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile at ``place`` = (down, across). Operators that it makes or reads nothing of are missing.

    ``made``: in the order of running. A reduction is made whole, of the tile's share of its source. ``share``: of every
    result, and of what a reduction reads, the part that no other tile has; shares cover all. A result's share is part of what
    is made of it; the rest is for readers in the stage. ``read``: of each operand from outside, the hull.
    ``kept_before``, ``kept_after``: rows of operators that earlier tiles have made and this or later ones read ("rows" only,
    and not of results, which are there anyway).
    """

    place: tuple[int, int]
    made: dict[int, Rectangle]
    share: dict[int, Rectangle]
    read: dict[int, Rectangle]
    kept_before: dict[int, Span]
    kept_after: dict[int, Span]


def root_of(problem: TilingProblem, kept: Sequence[int]) -> int:
    """What the grid of a stage divides: its last result, or what that one reduces. ``kept``: its results."""
    if not kept:
        raise StageError("nothing is left after the stage")
    last = problem.operators[kept[-1]]
    return last.reads[0].source if last.kind == "reduction" else kept[-1]


def bounds_of(problem: TilingProblem, root: int, axis: Axis, parts: int, periods: Periods) -> list[int]:
    """Where the parts of ``root`` begin and end."""
    size = extent(problem.operators[root], axis)
    return split(size, parts, periods.alignment(root, axis) if parts < size else 1)


def tiles(problem: TilingProblem, stage: Stage) -> list[Tile]:
    """The tiles of a stage of kind "patches" (row by row of the grid) or "rows" (from top to bottom).

    StageError where the stage is layerwise, or has an operator that only can be made at once.
    """
    if stage.kind == "layerwise":
        raise StageError("a layerwise stage has no tiles")
    check_tiled(problem, stage)
    order, kept = members(problem, stage), results(problem, stage)
    reduced = {problem.operators[i].reads[0].source for i in order if problem.operators[i].kind == "reduction"}
    down = _axis(problem, stage, 0, stage.grid[0])
    across = _axis(problem, stage, 1, 1 if stage.kind == "rows" else stage.grid[1])
    layout = _Layout(problem, order, frozenset(kept), frozenset({*kept, *reduced}), down, across, stage.kind == "rows")
    return [_tile(layout, i, j) for i in range(down.parts) for j in range(across.parts)]


@dataclass(frozen=True, slots=True)
class _Axis:
    parts: int
    inside: dict[int, Spans]
    outside: dict[int, Spans]


def _axis(problem: TilingProblem, stage: Stage, axis: Axis, parts: int) -> _Axis:
    """Intervals of all operators of the stage and of its sources along one axis."""
    order, kept = members(problem, stage), set(results(problem, stage))
    root = root_of(problem, sorted(kept))
    bounds = bounds_of(problem, root, axis, parts, Periods(problem))
    whole = stage.kind == "rows" and axis == 1
    sweep = TilingSweep(problem, axis, root, np.array([bounds], dtype=np.int64), keep=stage.kind == "rows")
    inside = {index: sweep.visit(index, is_result=whole or index in kept) for index in reversed(order)}
    outside = {index: sweep.outside(index) for index in sources(problem, stage)}
    if whole:
        outside = {index: _everything(extent(problem.operators[index], axis)) for index in outside}
    return _Axis(len(bounds) - 1, inside, outside)


def _everything(size: int) -> Spans:
    whole = Interval(np.zeros((1, 1), dtype=np.int64), np.full((1, 1), size, dtype=np.int64))
    return Spans(whole, whole)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What tiles of one stage have in common. ``shared``: operators that are divided into shares."""

    problem: TilingProblem
    order: tuple[int, ...]
    kept: frozenset[int]
    shared: frozenset[int]
    down: _Axis
    across: _Axis
    rows: bool


def _tile(layout: _Layout, row: int, column: int) -> Tile:
    made, share, read = dict[int, Rectangle](), dict[int, Rectangle](), dict[int, Rectangle]()
    down, across = layout.down, layout.across
    for index in down.outside:
        _put(read, index, _rectangle(down.outside[index].made, across.outside[index].made, row, column))
        if index in layout.shared:
            _put(share, index, _rectangle(down.outside[index].share, across.outside[index].share, row, column))
    for index in layout.order:
        operator = layout.problem.operators[index]
        if operator.kind == "reduction":
            if operator.reads[0].source in share:
                made[index] = Rectangle(Span(0, operator.height), Span(0, operator.width))
            continue
        _put(made, index, _rectangle(down.inside[index].made, across.inside[index].made, row, column))
        if index in layout.shared:
            _put(share, index, _rectangle(down.inside[index].share, across.inside[index].share, row, column))
    return Tile((row, column), made, share, read, _kept(layout, row), _kept(layout, row + 1))


def _kept(layout: _Layout, row: int) -> dict[int, Span]:
    """Line buffers that hold something as a strip begins."""
    if not layout.rows or row == layout.down.parts:
        return {}
    lines = {index: _span(layout.down.inside[index].kept, row) for index in layout.order if index not in layout.kept}
    return {index: span for index, span in lines.items() if span.length}


def _span(interval: Interval | None, part: int) -> Span:
    if interval is None:
        return Span(0, 0)
    return Span(int(interval.start[0, part]), int(interval.stop[0, part]))


def _rectangle(rows: Interval | None, columns: Interval | None, row: int, column: int) -> Rectangle:
    return Rectangle(_span(rows, row), _span(columns, column))


def _put(into: dict[int, Rectangle], index: int, rectangle: Rectangle) -> None:
    """Add what is not empty."""
    if rectangle.pixels > 0:
        into[index] = rectangle
