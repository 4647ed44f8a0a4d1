"""The placements one by one: the depth-first search against brute force, compiled loops against plain ones, hard instances."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.places import packing, placement, placement_exact
from memcompile.solvers.places.minimalloc import read_csv
from memcompile.solvers.places.packing import Buffer, CapacityError, Packing, pack, split, validate
from memcompile.solvers.places.placement_exact import Verdict, _constrain, search_height
from memcompile.solvers.places.placement_search import PlacementSearch
from memcompile.solvers.schedule.simulate import Ints
from tests.solvers.places.test_packing import instances, smallest_height

HARD = Path(__file__).resolve().parents[3] / "benchmarks" / "data" / "minimalloc"
CAPACITY = 1048576


def _hard(name: str) -> list[Buffer]:
    return read_csv((HARD / f"{name}.{CAPACITY}.csv").read_text())


@settings(max_examples=150, deadline=None)
@given(instances(count=7), st.booleans(), st.randoms(use_true_random=False))
def test_the_search_finds_the_smallest_height_and_proves_it(buffers: list[Buffer], upwards: bool, random: Random) -> None:
    for part in split(buffers):
        inside = [buffers[i] for i in part.indices]
        height = smallest_height(inside)
        order = np.array(random.sample(range(len(inside)), len(inside)))
        for allowed in (height, height - 1):
            search = PlacementSearch(part, allowed, np.ones(int(part.ends.max())))
            found, offsets = search.attempt(order, upwards, steps=100_000)
            assert found is (allowed == height)
            if found:
                assert validate(inside, offsets.tolist()) == height
        found, _ = search.attempt(order, upwards, steps=0)
        assert not found, "out of steps, or refuted at once"


def cut(random: Random, pieces: int, width: int = 12, height: int = 24) -> list[Buffer]:
    """A rectangle of time and bytes cut into buffers: there is an arrangement without a gap."""
    rectangles = [(0, width, height)]
    while len(rectangles) < pieces:
        lower, upper, size = rectangles.pop(random.randrange(len(rectangles)))
        if upper - lower > 1 and (size == 1 or random.random() < 0.5):
            at = random.randrange(lower + 1, upper)
            rectangles += [(lower, at, size), (at, upper, size)]
        elif size > 1:
            at = random.randrange(1, size)
            rectangles += [(lower, upper, at), (lower, upper, size - at)]
        else:
            rectangles.append((lower, upper, size))
    return [Buffer(f"b{i}", *rectangle) for i, rectangle in enumerate(rectangles)]


@pytest.mark.parametrize("upwards", [True, False])
def test_the_search_finds_arrangements_without_a_gap(upwards: bool) -> None:
    random = Random(0)
    for _ in range(60):
        buffers = cut(random, pieces=random.randrange(8, 20))
        for part in split(buffers):
            inside = [buffers[i] for i in part.indices]
            order = np.array(random.sample(range(len(inside)), len(inside)))
            found, offsets = PlacementSearch(part, 24, np.ones(int(part.ends.max()))).attempt(order, upwards, steps=200_000)
            assert found is not False, "one without a gap exists"
            if found:
                assert validate(inside, offsets.tolist()) == 24


@settings(max_examples=150, deadline=None)
@given(instances(count=16, times=10, size=9), st.booleans(), st.randoms(use_true_random=False))
def test_the_search_agrees_with_the_constraint_solver(buffers: list[Buffer], upwards: bool, random: Random) -> None:
    """At every height from the lower bound to that of an arrangement at hand."""
    for part in split(buffers):
        inside = [buffers[i] for i in part.indices]
        order = np.array(random.sample(range(len(inside)), len(inside)))
        known = part.height(placement.best_fit(part, order))
        for height in range(part.lower_bound, known + 1):
            found, offsets = PlacementSearch(part, height, np.ones(int(part.ends.max()))).attempt(order, upwards, steps=100_000)
            verdict, _ = _constrain(part, height, order, slice_=10.0, deadline=time.monotonic() + 60)
            assert found is (verdict is Verdict.FOUND)
            if found:
                assert validate(inside, offsets.tolist()) <= height
                break


@settings(max_examples=40, deadline=None)
@given(instances(count=40, times=30, size=50), st.booleans())
def test_compiled_loops_place_as_the_plain_ones_do(buffers: list[Buffer], hold: bool) -> None:
    for part in split([Buffer("held", 0, 30, 7, offset=20), *buffers] if hold else buffers):
        for order in placement.orders(part).values():
            for way in (placement.best_fit, placement.canonical)[: 1 if hold else 2]:
                plain, compiled = (_placed(way, part, order, bound) for bound in (10**9, 0))
                assert plain.tolist() == compiled.tolist()


def _placed(
    way: Callable[[placement.PlacementPart, Ints], Ints], part: placement.PlacementPart, order: Ints, bound: int
) -> Ints:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "COMPILED_FROM", bound)
        return way(part, order)


def test_a_limit_that_has_passed_still_gives_one_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def counted(part: placement.PlacementPart) -> Iterator[tuple[str, Ints]]:
        for name, offsets in placement.placements(part):
            begun.append(name)
            yield name, offsets

    monkeypatch.setattr(packing, "placements", counted)
    buffers = _hard("D")
    found = pack(buffers, time_limit_s=0.0)
    assert validate(buffers, found.offsets) == found.height > found.lower_bound
    assert begun == ["canonical, TWA"]


@pytest.mark.parametrize("name", "ABDEGIJ")
def test_hard_instances_at_their_capacity(name: str) -> None:
    """Those of MiniMalloc that no greedy placement brings below their capacity, in any time."""
    buffers = _hard(name)
    found = pack(buffers, capacity=CAPACITY, time_limit_s=120)
    assert validate(buffers, found.offsets, capacity=CAPACITY) == found.height


def test_a_search_that_is_cut_says_that_it_does_not_know() -> None:
    buffers = _hard("D")
    (part,) = split(buffers)
    verdict, _ = search_height(part, part.lower_bound, time_limit_s=0.1)
    assert verdict is Verdict.UNKNOWN
    with pytest.raises(CapacityError, match="more time may find one") as caught:
        pack(buffers, capacity=part.lower_bound, time_limit_s=0.1)
    assert not caught.value.proven
    best: Packing = caught.value.best
    assert validate(buffers, best.offsets) == best.height


def test_the_same_orders_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the second round have noise."""
    (part,) = split(_hard("D"))
    tried: list[list[int]] = []

    def attempt(self: PlacementSearch, order: Ints, upwards: bool, steps: int) -> tuple[None, Ints]:
        tried.append(order.tolist())
        return None, order

    monkeypatch.setattr(PlacementSearch, "attempt", attempt)
    monkeypatch.setattr(placement_exact, "_constrain", lambda *_: (Verdict.UNKNOWN, np.zeros(0, dtype=np.int64)))
    runs = []
    for seed in (5, 5, 6):
        tried.clear()
        search_height(part, part.lower_bound, time_limit_s=1.0, seed=seed)
        runs.append(tried[: 2 * len(placement_exact.ATTEMPTS)])
    first, again, other = runs
    assert len(first) == 2 * len(placement_exact.ATTEMPTS)
    assert first == again != other


def test_the_same_answer_every_time() -> None:
    (part,) = split(_hard("D"))
    first, again = (search_height(part, CAPACITY, time_limit_s=120, seed=5)[1].tolist() for _ in range(2))
    assert first == again
