"""Offsets: valid always, the smallest height on small instances by brute force, and clear errors."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memcompile.solvers.places.minimalloc import read_csv, write_csv
from memcompile.solvers.places.packing import Buffer, CapacityError, Packing, PackingError, pack, split, validate

EXAMPLE = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"


def made(*rows: tuple[int, int, int]) -> list[Buffer]:
    return [Buffer(f"b{i}", *row) for i, row in enumerate(rows)]


@st.composite
def instances(draw: st.DrawFn, count: int = 6, times: int = 6, size: int = 5) -> list[Buffer]:
    rows = []
    for _ in range(draw(st.integers(1, count))):
        lower = draw(st.integers(0, times - 1))
        rows.append((lower, draw(st.integers(lower + 1, times)), draw(st.integers(0, size))))
    return made(*rows)


def smallest_height(buffers: list[Buffer]) -> int:
    """Every order, each buffer as low as it goes: bottom-left arrangements hold an optimum."""
    best = sum(b.size for b in buffers)
    for order in itertools.permutations(buffers):
        placed: list[tuple[Buffer, int]] = []
        for b in order:
            beside = [(o, o + p.size) for p, o in placed if p.lower < b.upper and b.lower < p.upper and p.size]
            starts = [0, *(end for _, end in beside)]
            offset = min(s for s in starts if all(s + b.size <= low or end <= s for low, end in beside))
            placed.append((b, offset))
        best = min(best, max(o + b.size for b, o in placed))
    return best


def check(buffers: list[Buffer], packing: Packing, alignment: int = 1) -> None:
    assert validate(buffers, packing.offsets, alignment=alignment) == packing.height
    assert packing.lower_bound <= packing.height


@settings(max_examples=60, deadline=None)
@given(instances())
def test_small_instances_are_solved_to_the_optimum(buffers: list[Buffer]) -> None:
    packing = pack(buffers)
    check(buffers, packing)
    assert packing.status == "optimal"
    assert packing.height == smallest_height(buffers)


@settings(max_examples=30, deadline=None)
@given(instances(count=40, times=30, size=50), st.sampled_from([1, 16, 64]))
def test_larger_ones_are_valid(buffers: list[Buffer], alignment: int) -> None:
    packing = pack(buffers, alignment=alignment, time_limit_s=0.2)
    check(buffers, packing, alignment)
    assert all(offset % alignment == 0 for offset in packing.offsets)


def test_the_smallest_height_may_lie_above_the_largest_sum() -> None:
    """Below and above the one that is held in the middle there is no room of 6 bytes within 10."""
    buffers = [Buffer("held", 0, 2, 4, offset=3), Buffer("wide", 1, 3, 6), Buffer("late", 2, 4, 3)]
    packing = pack(buffers)
    check(buffers, packing)
    assert max(part.lower_bound for part in split(buffers)) == 10
    assert (packing.height, packing.status) == (13, "optimal")
    with pytest.raises(CapacityError, match="no arrangement is below") as caught:
        pack(buffers, capacity=12)
    assert caught.value.proven
    check(buffers, caught.value.best)


def test_the_example_of_minimalloc_at_its_capacity() -> None:
    buffers = read_csv(EXAMPLE)
    packing = pack(buffers, capacity=12)
    check(buffers, packing)
    assert (packing.height, packing.lower_bound, packing.status) == (12, 12, "optimal")


def test_text_there_and_back() -> None:
    buffers = read_csv(EXAMPLE)
    offsets = pack(buffers).offsets
    again = read_csv(write_csv(buffers, offsets))
    assert [replace(b, offset=None) for b in again] == buffers
    assert tuple(b.offset for b in again) == offsets
    assert validate(again, offsets) == 12


def test_fixed_offsets_are_kept() -> None:
    buffers = [Buffer("low", 0, 4, 10), Buffer("held", 0, 4, 10, offset=5), Buffer("small", 2, 3, 5)]
    packing = pack(buffers)
    check(buffers, packing)
    assert packing.offsets[1] == 5
    assert (packing.offsets[2], packing.height) == (0, 25)


def test_fixed_offsets_that_overlap_are_an_error() -> None:
    with pytest.raises(PackingError, match="a and b live at the same time and overlap"):
        pack([Buffer("a", 0, 2, 4, offset=0), Buffer("b", 1, 3, 4, offset=3)])


def test_alignment_counts() -> None:
    buffers = made((0, 2, 3), (0, 2, 3), (1, 3, 0))
    packing = pack(buffers, alignment=64)
    check(buffers, packing, 64)
    assert (packing.height, packing.lower_bound) == (128, 128)


def test_nothing_to_pack() -> None:
    assert pack([]).height == 0
    assert pack(made((0, 1, 0))).offsets == (0,)


def test_the_same_answer_every_time() -> None:
    buffers = made(*((i % 7, i % 7 + 1 + i % 5, 1 + i * 37 % 11) for i in range(60)))
    assert pack(buffers, seed=3).offsets == pack(buffers, seed=3).offsets


@settings(max_examples=60, deadline=None)
@given(instances(count=12, size=9), st.data())
def test_a_buffer_moved_onto_another_is_found(buffers: list[Buffer], data: st.DataObject) -> None:
    offsets = list(pack(buffers, time_limit_s=1).offsets)
    pairs = [
        (i, j)
        for i, j in itertools.permutations(range(len(buffers)), 2)
        if buffers[i].lower < buffers[j].upper and buffers[j].lower < buffers[i].upper and buffers[i].size and buffers[j].size
    ]
    assume(pairs)
    i, j = data.draw(st.sampled_from(pairs))
    offsets[i] = data.draw(st.integers(max(0, offsets[j] - buffers[i].size + 1), offsets[j] + buffers[j].size - 1))
    with pytest.raises(PackingError, match="live at the same time and overlap") as caught:
        validate(buffers, offsets)
    assert buffers[i].name in str(caught.value), "who moved may lie on a third one too"


def test_a_planted_overlap_is_found() -> None:
    buffers = made((0, 2, 4), (1, 3, 4), (2, 4, 4))
    assert validate(buffers, (0, 4, 0)) == 8
    with pytest.raises(PackingError, match="b0 and b1 live at the same time and overlap"):
        validate(buffers, (0, 3, 0))
    with pytest.raises(PackingError, match="above the capacity"):
        validate(buffers, (0, 4, 0), capacity=7)
    with pytest.raises(PackingError, match="no multiple"):
        validate(buffers, (0, 4, 0), alignment=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,lower,size\n", "no column upper"),
        ("id,lower,upper,size\na,0,1,x\n", "line 2"),
        ("id,lower,upper,size\na,3,3,1\n", r"lives in \[3, 3\)"),
        ("id,lower,upper,size\na,0,1,-1\n", "-1 bytes"),
    ],
)
def test_bad_text_is_an_error_that_says_where(text: str, message: str) -> None:
    with pytest.raises(PackingError, match=message):
        read_csv(text)


@st.composite
def instances_with_aliases(draw: st.DrawFn) -> list[Buffer]:
    """Some buffers of an instance lie in the storage of an earlier one."""
    buffers = draw(instances(count=12, times=8, size=6))
    return [
        replace(b, alias=draw(st.sampled_from([None, *(c.name for c in buffers[:i])])), shift=draw(st.integers(0, 4)))
        for i, b in enumerate(buffers)
    ]


@settings(max_examples=60, deadline=None)
@given(instances_with_aliases(), st.sampled_from([1, 8]))
def test_aliases_lie_in_their_storage(buffers: list[Buffer], alignment: int) -> None:
    packing = pack(buffers, alignment=alignment, time_limit_s=2)
    check(buffers, packing, alignment)
    offset_of = {b.name: offset for b, offset in zip(buffers, packing.offsets, strict=True)}
    for b in buffers:
        if b.alias is not None:
            assert offset_of[b.name] == offset_of[b.alias] + b.shift


def test_a_storage_lives_from_its_first_birth_to_its_last_death() -> None:
    buffers = [Buffer("base", 0, 2, 8), Buffer("view", 5, 6, 4, alias="base", shift=6), Buffer("other", 3, 4, 1)]
    packing = pack(buffers)
    check(buffers, packing)
    assert packing.height == 11, "the storage is 10 bytes, alive between its two buffers too"
    assert packing.offsets[1] == packing.offsets[0] + 6
    with pytest.raises(PackingError, match="view and other live at the same time and overlap"):
        validate(buffers, (0, 6, 8))
    with pytest.raises(PackingError, match="view: at 7, but it has to lie 6 bytes behind base"):
        validate(buffers, (0, 7, 12))


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ([Buffer("v", 0, 1, 4, alias="w")], "v: an alias of w, which is no buffer"),
        ([Buffer("v", 0, 1, 4, alias="w"), Buffer("w", 0, 1, 4, alias="v")], "again an alias of it"),
        ([Buffer("b", 0, 1, 4), Buffer("v", 0, 1, 4, offset=0, alias="b")], "no offset of its own"),
        ([Buffer("b", 0, 1, 4), Buffer("v", 0, 1, 4, alias="b", shift=-1)], "no bytes before b"),
        ([Buffer("b", 0, 1, 4), Buffer("b", 0, 1, 4), Buffer("v", 0, 1, 4, alias="b")], "the same name"),
        ([Buffer("b", 0, 1, 4, offset=0), Buffer("v", 0, 1, 4, alias="b", shift=2), Buffer("c", 0, 1, 4, offset=4)], "b and c"),
    ],
)
def test_aliases_that_cannot_be(aliases: list[Buffer], message: str) -> None:
    with pytest.raises(PackingError, match=message):
        pack(aliases)


def test_the_text_format_has_no_aliases() -> None:
    with pytest.raises(PackingError, match="v: an alias of b"):
        write_csv([Buffer("b", 0, 1, 4), Buffer("v", 0, 1, 4, alias="b")], (0, 0))


def test_a_slow_machine_finds_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes on for as much work as elsewhere, whatever the clock says."""
    rng = random.Random(7)
    rows = [(lower := rng.randrange(60), lower + rng.randrange(1, 25), 64 * rng.randrange(1, 400)) for _ in range(120)]
    buffers = made(*rows)
    usual = pack(buffers, alignment=64, time_limit_s=1.0)
    clock = itertools.count(0, 5)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    again = pack(buffers, alignment=64, time_limit_s=1.0)
    assert (again.height, again.offsets, again.method) == (usual.height, usual.offsets, usual.method)
    assert usual.method == "search" or usual.height > usual.lower_bound
