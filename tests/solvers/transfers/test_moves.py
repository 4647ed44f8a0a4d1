"""Moves: plans keep their budget by a replay of its own, their costs are those of a clock, broken moves are refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcompile.solvers.schedule.check_moves import check_moves
from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import Move, Op, RematProblem, RematSchedule, Storage
from memcompile.solvers.schedule.simulate import Replay, simulate, validate
from memcompile.solvers.transfers import moves as moves_module
from memcompile.solvers.transfers.link import Link
from memcompile.solvers.transfers.moves import InstanceLives, Traffic, plan_moves, traffic
from tests.solvers.instances import random_problem
from tests.solvers.reference import naive_live_bytes

LINK = Link("disk", 4.0, 2.0, 0.5, 10**9)


@pytest.fixture(autouse=True)
def _everything_may_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves_module, "SMALLEST_BYTES", 0)


def movable(problem: RematProblem) -> list[bool]:
    """All but outputs of the forward."""
    backward = {s for op in problem.ops[problem.boundary :] for s in op.writes}
    return [not storage.is_output or s in backward for s, storage in enumerate(problem.storages)]


def planned(
    problem: RematProblem, schedule: RematSchedule, budget: int, links: tuple[Link, ...] = (LINK,)
) -> RematSchedule | None:
    durations = [problem.ops[p].seconds for p in schedule.sequence]
    found = plan_moves(InstanceLives.of(Replay(problem), schedule, movable(problem)), durations, budget, links)
    return None if found is None else dataclasses.replace(schedule, moves=found)


def naive(problem: RematProblem, schedule: RematSchedule) -> list[int]:
    """Live bytes, by following every instance and every move."""
    live = naive_live_bytes(problem, dataclasses.replace(schedule, moves=()))
    for move in schedule.moves:
        for position in range(move.gone, move.back):
            live[position] -= problem.storages[move.storage].size_bytes
    return live


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_plans_keep_their_budget(seed: int, share: float) -> None:
    problem = random_problem(seed, 8, 8)
    schedule = decode(RematIndex.of(problem))
    peak = simulate(problem, schedule).peak_bytes
    smallest = max(problem.base_bytes, int(peak * 0.3))
    budget = int(smallest + share * (peak - smallest))
    moved = planned(problem, schedule, budget)
    if moved is None:
        return
    validate(problem, moved)
    assert naive(problem, moved) == simulate(problem, moved).live_bytes.tolist()
    assert max(naive(problem, moved)) <= budget


@given(st.integers(0, 10**6))
def test_whatever_idles_can_leave(seed: int) -> None:
    """The budget that needs everything that idles to be away is kept, one byte less is refused."""
    problem = random_problem(seed, 8, 8)
    schedule = decode(RematIndex.of(problem))
    kept = problem.base_bytes + sum(storage.size_bytes for storage in problem.storages if storage.is_output)
    floor = max(kept, *_busy_bytes(problem, schedule))
    moved = planned(problem, schedule, floor)
    assert moved is not None and simulate(problem, moved).peak_bytes <= floor
    assert planned(problem, schedule, floor - 1) is None


def _busy_bytes(problem: RematProblem, schedule: RematSchedule) -> list[int]:
    """Bytes during each execution when all that is neither used by it nor fixed is away."""
    live = naive_live_bytes(problem, schedule)
    lives = InstanceLives.of(Replay(problem), schedule, movable(problem))
    for i, uses in enumerate(lives.uses):
        for position in range(uses[0], min(uses[-1] + 1, len(live))):
            if position not in uses and not lives.fixed[i]:
                live[position] -= lives.size[i]
    return live


def test_nothing_moves_within_the_budget() -> None:
    problem = random_problem(3, 8, 8)
    schedule = decode(RematIndex.of(problem))
    moved = planned(problem, schedule, simulate(problem, schedule).peak_bytes)
    assert moved is not None and moved.moves == ()


def chain(layers: int, size: int = 8, seconds: float = 1.0) -> RematProblem:
    """Layers that each save their input for a backward in the opposite order; gradients are small."""
    storages = [Storage(f"a{i}", size) for i in range(layers)] + [Storage(f"g{i}", 1) for i in range(layers)]
    ops = [Op(f"f{i}", (i - 1,) if i else (), (i,), seconds) for i in range(layers)]
    for i in reversed(range(layers)):
        above = (layers + i + 1,) if i + 1 < layers else ()
        ops.append(Op(f"b{i}", (*above, i), (layers + i,), seconds))
    return RematProblem(tuple(storages), tuple(ops), layers)


def test_nothing_leaves_in_the_middle_of_a_kernel() -> None:
    """Executions 3 to 5 are one: what leaves for one of them has left before all."""
    problem, schedule = chain(6), RematSchedule(tuple(range(12)), 6)
    lives = InstanceLives.of(Replay(problem), schedule, [not s.is_output for s in problem.storages], [(3, 5), (7, 8)])
    found = plan_moves(lives, [1.0] * 12, 35, (LINK,))
    assert found is not None and found
    moved = dataclasses.replace(schedule, moves=found)
    validate(problem, moved)
    for move in found:
        assert not {move.gone, move.back, move.need} & {4, 5, 8} and move.out not in (3, 4, 7)
    assert max(naive(problem, moved)) <= 35


def test_what_is_needed_last_leaves_first() -> None:
    problem = chain(6)
    moved = planned(problem, RematSchedule(tuple(range(12)), 6), 35)
    assert moved is not None
    assert {problem.storages[move.storage].name for move in moved.moves} == {"a0", "a1"}


def test_what_is_on_a_fast_link_comes_back_as_late_as_it_may() -> None:
    problem = chain(6)
    moved = planned(problem, RematSchedule(tuple(range(12)), 6), 35, (Link("host", 1e9, 1e9, 0.0, 10**9),))
    assert moved is not None and all(move.back >= move.need - 1 for move in moved.moves)


def test_reads_start_early_on_a_slow_link_where_memory_allows() -> None:
    problem = chain(8, seconds=1.0)
    slow, fast = (
        planned(problem, RematSchedule(tuple(range(16)), 8), 44, (Link("disk", 1e9, rate, 0.0, 10**9),)) for rate in (3.0, 1e9)
    )
    assert slow is not None and fast is not None
    assert sum(m.need - m.back for m in slow.moves) > sum(m.need - m.back for m in fast.moves)


def test_gradients_are_back_as_the_step_ends() -> None:
    """One is made early and is large; the peak is later."""
    storages = (Storage("a", 4), Storage("early", 8, is_output=True), Storage("b", 8), Storage("late", 1, is_output=True))
    ops = (Op("a", (), (0,), 1.0), Op("early", (0,), (1,), 1.0), Op("b", (0,), (2,), 1.0), Op("late", (2,), (3,), 1.0))
    problem, schedule = RematProblem(storages, ops, 1), RematSchedule((0, 1, 2, 3), 1)
    moved = planned(problem, schedule, 12)
    assert moved is not None
    assert [(m.storage, m.out, m.gone, m.back, m.need) for m in moved.moves] == [(1, 1, 2, 4, 4)]
    validate(problem, moved)
    assert simulate(problem, moved).peak_bytes == 12
    with pytest.raises(ValueError, match="the forward may return it"):
        check_moves(problem, dataclasses.replace(moved, split=3))


def test_what_the_step_leaves_has_to_fit() -> None:
    """Both outputs are there at the end, though each could be away while the other is made."""
    storages = (Storage("a", 1), Storage("b", 8, is_output=True), Storage("c", 8, is_output=True), Storage("d", 1))
    ops = (Op("a", (), (0,), 1.0), Op("b", (0,), (1,), 1.0), Op("c", (0,), (2,), 1.0), Op("d", (0,), (3,), 1.0))
    problem, schedule = RematProblem(storages, ops, 1), RematSchedule((0, 1, 2, 3), 1)
    assert planned(problem, schedule, 15) is None


def test_a_second_absence_writes_nothing() -> None:
    """a is read three times, far apart, with something large between."""
    storages = (Storage("a", 8), Storage("b", 8), Storage("c", 8), Storage("d", 1), Storage("e", 1), Storage("f", 1))
    ops = (
        Op("a", (), (0,), 1.0),
        Op("b", (), (1,), 1.0, workspace_bytes=4),
        Op("d", (0,), (3,), 1.0),
        Op("c", (3,), (2,), 1.0, workspace_bytes=4),
        Op("e", (0,), (4,), 1.0),
        Op("f", (4,), (5,), 1.0),
    )
    problem = RematProblem(storages, ops, 6)
    moved = planned(problem, RematSchedule(tuple(range(6)), 6), 13)
    assert moved is not None
    assert [(move.storage, move.copied) for move in moved.moves] == [(0, False), (0, True)]
    cost = traffic(moved.moves, [1.0] * 6, (LINK,))
    assert cost.moved_bytes == 8 * 3


def test_a_full_tier_spills_into_the_next() -> None:
    problem = chain(6)
    small = Link("host", 1e9, 1e9, 0.0, 8)
    moved = planned(problem, RematSchedule(tuple(range(12)), 6), 35, (small, LINK))
    assert moved is not None and sorted(move.link for move in moved.moves) == [0, 1]
    assert planned(problem, RematSchedule(tuple(range(12)), 6), 35, (small,)) is None


def test_the_clock() -> None:
    """8 bytes: 2.5 s to write, 4.5 s to read, beside executions of a second."""
    move = Move(0, 8, out=0, gone=4, back=5, need=8)
    assert traffic([move], [1.0] * 12, (LINK,)) == Traffic(7.0, 1.5, 16, 0.0)  # written at 3.5; read from 5 to 9.5, needed at 8
    hurried = dataclasses.replace(move, gone=1, back=3)
    # gone at 1 waits until 3.5; read from 5.5 to 10 where execution 8 would start at 10.5
    assert traffic([hurried], [1.0] * 12, (LINK,)).waited_s == 2.5
    busy = dataclasses.replace(LINK, busy_s_per_byte=0.25)
    assert traffic([move], [1.0] * 12, (busy,)).extra_s == 1.5 + 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gone": 2}, "out of order"),
        ({"need": 13, "back": 13}, "out of order"),
        ({"need": 11, "back": 11}, "read while it is away"),
        ({"out": 10, "gone": 11, "need": 11, "back": 11}, "nothing reads it"),
        ({"out": 1, "gone": 2, "need": 10, "back": 10, "storage": 6}, "nothing wrote it"),
        ({"size_bytes": 9}, "9 bytes of 8"),
        ({"copied": True}, "there is no copy"),
        ({"out": 1}, "read while it is away"),
    ],
)
def test_broken_moves_are_refused(change: dict[str, object], message: str) -> None:
    problem, schedule = chain(6), RematSchedule(tuple(range(12)), 6)
    good = Move(1, 8, out=2, gone=3, back=9, need=10)
    check_moves(problem, dataclasses.replace(schedule, moves=(good,)))
    if change.get("storage") == 6:
        change = {**change, "size_bytes": 1}
    with pytest.raises(ValueError, match=message):
        validate(problem, dataclasses.replace(schedule, moves=(dataclasses.replace(good, **change),)))  # type: ignore[arg-type]
