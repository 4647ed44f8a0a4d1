"""The check of an arena's places finds what is planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcompile.passes.arena.allocate import HandedOn, plan_arena
from memcompile.passes.arena.check import check_places
from memcompile.step.trace import step_peak
from memcompile.step.verify_values import VerificationError
from tests.step.test_trace import trace

FORWARD = trace(
    {"x": 64},
    [
        ("alloc", "a", 64),
        ("alloc", "b", 128),
        ("workspace", "b", 64),
        ("kernel", "b"),
        ("alias", "c", "a"),
        ("free", "a"),
        ("alloc", "d", 64),
        ("free", "b"),
        ("alloc", "large", 1024),
        ("alloc", "more", 256),
        ("free", "more"),
        ("free", "large"),
        ("alloc", "out", 64),
        ("free", "d"),
    ],
    ["out", "c"],
    ["out", "saved"],
)
BACKWARD = trace(
    {"saved": 64, "tangent": 64},
    [("alloc", "g", 64), ("alloc", "h", 64), ("free", "saved"), ("alloc", "i", 64), ("free", "h"), ("free", "i")],
    ["g"],
)
SLOTS = {("forward", name) for name in ("a", "b", "d", "more", "out")} | {("backward", name) for name in ("g", "h", "i")}


Offsets = Mapping[tuple[str, str], int]


def check(offsets: Offsets, height: int = 4096, relays: Sequence[HandedOn] = ()) -> None:
    check_places(FORWARD, BACKWARD, offsets, height, relays)


def relay(half: str, *buffers: str, size_bytes: int = 256) -> HandedOn:
    return HandedOn(half, size_bytes, buffers, (64,) * len(buffers))


def test_the_plan_of_the_pass_holds() -> None:
    plan = plan_arena(step_peak(FORWARD, BACKWARD), SLOTS, None)
    assert set(plan.offsets) == SLOTS - {("forward", "out"), ("backward", "g")}
    check(plan.offsets, plan.height)


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ({("forward", "a"): 0, ("forward", "b"): 0}, "b .* overlaps a"),
        ({("forward", "a"): 0, ("forward", "b"): 63}, "overlaps"),
        ({("forward", "a"): 0, ("forward", "d"): 0}, "d .* overlaps c"),
        ({("forward", "a"): 0, ("backward", "h"): 32}, "h of the backward .* overlaps saved"),
        ({("backward", "h"): 0, ("backward", "i"): 0}, "overlaps h"),
        ({("forward", "out"): 0}, "the user holds it"),
        ({("backward", "g"): 0}, "a gradient"),
        ({("forward", "b"): 4096 - 64}, "leaves its 4096 bytes"),
    ],
)
def test_what_is_planted_is_found(offsets: Offsets, words: str) -> None:
    with pytest.raises(VerificationError, match=words):
        check(offsets)


@pytest.mark.parametrize(
    "offsets",
    [
        {("forward", "b"): 0, ("backward", "h"): 0},
        {("forward", "a"): 0, ("backward", "i"): 0},
        {("forward", "a"): 0, ("forward", "b"): 64, ("forward", "d"): 192},
    ],
)
def test_one_after_the_other_is_right(offsets: Offsets) -> None:
    check(offsets)


@pytest.mark.parametrize(
    ("handed", "words"),
    [
        (relay("forward", "a", "b"), "b .* of relay 1 overlaps a"),
        (relay("forward", "a", "d"), "d .* overlaps c"),
        (relay("forward", "b", "out"), "the user holds it"),
        (relay("backward", "h", "i"), "overlaps h"),
        (relay("forward", "b", "more", size_bytes=128), "leaves its 128 bytes"),
    ],
)
def test_what_is_planted_in_a_relay_is_found(handed: HandedOn, words: str) -> None:
    with pytest.raises(VerificationError, match=words):
        check({}, relays=[handed])


def test_relays_beside_each_other_share_nothing() -> None:
    check({("forward", "a"): 0}, relays=[relay("forward", "b", "more"), relay("backward", "h"), relay("backward", "i")])


@given(st.data())
def test_any_planted_overlap_is_found(data: st.DataObject) -> None:
    """Move one buffer of a right plan onto another that is alive with it."""
    step = step_peak(FORWARD, BACKWARD)
    plan = plan_arena(step, SLOTS, None)
    lives = {(life.where, life.name): life for life in step.lives if (life.where, life.name) in plan.offsets}
    deaths = {key: life.death for key, life in lives.items() if life.death is not None}
    together = [
        (one, other)
        for one in lives
        for other in lives
        if one != other and lives[one].birth < deaths[other] and lives[other].birth < deaths[one]
    ]
    moved, onto = data.draw(st.sampled_from(together))
    shift = data.draw(st.integers(1 - lives[moved].size_bytes, lives[onto].size_bytes - 1))
    at = max(0, plan.offsets[onto] + shift)
    with pytest.raises(VerificationError):
        check({**plan.offsets, moved: at})
