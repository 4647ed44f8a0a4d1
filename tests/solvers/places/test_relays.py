"""Relays: one buffer after the other, within slack and within a half; the best one against every one there is."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.places.relays import Relay, relays, relays_of_halves
from memcompile.solvers.schedule.simulate import alive
from tests.solvers.places.test_lanes import MOMENTS, Instance, instances


def nobody(count: int) -> npt.NDArray[np.bool_]:
    return np.zeros(count, dtype=np.bool_)


def waste(relay: Relay, instance: Instance) -> npt.NDArray[np.int64]:
    """Shares no code with the solver."""
    begins, ends, sizes, _ = instance
    members = list(relay.buffers)
    moments = np.arange(MOMENTS)
    block = relay.size * ((moments >= begins[members[0]]) & (moments < ends[members[-1]]))
    wasted: npt.NDArray[np.int64] = block - alive(begins[members], ends[members], sizes[members], MOMENTS)
    return wasted


@given(instances(), st.integers(0, MOMENTS))
@settings(max_examples=300, deadline=None)
def test_relays_keep_the_rules(instance: Instance, boundary: int) -> None:
    begins, ends, sizes, slack = instance
    found = relays_of_halves(begins, ends, sizes, slack, boundary)
    members = [i for relay in found for i in relay.buffers]
    assert len(members) == len(set(members))
    for relay in found:
        assert len(relay.buffers) > 1
        assert relay.size == sizes[list(relay.buffers)].max()
        for before, after in itertools.pairwise(relay.buffers):
            assert ends[before] <= begins[after]
            assert (begins[before] < boundary) == (begins[after] < boundary)
            assert begins[before] >= boundary or ends[before] <= boundary, "what is saved hands nothing on"
        assert (relay.wasted(begins, ends, sizes, MOMENTS) == waste(relay, instance)).all()
    assert (sum((waste(relay, instance) for relay in found), np.zeros(MOMENTS, dtype=np.int64)) <= slack).all()


@given(instances(sizes=st.just(5)))
@settings(max_examples=200, deadline=None)
def test_the_first_relay_saves_the_most(instance: Instance) -> None:
    begins, ends, sizes, slack = instance
    found = relays(begins, ends, sizes, slack, nobody(len(sizes)))
    order = np.argsort(begins, kind="stable").tolist()
    longest = 1
    for count in range(2, len(sizes) + 1):
        for members in itertools.combinations(order, count):
            apart = all(ends[a] <= begins[b] for a, b in itertools.pairwise(members))
            if apart and (waste(Relay(5, members), instance) <= slack).all():
                longest = count
    assert (len(found[0].buffers) if found else 1) == longest


def test_a_large_block_is_not_opened_for_what_it_does_not_save() -> None:
    """8 bytes after 5 save 5 of the 8 that their block takes; there is room for it."""
    found = relays(np.array([0, 1]), np.array([1, 2]), np.array([5, 8]), np.array([9, 9]), nobody(2))
    assert found == [Relay(8, (0, 1))]
    assert relays(np.array([0, 1]), np.array([1, 2]), np.array([5, 8]), np.array([2, 9]), nobody(2)) == []


def test_no_room_and_no_buffers() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert relays(empty, empty, empty, np.zeros(3, dtype=np.int64), nobody(0)) == []
    assert relays(np.array([0, 1]), np.array([1, 2]), np.array([4, 4]), np.array([0, -1]), nobody(2)) == []
