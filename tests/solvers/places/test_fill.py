"""What lies in an arena, against every choice there is."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.places.fill import fill

Integers = npt.NDArray[np.int64]
MOMENTS = 6


@st.composite
def instances(draw: st.DrawFn) -> tuple[Integers, Integers, Integers, Integers]:
    """Up to seven buffers over six moments, and room for them all with something to spare."""
    lives = draw(st.lists(st.tuples(st.integers(0, MOMENTS - 1), st.integers(1, MOMENTS), st.integers(1, 9)), max_size=7))
    begins, ends, sizes = (np.array([life[i] for life in lives], dtype=np.int64) for i in range(3))
    ends = np.maximum(ends, begins + 1)
    alive = alive_of(begins, ends, sizes)
    spare = draw(st.lists(st.integers(-1, 6), min_size=MOMENTS, max_size=MOMENTS))
    return begins, ends, sizes, alive + np.array(spare)


def alive_of(begins: Integers, ends: Integers, sizes: Integers) -> Integers:
    moments = np.arange(MOMENTS)[:, None]
    alive: Integers = ((begins <= moments) & (ends > moments)) @ sizes if len(sizes) else np.zeros(MOMENTS, dtype=np.int64)
    return alive


def fits(inside: npt.NDArray[np.bool_], begins: Integers, ends: Integers, sizes: Integers, room: Integers) -> bool:
    level = alive_of(begins, ends, sizes * inside)
    outside = alive_of(begins, ends, sizes * ~inside)
    return bool((outside + level.max(initial=0) <= room).all())


@given(instances())
@settings(max_examples=150, deadline=None)
def test_no_choice_has_more_inside(instance: tuple[Integers, Integers, Integers, Integers]) -> None:
    begins, ends, sizes, room = instance
    found = fill(begins, ends, sizes, room)
    choices = [np.array(bits, dtype=bool) for bits in itertools.product([False, True], repeat=len(sizes))]
    allowed = [int(sizes[bits].sum()) for bits in choices if fits(bits, begins, ends, sizes, room)]
    assert sizes[found.inside].sum() == max(allowed, default=0) == found.bound
    if allowed:
        assert fits(found.inside, begins, ends, sizes, room)
        assert alive_of(begins, ends, sizes * found.inside).max(initial=0) <= found.height
        assert (alive_of(begins, ends, sizes * ~found.inside) + found.height <= room).all()


def test_gradients_that_pile_up_outside_push_what_lives_before_them_out() -> None:
    """Four activations of 10, freed one by one while 5 pile up outside each time: 40 at the peak, and no byte to spare."""
    begins, ends = np.array([0, 1, 2, 3]), np.array([8, 7, 6, 5])
    sizes = np.full(4, 10)
    pile = np.array([0, 0, 0, 0, 0, 5, 10, 15])
    found = fill(begins, ends, sizes, np.full(8, 40) - pile)
    assert (found.inside.sum(), found.height, found.bound) == (2, 20, 20)


def test_the_same_instance_gives_the_same_answer() -> None:
    rng = np.random.default_rng(0)
    begins = rng.integers(0, 300, 400)
    ends = begins + rng.integers(1, 60, 400)
    sizes = rng.integers(1, 2000, 400)
    alive = np.array([sizes[(begins <= moment) & (ends > moment)].sum() for moment in range(400)])
    room = alive.max() - np.arange(400) * 10
    room = np.maximum(room, alive)
    first, second = (fill(begins, ends, sizes, room, work_s=0.5) for _ in range(2))
    assert (first.inside == second.inside).all()
    assert first.inside.any()
