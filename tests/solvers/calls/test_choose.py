"""What each call of a step gets, against all that it could get."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from memcompile.solvers.calls.choose import VARIANTS, Moment, Point, choose

Points = list[list[Point]]


def chain(count: int, limit_bytes: int) -> list[Moment]:
    """Forwards in order, backwards in reverse."""
    forwards = [Moment(call, False, tuple(range(call)), limit_bytes) for call in range(count)]
    return [*forwards, *(Moment(call, True, tuple(range(call)), limit_bytes) for call in reversed(range(count)))]


def problem(seed: int) -> tuple[Points, list[int], list[Moment]]:
    """Five calls of three graphs, with moments as they come: a forward may be followed by any backward, or by nothing of
    ours."""
    draw = Random(seed)
    fronts = [[point(draw) for _ in range(draw.randrange(1, 4))] for _ in range(3)]
    graphs = [draw.randrange(3) for _ in range(5)]
    moments = [
        Moment(
            draw.choice((None, call)), draw.random() < 0.5, tuple(o for o in range(5) if o != call and draw.random() < 0.5), 250
        )
        for call in range(5)
        for _ in range(2)
    ]
    return [fronts[graph] for graph in graphs], graphs, moments


def point(draw: Random) -> Point:
    held = draw.randrange(10, 60)
    return Point(held, held + draw.randrange(40), held + draw.randrange(80), draw.randrange(1, 100) / 1000)


def fits(points: Points, graphs: list[int], moments: list[Moment], chosen: tuple[int, ...]) -> bool:
    """Counted by hand."""
    for moment in moments:
        total = sum(points[other][chosen[other]].held_bytes for other in moment.beside)
        if moment.call is not None:
            own = points[moment.call][chosen[moment.call]]
            total += own.backward_bytes if moment.backward else own.forward_bytes
        if total > moment.limit_bytes:
            return False
    used = {(graph, index) for graph, index in zip(graphs, chosen, strict=True)}
    return all(sum(of == graph for of, _ in used) <= VARIANTS for graph in graphs)


@pytest.mark.parametrize("seed", range(30))
def test_the_fastest_of_all_that_fit(seed: int) -> None:
    points, graphs, moments = problem(seed)
    every = [
        sum(own[index].seconds for own, index in zip(points, chosen, strict=True))
        for chosen in itertools.product(*(range(len(own)) for own in points))
        if fits(points, graphs, moments, chosen)
    ]
    choice = choose(points, graphs, moments, time_limit_s=10.0)
    assert (choice is None) == (not every)
    if choice is not None:
        assert fits(points, graphs, moments, choice.points)
        assert choice.seconds <= min(every) * 1.002 and choice.bound_seconds <= min(every) + 1e-9


def test_calls_that_are_alike_are_quick() -> None:
    """Of 24 equal blocks, which ones hold much makes no difference: no reason to try all."""
    front = [Point(h, h + 5, h + 7, 1 - 0.02 * h - 0.0001 * h * h) for h in range(1, 20)]
    choice = choose([front] * 24, [0] * 24, chain(24, 157), time_limit_s=5.0)
    assert choice is not None and choice.status == "optimal"
    assert choice.seconds == pytest.approx(20.7456, rel=1e-3)


def test_what_ran_already_stays() -> None:
    front = [Point(10, 20, 20, 0.0), Point(1, 20, 20, 1.0)]
    free = choose([front] * 3, [0] * 3, chain(3, 31), time_limit_s=5.0)
    assert free is not None and free.seconds == 1.0, "two calls are held beside the third, which may hold much"
    fixed = choose([front] * 3, [0] * 3, chain(3, 31), {0: 0, 1: 0}, time_limit_s=5.0)
    assert fixed is None
    fixed = choose([front] * 3, [0] * 3, chain(3, 31), {0: 0}, time_limit_s=5.0)
    assert fixed is not None and fixed.points == (0, 1, 0)
