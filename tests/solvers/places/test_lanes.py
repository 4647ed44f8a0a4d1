"""Lanes: no two buffers in one place, no byte above the slack, and the best chain against every chain there is."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.places.lanes import lanes
from memcompile.solvers.places.packing import Buffer, validate
from memcompile.solvers.schedule.simulate import alive

Instance = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Begins, ends and sizes of buffers, and slack at each moment."""
MOMENTS = 8
ANY_SIZE = st.integers(1, 9)


@st.composite
def instances(draw: st.DrawFn, sizes: st.SearchStrategy[int] = ANY_SIZE) -> Instance:
    """Up to eight buffers over eight moments, and slack at each."""
    lives = draw(st.lists(st.tuples(st.integers(0, MOMENTS - 1), st.integers(1, MOMENTS), sizes), max_size=8))
    begins, ends, bytes_ = (np.array([life[i] for life in lives], dtype=np.int64) for i in range(3))
    slack = draw(st.lists(st.integers(0, 9), min_size=MOMENTS, max_size=MOMENTS))
    return begins, np.maximum(ends, begins + 1), bytes_, np.array(slack, dtype=np.int64)


@given(instances())
@settings(max_examples=300, deadline=None)
def test_places_do_not_overlap_and_what_is_wasted_is_slack(instance: Instance) -> None:
    begins, ends, sizes, slack = instance
    found = lanes(begins, ends, sizes, slack)
    inside = np.flatnonzero(found.offsets >= 0)
    buffers = [Buffer(str(i), int(begins[i]), int(ends[i]), int(sizes[i])) for i in inside]
    validate(buffers, found.offsets[inside].tolist(), capacity=found.height)
    wasted = found.height - alive(begins[inside], ends[inside], sizes[inside], MOMENTS)
    assert (wasted <= slack).all()


@given(instances(sizes=st.just(5)))
@settings(max_examples=200, deadline=None)
def test_the_first_of_equal_lanes_holds_the_longest_chain(instance: Instance) -> None:
    """With one size and slack for one empty lane at most, the lane holds as many buffers as any chain that slack allows."""
    begins, ends, sizes, slack = instance
    found = lanes(begins, ends, sizes, slack)
    longest = 0
    for chosen in itertools.product([False, True], repeat=len(sizes)):
        level = alive(begins[list(chosen)], ends[list(chosen)], sizes[list(chosen)], MOMENTS)
        if level.max(initial=0) <= 5 and (5 - level <= slack).all():
            longest = max(longest, sum(chosen))
    in_first = ((found.offsets >= 0) & (found.offsets < 5)).sum()
    assert in_first == longest


def test_without_slack_at_the_peak_a_full_lane_is_free() -> None:
    """Two of 8 follow each other without a gap, one of 3 with one: there is slack only before and after."""
    begins, ends, sizes = np.array([1, 3, 1, 4]), np.array([3, 6, 3, 6]), np.array([8, 8, 3, 3])
    found = lanes(begins, ends, sizes, np.array([20, 0, 0, 0, 0, 0, 20]))
    assert found.offsets.tolist() == [0, 0, -1, -1]
    assert found.height == 8


def test_nothing_lies_in_lanes_where_there_is_not_room_for_all() -> None:
    found = lanes(np.array([0]), np.array([2]), np.array([4]), np.array([0, -1]))
    assert (found.offsets.tolist(), found.height) == ([-1], 0)


def test_no_buffers() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert lanes(empty, empty, empty, np.zeros(3, dtype=np.int64)).height == 0
