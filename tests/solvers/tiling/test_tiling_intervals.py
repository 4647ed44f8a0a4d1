"""Tiles against sets of pixels: what is made covers what is read, shares cover results, rows run once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.tiling.grids import split
from memcompile.solvers.tiling.intervals import Rectangle, Span, Tile, tiles
from memcompile.solvers.tiling.problem import Operator, Read, Stage, StageKind, TilingProblem
from memcompile.solvers.tiling.stages import StageError, check_tiled, members, results
from tests.solvers.tiling.tiling_nets import Net, random_problem, unet

Pixels = set[tuple[int, int]]


def pixels(rectangle: Rectangle) -> Pixels:
    return {(i, j) for i in range(*rectangle.rows) for j in range(*rectangle.columns)}


def read_pixels(operator: Operator, read: Read, source: Operator, made: Pixels) -> Pixels:
    """Pixels of a source that those of a result need, one by one; padding is not there."""
    needed: Pixels = set()
    for i, j in made:
        rows = range(source.height) if read.rows is None else range(*read.rows[i])
        columns = range(source.width) if read.columns is None else range(*read.columns[j])
        needed.update((y, x) for y in rows for x in columns if 0 <= y < source.height and 0 <= x < source.width)
    return needed


def some_stage(problem: TilingProblem, seed: int, kind: StageKind) -> Stage | None:
    """A random range that can run tile by tile."""
    draw = random.Random(seed)
    for _ in range(20):
        first = draw.randrange(len(problem.operators))
        last = draw.randint(first + 1, len(problem.operators))
        grid = (
            draw.choice((1, 2, 3, 4, 5, 16, 40)) if kind == "rows" else draw.randint(1, 5),
            1 if kind == "rows" else draw.randint(1, 4),
        )
        stage = Stage(first, last, kind, grid)
        try:
            check_tiled(problem, stage)
        except StageError:
            continue
        if results(problem, stage):
            return stage
    return None


def replay(problem: TilingProblem, stage: Stage, run: list[Tile]) -> None:
    """Run the tiles on sets of pixels: every read finds its pixels, and results are complete in the end."""
    order, kept = members(problem, stage), results(problem, stage)
    written: dict[int, Pixels] = {index: set() for index in order}
    reduced: dict[int, Pixels] = {index: set() for index in order if problem.operators[index].kind == "reduction"}
    lines: dict[int, Pixels] = {index: set() for index in order}
    for tile in run:
        there = {index: pixels(rectangle) for index, rectangle in tile.read.items()}
        width = {index: range(problem.operators[index].width) for index in order}
        held = {i: {(y, x) for y in range(*rows) for x in width[i]} for i, rows in tile.kept_before.items()}
        if stage.kind == "rows":
            held |= {index: written[index] for index in kept}
        assert all(held[i] <= lines[i] for i in tile.kept_before)
        for index in tile.made:
            operator, made = problem.operators[index], pixels(tile.made[index])
            if operator.kind == "reduction":
                source = operator.reads[0].source
                assert not reduced[index] & pixels(tile.share[source])
                reduced[index] |= pixels(tile.share[source])
                assert pixels(tile.share[source]) <= there[source]
                continue
            for read in operator.reads:
                needed = read_pixels(operator, read, problem.operators[read.source], made)
                assert needed <= there.get(read.source, set()) | held.get(read.source, set()), operator.name
            if stage.kind == "rows":
                assert not made & written[index]
            there[index] = made
            written[index] |= made
        lines = {index: held.get(index, set()) | there.get(index, set()) for index in order}
        lines = {i: {(y, x) for y, x in lines[i] if y in range(*tile.kept_after.get(i, (0, 0)))} for i in order}
    for index in kept:
        operator = problem.operators[index]
        if operator.kind != "reduction":
            shares = [pixels(tile.share[index]) for tile in run if index in tile.share]
            assert sum(len(share) for share in shares) == operator.height * operator.width == len(set().union(*shares))
            assert all(pixels(tile.share[index]) <= pixels(tile.made[index]) for tile in run if index in tile.share)
    for index, seen in reduced.items():
        reads = problem.operators[problem.operators[index].reads[0].source]
        assert len(seen) == reads.height * reads.width


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 9), st.sampled_from(["patches", "rows"]))
def test_tiles_find_what_they_read(seed: int, count: int, kind: StageKind) -> None:
    problem = random_problem(seed, count)
    stage = some_stage(problem, seed, kind)
    if stage is not None:
        replay(problem, stage, tiles(problem, stage))


def shapes(tile: Tile) -> tuple[tuple[int, ...], ...]:
    """Sizes of all that a tile makes, reads and keeps."""
    made = tuple((i, r.rows.length, r.columns.length) for i, r in (*tile.made.items(), *tile.read.items()))
    return made + tuple((i, span.length) for i, span in tile.kept_before.items())


def test_the_halo_of_two_convolutions() -> None:
    net = Net()
    first = net.conv(net.image(16, 16, 1), 1, 3)
    problem = net.problem(net.conv(first, 1, 3, 2))
    run = tiles(problem, Stage(1, 3, "patches", (2, 2)))
    assert run[3].made[2] == Rectangle(Span(4, 8), Span(4, 8))
    assert run[3].made[1] == Rectangle(Span(7, 16), Span(7, 16))
    assert run[3].read[0] == Rectangle(Span(6, 16), Span(6, 16))
    assert run[0].made[1] == Rectangle(Span(0, 8), Span(0, 8))
    assert run[0].read[0] == Rectangle(Span(0, 9), Span(0, 9))


def test_rows_keep_the_overlap() -> None:
    net = Net()
    first = net.conv(net.image(16, 16, 1), 1, 3)
    problem = net.problem(net.conv(first, 1, 3))
    run = tiles(problem, Stage(1, 3, "rows", (4, 1)))
    assert [tile.made[1].rows for tile in run] == [(0, 5), (5, 9), (9, 13), (13, 16)]
    assert [tile.kept_before.get(1) for tile in run] == [None, (3, 5), (7, 9), (11, 13)]
    assert [tile.kept_after.get(1) for tile in run] == [(3, 5), (7, 9), (11, 13), None]
    assert all(tile.made[1].columns == (0, 16) for tile in run)


def test_operators_made_again_are_inside() -> None:
    problem = unet(16, 1, 1)
    skip = 4
    end = len(problem.operators)
    assert problem.operators[skip + 1].name.startswith("pool")
    cat = next(i for i in range(end) if problem.operators[i].name.startswith("cat"))
    stage = Stage(cat - 1, end, "patches", (2, 2), again=(1, 2, 3, 4))
    assert members(problem, stage)[:6] == (cat - 1, 1, 2, 3, 4, cat)
    assert results(problem, Stage(1, 6, "patches", (2, 2), dropped=(skip,))) == (5,)
    run = tiles(problem, stage)
    replay(problem, stage, run)
    assert set(run[0].read) == {0, cat - 2}


@pytest.mark.parametrize("kind", ["patches", "rows"])
def test_interior_tiles_are_alike(kind: StageKind) -> None:
    problem = unet(96, 1, 2)
    first = next(i for i, x in enumerate(problem.operators) if x.name.startswith("up"))
    stage = Stage(first, len(problem.operators), kind, (8, 1))
    run = tiles(problem, stage)
    assert len({shapes(tile) for tile in run[2:-2]}) == 1


def test_tiles_begin_at_multiples() -> None:
    assert split(100, 6) == [0, 17, 34, 51, 68, 85, 100]
    assert split(96, 5, 4) == [0, 20, 40, 60, 80, 96]
    assert split(7, 5) == [0, 1, 2, 4, 5, 7]
    assert split(3, 6) == [0, 0, 1, 1, 2, 2, 3]
    assert split(56, 3, 8) == [0, 20, 40, 56]


def test_what_cannot_be_tiled_is_refused() -> None:
    net = Net()
    x = net.conv(net.image(8, 8, 1), 2, 3)
    problem = net.problem(net.scaled(x, net.whole(net.mean(x), 1, 1, 2)))
    with pytest.raises(StageError, match="only made at once"):
        tiles(problem, Stage(1, 4, "patches", (2, 2)))
    net = Net()
    x = net.conv(net.image(8, 8, 1), 2, 3)
    problem = net.problem(net.scaled(x, net.mean(x)))
    with pytest.raises(StageError, match="complete after all tiles only"):
        tiles(problem, Stage(1, 4, "patches", (2, 2)))
    assert tiles(problem, Stage(3, 4, "patches", (2, 2)))[0].read[2] == Rectangle(Span(0, 1), Span(0, 1))
