"""What a plan writes to memory that its arena has no place for."""

from __future__ import annotations

from memcompile.passes.schedule.swap import fresh_bytes
from memcompile.solvers.schedule.problem import Move, Op, RematProblem, RematSchedule, Storage
from memcompile.solvers.schedule.simulate import Replay

CHAIN = RematProblem(
    (Storage("a", 8), Storage("b", 8), Storage("loss", 8, is_output=True)),
    (Op("first", (), (0,), 1.0), Op("second", (0,), (1,), 1.0), Op("third", (1,), (2,), 1.0)),
    boundary=3,
)


def test_with_room_only_what_the_user_holds_is_fresh() -> None:
    assert fresh_bytes(Replay(CHAIN), RematSchedule((0, 1, 2), 3), 100) == 8


def test_at_the_peak_one_lane_holds_one_of_two() -> None:
    """``a`` and ``b`` are 16 bytes together, and then ``b`` and the loss are: a lane for ``a`` would be idle beside them."""
    assert fresh_bytes(Replay(CHAIN), RematSchedule((0, 1, 2), 3), 16) == 8 + 8


def test_what_comes_back_is_written_again() -> None:
    """``a`` is away while ``large`` is there. A lane for both would waste 4 bytes while the loss takes them; but ``large`` can
    have the block that ``a`` had before."""
    problem = RematProblem(
        (Storage("a", 8), Storage("large", 12), Storage("loss", 4, is_output=True)),
        (Op("first", (), (0,), 1.0), Op("second", (), (1,), 1.0), Op("third", (0,), (2,), 1.0)),
        boundary=3,
    )
    move = Move(0, 8, out=0, gone=1, back=2, need=2)
    stays, leaves = RematSchedule((0, 1, 2), 3), RematSchedule((0, 1, 2), 3, (move,))
    replay = Replay(problem)
    assert replay.run(stays).peak_bytes == 20
    assert replay.run(leaves).peak_bytes == 12
    assert fresh_bytes(replay, stays, 100) == 4
    assert fresh_bytes(replay, leaves, 100) == 4
    assert fresh_bytes(replay, leaves, 12) == 12 + 8 + 4
