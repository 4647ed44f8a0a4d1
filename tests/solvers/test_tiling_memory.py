"""Bytes of stages counted by hand and by naive replay; costs of many stages at once against one at a time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.tiling.grids import Periods
from memcompile.solvers.tiling.layers import Patches, Rows
from memcompile.solvers.tiling.lives import Lives
from memcompile.solvers.tiling.memory import cost
from memcompile.solvers.tiling.problem import Problem, Stage
from memcompile.solvers.tiling.ranges import Limits, Ranges, tiled_ranges
from memcompile.solvers.tiling.stages import StageError
from tests.solvers.tiling_nets import random_problem


def found(problem: Problem, cut: int) -> Ranges | None:
    lives = Lives(problem)
    return tiled_ranges(lives, cut, Limits(frozenset(range(cut)), len(problem.operators), {}), Periods(problem))


def one_by_one(problem: Problem, cut: int) -> list[tuple[int, int, int, int]]:
    """(first, peak, macs, tiles) of all tiled stages that end at a cut, on the grids that the search tries."""
    last = problem.operators[cut - 1]
    root = last.reads[0].source if last.kind == "reduction" else cut - 1
    tallest = max(x.height for x in problem.operators[:cut])
    grids = [*Patches(problem, root, Periods(problem)).grids, *Rows(problem, root, tallest, Periods(problem)).grids]
    stages = []
    for first in range(cut):
        for kind, down, across in grids:
            try:
                x = cost(problem, Stage(first, cut, kind, (down, across)))
            except StageError:
                continue
            if x.peak_bytes < cost(problem, Stage(first, cut, "layerwise")).peak_bytes:
                stages.append((first, x.peak_bytes, x.macs, down * across))
    return stages


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 8))
def test_costs_at_once_are_those_one_by_one(seed: int, count: int) -> None:
    problem = random_problem(seed, count)
    for cut in range(1, count + 1):
        if problem.operators[cut - 1].kind == "input":
            continue
        ranges = found(problem, cut)
        listed = []
        for i in range(len(ranges.first) if ranges else 0):
            assert ranges is not None
            kind, down, across = ranges.grids[ranges.grid[i]]
            x = cost(problem, Stage(int(ranges.first[i]), cut, kind, (down, across)))
            assert (x.peak_bytes, x.macs) == (ranges.peak_bytes[i], ranges.macs[i])
            listed.append((int(ranges.first[i]), x.peak_bytes, x.macs, down * across))
        reduced = {problem.operators[r.source].kind for x in problem.operators if x.kind == "reduction" for r in x.reads}
        if Lives(problem).last[cut - 1] >= cut and "input" not in reduced:
            for stage in one_by_one(problem, cut):
                assert any(x[0] == stage[0] and all(a <= b for a, b in zip(x[1:], stage[1:], strict=True)) for x in listed)
