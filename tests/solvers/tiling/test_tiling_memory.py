"""Bytes of stages counted by hand and by naive replay; costs of many stages at once against one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.tiling.grids import Periods
from memcompile.solvers.tiling.layers import PatchLayers, StripLayers
from memcompile.solvers.tiling.lives import ResultLives
from memcompile.solvers.tiling.memory import cost, costed
from memcompile.solvers.tiling.problem import Stage, StageKind, TilingProblem
from memcompile.solvers.tiling.ranges import Limits, Ranges, tiled_ranges
from memcompile.solvers.tiling.stages import StageError, needed_after
from tests.solvers.tiling.tiling_nets import Net, copying, mobilenet_v2, random_problem, unet

KINDS: tuple[StageKind, ...] = ("patches", "rows")


def found(problem: TilingProblem, cut: int) -> Ranges | None:
    lives = ResultLives(problem)
    return tiled_ranges(
        lives, cut, Limits(frozenset(range(cut)), len(problem.operators), {}, frozenset(KINDS)), Periods(problem)
    )


def one_by_one(problem: TilingProblem, cut: int) -> list[tuple[int, int, int, int]]:
    """(first, peak, macs, tiles) of all tiled stages that end at a cut, on the grids that the search tries."""
    last = problem.operators[cut - 1]
    root = last.reads[0].source if last.kind == "reduction" else cut - 1
    tallest = max(x.height for x in problem.operators[:cut])
    grids = [*PatchLayers(problem, root, Periods(problem)).grids, *StripLayers(problem, root, tallest, Periods(problem)).grids]
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
@given(st.integers(0, 10**6), st.integers(3, 8), st.booleans())
def test_costs_at_once_are_those_one_by_one(seed: int, count: int, copies: bool) -> None:
    problem = copying(random_problem(seed, count), seed) if copies else random_problem(seed, count)
    for cut in range(1, len(problem.operators) + 1):
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
        if ResultLives(problem).last[cut - 1] >= cut and "input" not in reduced:
            for stage in one_by_one(problem, cut):
                assert any(x[0] == stage[0] and all(a <= b for a, b in zip(x[1:], stage[1:], strict=True)) for x in listed)


def test_layerwise_by_hand() -> None:
    net = Net()
    image = net.image(4, 4, 2)
    first = net.conv(image, 4)
    changed = net.pointwise(first)
    wide = net.conv(changed, 8, 1)
    net.conv(wide, 4, 1, onto=changed)
    problem = net.problem()
    assert cost(problem, Stage(1, 5, "layerwise")).peak_bytes == 16 * (4 + 8)
    assert cost(problem, Stage(1, 3, "layerwise")).peak_bytes == 16 * 4
    assert cost(problem, Stage(1, 5, "layerwise")).macs == 16 * (9 * 2 * 4 + 4 * 8 + 8 * 4)


def test_an_input_counts_while_it_is_held_or_read() -> None:
    for held, whole, tiled in ((True, 16 * 2, 0), (False, 0, 3 * 3 * 2)):
        net = Net()
        net.conv(net.image(4, 4, 2, held=held), 4)
        problem = net.problem()
        assert cost(problem, Stage(1, 2, "layerwise")).peak_bytes == 16 * 4 + whole
        assert cost(problem, Stage(1, 2, "patches", (2, 2))).peak_bytes == 16 * 4 + whole + tiled


def test_patches_by_hand() -> None:
    net = Net()
    inner = net.conv(net.image(8, 8, 1), 10, 1)
    changed = net.conv(inner, 10, 3, depthwise=True, in_place=True)
    problem = net.problem(net.conv(changed, 2, 1))
    x = cost(problem, Stage(1, 4, "patches", (2, 2)))
    assert x.peak_bytes == 64 * 2 + 5 * 5 * (10 + 1)
    assert x.macs == 4 * 25 * 10 + 64 * (9 * 10 + 10 * 2)


def test_rows_by_hand() -> None:
    net = Net()
    inner = net.conv(net.image(8, 8, 1, held=True), 10, 1)
    problem = net.problem(net.conv(inner, 2, 3))
    x = cost(problem, Stage(1, 3, "rows", (8, 1)))
    assert x.peak_bytes == 64 + 64 * 2 + 3 * 8 * 10
    assert x.macs == cost(problem, Stage(1, 3, "layerwise")).macs


def test_a_skip_with_a_halo_is_kept_beside_its_share() -> None:
    net = Net()
    skip = net.conv(net.image(8, 8, 1, held=True), 3, 1)
    problem = net.problem(skip, net.conv(skip, 2, 3))
    results = 64 * (3 + 2)
    assert cost(problem, Stage(1, 3, "patches", (2, 2))).peak_bytes == 64 + results + 5 * 5 * 3
    assert cost(problem, Stage(1, 3, "rows", (4, 1))).peak_bytes == 64 + results


def test_results_made_again_are_not_kept() -> None:
    problem = unet(16, 4, 1)
    count = len(problem.operators)
    cat = next(i for i, x in enumerate(problem.operators) if x.name.startswith("cat"))
    kept = (Stage(1, 6, "patches", (2, 2)), Stage(6, cat - 1, "layerwise"), Stage(cat - 1, count, "patches", (2, 2)))
    again = (
        replace(kept[0], dropped=(4,)),
        kept[1],
        replace(kept[2], again=(1, 2, 3, 4)),
    )
    skip = problem.operators[4].size_bytes
    first, second = costed(problem, kept), costed(problem, again)
    assert second[1].peak_bytes == first[1].peak_bytes - skip
    assert second[2].macs > first[2].macs
    assert needed_after(problem, again)[1] == frozenset()
    assert needed_after(problem, kept)[1] == {4}


def test_known_peaks_of_mobilenet() -> None:
    """1372 KiB, and 172 kB in 4x4 patches at 10 % more operations: MCUNetV2 (Lin et al. 2021), figure 1 and table 1."""
    problem = mobilenet_v2(1.0, 224)
    count = len(problem.operators)
    base = cost(problem, Stage(1, count, "layerwise"))
    stages = costed(problem, (Stage(1, 13, "patches", (4, 4)), Stage(13, count, "layerwise")))
    assert base.peak_bytes == 1372 * 1024
    assert max(stage.peak_bytes for stage in stages) == 171.5 * 1024
    assert sum(stage.macs for stage in stages) / base.macs == pytest.approx(1.0928, abs=1e-4)


def copied(problem: TilingProblem, *indices: int, fixed_lines: bool = False) -> TilingProblem:
    """The problem in which some operators copy their first operand."""
    operators = tuple(replace(x, copies=(0,)) if i in indices else x for i, x in enumerate(problem.operators))
    return replace(problem, operators=operators, fixed_lines=fixed_lines)


def test_a_copied_operand_is_freed_before_the_result() -> None:
    net = Net()
    inner = net.conv(net.image(8, 8, 1), 10, 1)
    problem = net.problem(net.conv(net.conv(inner, 6), 2, 1))
    stage = Stage(1, 4, "patches", (2, 2))
    result = 64 * 2
    assert cost(problem, stage).peak_bytes == result + 25 * 10 + 16 * 6
    assert cost(copied(problem, 2), stage).peak_bytes == result + 25 * 10 + 25 * 10
    net = Net()
    inner = net.conv(net.image(8, 8, 1), 10, 1)
    wide = net.problem(net.conv(net.conv(inner, 20), 2, 1))
    assert cost(copied(wide, 2), stage).peak_bytes == result + 25 * 10 + 16 * 20


def test_an_operand_that_is_read_on_stays_beside_its_copy() -> None:
    net = Net()
    inner = net.conv(net.image(8, 8, 1), 10, 1)
    problem = net.problem(net.conv(net.cat(net.conv(inner, 6), inner), 2, 1))
    x = cost(copied(problem, 2), Stage(1, 5, "patches", (2, 2)))
    assert x.peak_bytes == 64 * 2 + 25 * 10 + max(25 * 10 + 16 * 6, 16 * 6 + 16 * 16)


def test_what_is_read_in_full_and_without_padding_is_not_copied() -> None:
    net = Net()
    inner = net.conv(net.image(12, 12, 1, held=True), 10, 1)
    plain = net.problem(net.conv(inner, 2, 3, padding=0))
    padded = Net()
    padded.conv(padded.conv(padded.image(12, 12, 1, held=True), 10, 1), 2, 3)
    for problem, copy in ((plain, 0), (padded.problem(), 1)):
        result = problem.operators[-1].height * problem.operators[-1].width * 2
        for kind, grid, made in (("patches", (2, 2), 7 * 7), ("rows", (1, 1), 12 * 12)):
            stage = Stage(1, 3, kind, grid)  # type: ignore[arg-type]
            assert cost(copied(problem, 2), stage).peak_bytes == 144 + result + made * 10 * (1 + copy)


def test_copies_of_what_lies_outside() -> None:
    for held in (True, False):
        net = Net()
        problem = copied(net.problem(net.conv(net.image(8, 8, 3, held=held), 2)), 1)
        whole = 64 * 3 * held
        assert cost(problem, Stage(1, 2, "layerwise")).peak_bytes == whole + 64 * 2
        assert cost(problem, Stage(1, 2, "patches", (2, 2))).peak_bytes == whole + 64 * 2 + 25 * 3
        assert cost(problem, Stage(1, 2, "rows", (4, 1))).peak_bytes == whole + 64 * 2 + 4 * 8 * 3
    net = Net()
    problem = copied(net.problem(net.conv(net.conv(net.image(8, 8, 3), 10), 2)), 2)
    assert cost(problem, Stage(2, 3, "patches", (2, 2))).peak_bytes == 64 * 12 + 25 * 10


def test_a_copied_operand_is_not_written_over() -> None:
    net = Net()
    inner = net.conv(net.image(8, 8, 1), 10, 1)
    problem = net.problem(net.conv(net.conv(inner, 10, 3, depthwise=True, in_place=True), 2, 1))
    stage = Stage(1, 4, "patches", (2, 2))
    assert cost(copied(problem, 2), stage).peak_bytes == 64 * 2 + max(25 * 10 + 25 * 10, 25 * 10 + 16 * 10)
    assert cost(copied(problem, 2), Stage(1, 4, "layerwise")) == cost(problem, Stage(1, 4, "layerwise"))


def test_lines_in_buffers_of_their_own() -> None:
    """Six rows are made at first, then four; the two that are kept count twice while they are read."""
    net = Net()
    inner = net.conv(net.image(16, 8, 1, held=True), 10, 1)
    problem = net.problem(net.conv(inner, 2, 3))
    stage, whole, row = Stage(1, 3, "rows", (4, 1)), 16 * 8 * (1 + 2), 8 * 10
    assert cost(problem, stage).peak_bytes == whole + (2 + 4) * row
    assert cost(replace(problem, fixed_lines=True), stage).peak_bytes == whole + (2 + 5) * row
    assert cost(copied(problem, 2), stage).peak_bytes == whole + (2 + 4 + 6) * row
    assert cost(copied(problem, 2, fixed_lines=True), stage).peak_bytes == whole + (2 + 4 + 6) * row


def test_lines_are_copied_whole() -> None:
    """The result of a skip is kept for a late reader, and all that is kept is copied together with new rows."""
    net = Net()
    skip = net.conv(net.image(16, 8, 1, held=True), 10, 1)
    problem = net.problem(net.pointwise(skip, net.conv(skip, 10, 3), in_place=False))
    stage, whole, row = Stage(1, 4, "rows", (16, 1)), 16 * 8 * (1 + 10), 8 * 10
    first_tile, others = 2 + 2 + 1, 2 + 1 + 1 + (2 + 1)
    assert cost(replace(problem, fixed_lines=True), stage).peak_bytes == whole + first_tile * row
    assert cost(copied(problem, 3, fixed_lines=True), stage).peak_bytes == whole + others * row


def test_results_in_buffers_of_their_own() -> None:
    net = Net()
    inner = net.conv(net.image(16, 8, 1, held=True), 10, 1)
    problem = net.problem(net.conv(inner, 4, 3), inner)
    apart, whole = replace(problem, results_apart=True), 16 * 8 * (1 + 4 + 10)
    for kind, grid, made, share in (("rows", (4, 1), 5 * 8, 4 * 8), ("patches", (2, 2), 9 * 5, 8 * 4)):
        stage = Stage(1, 3, kind, grid)  # type: ignore[arg-type]
        assert cost(problem, stage).peak_bytes == whole + (0 if kind == "rows" else made * 10)
        assert cost(apart, stage).peak_bytes == whole + made * 10 + share * 4
    assert cost(apart, Stage(1, 3, "layerwise")) == cost(problem, Stage(1, 3, "layerwise"))
