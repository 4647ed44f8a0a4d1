"""The placements one by one: the depth-first search against brute force, compiled loops against plain ones, hard instances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers import placement
from memcompile.solvers.minimalloc import read_csv
from memcompile.solvers.packing import Buffer, CapacityError, Packing, pack, split, validate
from memcompile.solvers.placement_exact import Verdict, search_height
from memcompile.solvers.placement_search import Search
from memcompile.solvers.simulate import Ints
from tests.solvers.test_packing import instances, smallest_height

HARD = Path(__file__).resolve().parents[2] / "benchmarks" / "data" / "minimalloc"


@settings(max_examples=150, deadline=None)
@given(instances(count=7), st.booleans(), st.randoms(use_true_random=False))
def test_the_search_finds_the_smallest_height_and_proves_it(buffers: list[Buffer], upwards: bool, random: Random) -> None:
    for part in split(buffers):
        inside = [buffers[i] for i in part.indices]
        height = smallest_height(inside)
        order = np.array(random.sample(range(len(inside)), len(inside)))
        for allowed in (height, height - 1):
            search = Search(part, allowed, np.ones(int(part.ends.max())))
            found, offsets = search.attempt(order, upwards, steps=100_000)
            assert found is (allowed == height)
            if found:
                assert validate(inside, offsets.tolist()) == height
        found, _ = search.attempt(order, upwards, steps=0)
        assert not found, "out of steps, or refuted at once"


@settings(max_examples=30, deadline=None)
@given(instances(count=40, times=30, size=50))
def test_the_search_is_right_where_it_says_so(buffers: list[Buffer]) -> None:
    """Its answers at one unit below a known height agree with those of the constraint solver."""
    for part in split(buffers):
        height = min(part.height(offsets) for _, offsets in placement.placements(part))
        inside = [buffers[i] for i in part.indices]
        search = Search(part, height - 1, np.ones(int(part.ends.max())))
        answers = [search.attempt(np.arange(len(inside)), upwards, steps=20_000) for upwards in (True, False)]
        said = {found for found, _ in answers} - {None}
        assert len(said) <= 1
        for found, offsets in answers:
            if found:
                assert validate(inside, offsets.tolist()) < height


@settings(max_examples=40, deadline=None)
@given(instances(count=40, times=30, size=50), st.booleans())
def test_compiled_loops_place_as_the_plain_ones_do(buffers: list[Buffer], hold: bool) -> None:
    for part in split([Buffer("held", 0, 30, 7, offset=20), *buffers] if hold else buffers):
        for order in placement.orders(part).values():
            for way in (placement.best_fit, placement.canonical)[: 1 if hold else 2]:
                plain, compiled = (_placed(way, part, order, bound) for bound in (10**9, 0))
                assert plain.tolist() == compiled.tolist()


def _placed(way: Callable[[placement.Part, Ints], Ints], part: placement.Part, order: Ints, bound: int) -> Ints:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "COMPILED_FROM", bound)
        return way(part, order)


def test_many_buffers_in_one_go_within_the_limit_or_one_placement() -> None:
    """A limit that has passed still gives an arrangement."""
    buffers = [Buffer(f"b{i}", i, i + 1 + i * 7 % 50, 1 + i * 37 % 101) for i in range(5000)]
    packing = pack(buffers, time_limit_s=0.0)
    assert validate(buffers, packing.offsets) == packing.height
    assert packing.method == "canonical, TWA"


@pytest.mark.parametrize("name", "ABDEGIJ")
def test_hard_instances_at_their_capacity(name: str) -> None:
    """Those of MiniMalloc that no greedy placement brings below their capacity, in any time."""
    (path,) = HARD.glob(f"{name}.*.csv")
    capacity = int(path.name.split(".")[1])
    buffers = read_csv(path.read_text())
    packing = pack(buffers, capacity=capacity, time_limit_s=120)
    assert validate(buffers, packing.offsets, capacity=capacity) == packing.height


def test_a_search_that_is_cut_says_that_it_does_not_know() -> None:
    (path,) = HARD.glob("D.*.csv")
    buffers = read_csv(path.read_text())
    (part,) = split(buffers)
    verdict, _ = search_height(part, part.lower_bound, time_limit_s=0.1)
    assert verdict is Verdict.UNKNOWN
    with pytest.raises(CapacityError, match="more time may find one") as caught:
        pack(buffers, capacity=part.lower_bound, time_limit_s=0.1)
    assert not caught.value.proven
    best: Packing = caught.value.best
    assert validate(buffers, best.offsets) == best.height


def test_the_search_gives_the_same_answer_every_time() -> None:
    (path,) = HARD.glob("D.*.csv")
    (part,) = split(read_csv(path.read_text()))
    first, second = (search_height(part, 1 << 20, time_limit_s=120, seed=5)[1].tolist() for _ in range(2))
    assert first == second
