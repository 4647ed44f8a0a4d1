"""Where the buffers of a step lie: nothing overlaps, the peak does not grow, what the user holds stays outside."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from hypothesis import given
from hypothesis import strategies as st

from memcompile.passes.arena.allocate import ALIGNMENT, ArenaPlan, plan_arena
from memcompile.step.trace import Life, StepPeak, step_peak
from tests.step.test_trace import FORWARD, trace

BACKWARD = trace({"s": 32, "tangent": 8}, [("alloc", "g", 16), ("free", "s"), ("alloc", "h", 16), ("free", "g")], ["h"])
ALL = {("forward", name) for name in ("out", "saved", "t")} | {("backward", name) for name in ("g", "h")}
UNIT = ALIGNMENT["cpu"]


def step(lives: list[Life], end: int, boundary: int) -> StepPeak:
    entry = sum(life.size_bytes for life in lives if not life.birth)
    peak = max(total(lives, {}, moment) for moment in range(end))
    return StepPeak(peak, entry, 0, 0, peak, peak, (), (), tuple(lives), boundary, end)


def total(lives: Sequence[Life], offsets: Collection[tuple[str, str]], moment: int) -> int:
    """Bytes alive outside of the arena."""
    alive = (life for life in lives if life.birth <= moment and (life.death is None or moment < life.death))
    return sum(life.size_bytes for life in alive if (life.where, life.name) not in offsets)


def check(plan: ArenaPlan, lives: Sequence[Life], end: int) -> None:
    """Every pair apart in time or in addresses; the peak is what arena and outside take. Shares no code with the pass."""
    placed = [(life, plan.offsets[life.where, life.name]) for life in lives if (life.where, life.name) in plan.offsets]
    for i, (life, offset) in enumerate(placed):
        assert offset % UNIT == 0
        assert offset + life.size_bytes <= plan.height
        assert life.death is not None
        for other, at in placed[:i]:
            assert other.death is not None
            together = life.birth < other.death and other.birth < life.death
            assert not together or at + other.size_bytes <= offset or offset + life.size_bytes <= at
    named = {(life.where, life.name): life for life in lives}
    relays = [[named[relay.half, name] for name in relay.buffers] for relay in plan.relays]
    for members in relays:
        for before, after in itertools.pairwise(members):
            assert before.death is not None
            assert before.death <= after.birth
    handed = {(life.where, life.name) for members in relays for life in members}
    assert not handed & set(plan.offsets)

    def outside(moment: int) -> int:
        blocks = 0
        for members in relays:
            last = members[-1].death
            assert last is not None
            if members[0].birth <= moment < last:
                blocks += max(p.size_bytes for p in members)
        return blocks + total(lives, {*plan.offsets, *handed}, moment)

    assert plan.peak_bytes == plan.height + max(outside(moment) for moment in range(end))


def test_saved_tensors_and_temporaries_share_one_arena() -> None:
    found = step_peak(FORWARD, BACKWARD)
    plan = plan_arena(found, ALL, None)
    check(plan, found.lives, found.end)
    assert set(plan.offsets) == {("forward", "saved"), ("forward", "t"), ("backward", "g")}, "not what the user holds"
    assert plan.height == plan.lower_bound == 2 * UNIT


def test_the_scratch_of_a_kernel_is_not_the_buffer_that_it_writes() -> None:
    events = [("alloc", "a", 64), ("workspace", "a", 128), ("kernel", "a"), ("alloc", "b", 64), ("free", "a"), ("free", "b")]
    events += [("alloc", "large", 1024), ("alloc", "more", 128), ("free", "more"), ("free", "large")]
    found = step_peak(trace({"x": 64}, events, []))
    plan = plan_arena(found, {("forward", name) for name in ("a", "b", "more")}, None)
    a, b = (plan.offsets["forward", name] for name in ("a", "b"))
    assert abs(a - b) >= 64, "alive together"


def test_only_what_the_code_allocates_itself() -> None:
    found = step_peak(FORWARD, BACKWARD)
    assert set(plan_arena(found, {("forward", "t")}, None).offsets) == {("forward", "t")}
    assert plan_arena(found, set(), None).height == 0


def test_saved_tensors_outside_where_each_half_has_its_own() -> None:
    found = step_peak(FORWARD, BACKWARD)
    plan = plan_arena(found, ALL, None, across=False)
    assert set(plan.offsets) == {("forward", "t"), ("backward", "g")}
    assert plan.height == UNIT, "one after the other, at the same place"


def test_gradients_pile_up_while_activations_go() -> None:
    """Ten activations, freed one by one as ten gradients of half their size come: an arena for all would add half to the peak."""
    activations = [Life("forward", f"a{i}", UNIT, i + 1, 30 - 2 * i) for i in range(10)]
    gradients = [Life("backward", f"g{i}", UNIT // 2, 12 + 2 * i) for i in range(10)]
    found = step([*activations, *gradients], 32, 11)
    plan = plan_arena(found, {("forward", life.name) for life in activations}, None)
    check(plan, found.lives, found.end)
    assert plan.peak_bytes <= found.peak_bytes
    assert plan.height == 5 * UNIT


def test_what_is_held_between_the_halves_is_limited() -> None:
    """A temporary of the forward, larger than what is saved: with the arena kept between the halves, others would pay for it."""
    lives = [Life("forward", "t", 10 * UNIT, 1, 2), Life("forward", "saved", UNIT, 2, 6)]
    found = step(lives, 8, 4)
    slots = {("forward", "t"), ("forward", "saved")}
    assert plan_arena(found, slots, None).held_bytes == 10 * UNIT
    plan = plan_arena(found, slots, None, held_limit_bytes=UNIT)
    check(plan, lives, 8)
    assert plan.held_bytes == UNIT


def test_lanes_where_the_whole_cannot_be_arranged() -> None:
    """Seven units are alive at every moment, and no arrangement of these twelve buffers is lower than eight; three larger ones
    follow one another beside them, in a lane that is never empty."""
    twelve = ["0 2 3", "0 1 4", "1 4 2", "1 3 1", "1 5 1", "2 4 2", "2 6 1", "3 6 1", "4 7 3", "4 7 1", "5 7 1", "6 7 2"]
    bars = [*twelve, "0 3 8", "3 4 8", "4 7 8"]
    times = [tuple(map(int, bar.split())) for bar in bars]
    lives = [Life("forward", f"b{i}", size * UNIT, begin + 1, end + 1) for i, (begin, end, size) in enumerate(times)]
    found = step(lives, 9, 8)
    assert found.peak_bytes == 15 * UNIT
    plan = plan_arena(found, {("forward", life.name) for life in lives}, None)
    check(plan, lives, 9)
    assert plan.method == "lanes"
    assert set(plan.offsets) == {("forward", f"b{i}") for i in (12, 13, 14)}
    assert plan.peak_bytes == found.peak_bytes


def test_blocks_are_handed_on_between_two_full_moments() -> None:
    """Two moments at which 10 units are all there is, and smaller buffers one after the other between: no lane can be there all
    the time, but a block can be handed on, if not to what is saved."""
    lives = [Life("forward", "full", 10 * UNIT, 1, 2), Life("backward", "again", 9 * UNIT, 9, 10)]
    lives += [Life("forward", f"b{i}", (3 - i % 2) * UNIT, 2 + i, 3 + i) for i in range(4)]
    lives += [Life("forward", "saved", UNIT, 6, 10)]
    found = step(lives, 11, 8)
    plan = plan_arena(found, {("forward", f"b{i}") for i in range(4)} | {("forward", "saved")}, None)
    check(plan, lives, 11)
    assert [relay.buffers for relay in plan.relays] == [("b0", "b1", "b2", "b3")]
    assert plan.handed_bytes == 7 * UNIT
    assert plan.peak_bytes == found.peak_bytes
    assert plan_arena(found, {("forward", "b0"), ("forward", "b1")}, None, device_type="cuda").relays == ()


@st.composite
def steps(draw: st.DrawFn) -> tuple[StepPeak, set[tuple[str, str]]]:
    end = draw(st.integers(4, 24))
    boundary = draw(st.integers(2, end - 1))
    lives = [Life("forward", "x", draw(st.integers(0, 500)), 0)]
    slots: set[tuple[str, str]] = set()
    for index in range(draw(st.integers(1, 25))):
        birth = draw(st.integers(1, end - 2))
        death = draw(st.none() | st.integers(birth + 1, end - 1))
        size = draw(st.integers(0, 400) | st.integers(1, 6).map(lambda units: units * UNIT))
        life = Life("forward" if birth < boundary else "backward", f"b{index}", size, birth, death)
        lives.append(life)
        if draw(st.integers(0, 3)):
            slots.add((life.where, life.name))
    return step(lives, end, boundary), slots


@given(steps(), st.booleans(), st.integers(0, 300))
def test_any_step(case: tuple[StepPeak, set[tuple[str, str]]], across: bool, extra: int) -> None:
    found, slots = case
    aligned = sum(-life.size_bytes % UNIT for life in found.lives)
    for limit in (None, found.peak_bytes + extra):
        plan = plan_arena(found, slots, limit, across=across)
        check(plan, found.lives, found.end)
        assert plan.peak_bytes <= (found.peak_bytes + aligned if limit is None else limit)
        assert plan.lower_bound <= plan.height
