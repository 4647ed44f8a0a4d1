"""The backward's order: what frees as much as it adds runs at once; nothing else moves."""

from __future__ import annotations

from memcompile.passes.schedule.reorder import _order
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import Op, RematProblem, RematSchedule, Storage
from memcompile.solvers.schedule.simulate import simulate


def problem(*ops: Op, sizes: dict[int, int], outputs: tuple[int, ...] = ()) -> RematProblem:
    """Everything in the backward. ``sizes``: bytes per storage."""
    return RematProblem(tuple(Storage(f"s{s}", size, s in outputs) for s, size in sizes.items()), ops, boundary=0)


def peak(found: RematProblem) -> int:
    return simulate(found, RematSchedule(tuple(range(len(found.ops))), found.boundary)).peak_bytes


def order(found: RematProblem) -> list[int]:
    return _order(RematIndex.of(found))


def summed_late(steps: int = 4) -> RematProblem:
    """Gradient g(t) of each step from the one before; a weight's gradient sums what each gives, but only at the end."""
    ops: list[Op] = []
    sizes: dict[int, int] = {}
    last: list[int] = []
    for t in range(steps):
        ops.append(Op(f"g{t}", (t - 1,) if t else (), (t,), 1.0))
        sizes[t] = 100
    for t in range(steps):
        s = steps + t
        ops.append(Op(f"w{t}", (t, *last), (s,), 1.0))
        sizes[s], last = 40, [s]
    return problem(*ops, sizes=sizes, outputs=(2 * steps - 1,))


def test_a_sum_at_the_end_is_made_step_by_step() -> None:
    found = summed_late()
    names = [found.ops[p].name for p in order(found)]
    assert names == ["g0", "g1", "w0", "w1", "g2", "w2", "g3", "w3"]
    moved = RematProblem(found.storages, tuple(found.ops[p] for p in order(found)), 0)
    assert peak(found) == 440
    assert peak(moved) == 240


def test_what_adds_bytes_stays() -> None:
    """The op reads 100 bytes for the last time, but writes 200."""
    found = problem(
        Op("a", (), (0,), 1.0),
        Op("b", (), (1,), 1.0),
        Op("c", (0,), (2,), 1.0),
        Op("d", (1, 2), (3,), 1.0),
        sizes={0: 100, 1: 10, 2: 200, 3: 1},
        outputs=(3,),
    )
    assert order(found) == [0, 1, 2, 3]


def test_an_op_with_effects_stays() -> None:
    found = problem(
        Op("a", (), (0,), 1.0),
        Op("b", (), (1,), 1.0),
        Op("send", (0,), (2,), 1.0, recomputable=False),
        sizes={0: 100, 1: 10, 2: 1},
        outputs=(1, 2),
    )
    assert order(found) == [0, 1, 2]


def test_all_readers_of_one_storage_move_together() -> None:
    """None of the three frees it alone."""
    found = problem(
        Op("a", (), (0,), 1.0),
        Op("b", (), (1,), 1.0),
        *(Op(f"r{i}", (0,), (2 + i,), 1.0) for i in range(3)),
        sizes={0: 100, 1: 500, 2: 30, 3: 30, 4: 30},
        outputs=(1, 2, 3, 4),
    )
    assert order(found) == [0, 2, 3, 4, 1]


def test_the_forward_stays() -> None:
    found = summed_late()
    assert order(RematProblem(found.storages, found.ops, boundary=len(found.ops))) == list(range(8))
