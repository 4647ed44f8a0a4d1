"""Orders of kernels against all orders of small graphs, and the replay against peaks counted by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.order.ordering import Kind, OrderKernel, OrderProblem, OrderStorage, kept_apart, live_bytes, peak_of
from memcompile.solvers.order.ordering_bound import lower_bound
from memcompile.solvers.order.ordering_search import OrderEffort, Stepper, beam, best_first, windows
from memcompile.solvers.order.ordering_solve import solve

KINDS: tuple[Kind, ...] = ("call", "kernel", "loops", "loops")


def random_problem(seed: int, count: int, kinds: tuple[Kind, ...] = KINDS) -> OrderProblem:
    """Kernels that read earlier storages, write in place, share buffers without a producer, and wait for one another."""
    draw = random.Random(seed)
    storages = [OrderStorage(f"in{i}", draw.randint(1, 9), True, draw.random() < 0.2) for i in range(draw.randint(0, 2))]
    shared = [len(storages) + i for i in range(draw.randint(0, 1))]  # parts of a concatenation write into one buffer
    storages += [OrderStorage("shared", draw.randint(4, 9)) for _ in shared]
    kernels: list[OrderKernel] = []
    producer: dict[int, int] = {}
    for k in range(count):
        readable = [s for s in range(len(storages)) if s not in shared]
        reads = draw.sample(readable, min(len(readable), draw.randint(0, 3)))
        touches = reads + [s for s in shared if draw.random() < 0.3]
        after = {producer[s] for s in reads if s in producer}
        inplace = []
        for _ in range(draw.randint(1, 2)):
            s, size = len(storages), draw.randint(1, 9)
            if reads and draw.random() < 0.5:
                size = storages[reads[0]].size_bytes
                inplace.append((s, tuple(r for r in reads if storages[r].size_bytes == size and not storages[r].at_end)))
            storages.append(OrderStorage(f"s{s}", size, at_end=draw.random() < 0.15))
            producer[s] = k
            touches.append(s)
        if k and draw.random() < 0.2:
            after.add(draw.randrange(k))
        scratch, kind = draw.choice((0, 0, 3)), draw.choice(kinds)
        kernels.append(OrderKernel(f"k{k}", tuple(touches), tuple(sorted(after)), tuple(inplace), scratch, kind))
    return OrderProblem(tuple(kernels), tuple(storages))


def all_orders(problem: OrderProblem, done: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    if len(done) == len(problem.kernels):
        yield done
    for k, kernel in enumerate(problem.kernels):
        if k not in done and set(kernel.after) <= set(done):
            yield from all_orders(problem, (*done, k))


def random_order(problem: OrderProblem, seed: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    done: list[int] = []
    while len(done) < len(problem.kernels):
        done.append(
            draw.choice([k for k, kernel in enumerate(problem.kernels) if k not in done and set(kernel.after) <= set(done)])
        )
    return tuple(done)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_the_optimum_is_that_of_all_orders(seed: int, count: int) -> None:
    problem = random_problem(seed, count)
    best = min(peak_of(problem, order) for order in all_orders(problem))
    assert lower_bound(problem) <= best
    found = solve(problem, {"given": range(count)})
    assert (found.status, found.peak_bytes) == ("optimal", best)
    assert problem.allows(found.sequence)
    assert peak_of(problem, found.sequence, found.apart) == best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 40), st.integers(0, 1000))
def test_never_worse_than_any_order_that_is_known(seed: int, count: int, steps: int) -> None:
    """However little work it may do."""
    problem = random_problem(seed, count, (*KINDS, "none", "none"))
    known = {f"random {i}": random_order(problem, i) for i in range(3)}
    found = solve(problem, known, steps)
    assert problem.allows(found.sequence)
    assert peak_of(problem, found.sequence, found.apart) == found.peak_bytes >= found.bound_bytes
    assert found.peak_bytes <= min(peak_of(problem, order, ()) for order in known.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 40))
def test_a_search_that_is_cut_short_still_bounds(seed: int, count: int, steps: int) -> None:
    problem = random_problem(seed, count)
    best = min(peak_of(problem, order) for order in all_orders(problem))
    stepper = Stepper(problem)
    found = best_first(stepper, stepper.start(), (1 << count) - 1, lower_bound(problem), 10**9, OrderEffort(steps))
    assert found.bound_bytes <= best
    assert found.order is None or peak_of(problem, found.order) == found.peak_bytes == best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_steps_count_what_the_replay_counts(seed: int, count: int) -> None:
    problem = random_problem(seed, count)
    order = random_order(problem, seed)
    stepper = Stepper(problem)
    state, seen = stepper.start(), []
    for k in order:
        assert state.ready >> k & 1
        added, after = stepper.cost(k, state.done)
        seen.append(state.live + added)
        state = stepper.run(state, k, after)
    assert seen == list(live_bytes(problem, order))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_beam_and_windows_return_what_they_say(seed: int, count: int) -> None:
    problem = random_problem(seed, count)
    given_order = random_order(problem, seed)
    peak = peak_of(problem, given_order)
    stepper, floor = Stepper(problem), lower_bound(problem)
    found = beam(stepper, floor, peak, 4, OrderEffort(10**4))
    if found is not None and peak > floor:
        assert found.order is not None and problem.allows(found.order)
        assert peak_of(problem, found.order) <= found.peak_bytes < peak
    better = windows(stepper, given_order, floor, OrderEffort(10**4))
    assert problem.allows(better)
    assert peak_of(problem, better) <= peak


def kernels(
    *lines: tuple[str, tuple[int, ...], tuple[int, ...]], sizes: tuple[int, ...], at_end: tuple[int, ...] = ()
) -> OrderProblem:
    """Lines of kind, storages and kernels to wait for; names by position."""
    made = tuple(OrderKernel(f"k{i}", touches, after, kind=kind) for i, (kind, touches, after) in enumerate(lines))  # type: ignore[arg-type]
    return OrderProblem(made, tuple(OrderStorage(f"s{s}", size, at_end=s in at_end) for s, size in enumerate(sizes)))


def test_loops_that_join_give_back_with_the_next_call() -> None:
    problem = kernels(
        ("loops", (0,), ()), ("loops", (0, 1), (0,)), ("loops", (1, 2), (1,)), ("call", (2, 3), (2,)), sizes=(8, 4, 2, 1)
    )
    assert list(live_bytes(problem, range(4), ())) == [8, 12, 14, 3]
    assert list(live_bytes(problem, range(4), {1})) == [8, 12, 6, 3]
    assert list(live_bytes(problem, range(4))) == [8, 12, 6, 3]


def test_as_few_loops_are_kept_apart_as_it_takes() -> None:
    problem = kernels(*(("loops", (i, i + 1), (i - 1,) if i else ()) for i in range(6)), sizes=(1,) * 7)
    assert kept_apart(problem, range(6), 7) == frozenset()
    assert kept_apart(problem, range(6), 4) == {2}
    assert kept_apart(problem, range(6), 3) == {1, 3}
    assert peak_of(problem, range(6), {1, 3}) == 3


def test_what_is_read_for_the_last_time_may_be_written_over() -> None:
    storages = (OrderStorage("a", 8), OrderStorage("b", 8), OrderStorage("c", 8))
    write = OrderKernel("write", (0, 1), (0,), ((1, (0,)),))
    problem = OrderProblem((OrderKernel("make", (0,)), write, OrderKernel("read", (0, 2), (0,))), storages)
    assert list(live_bytes(problem, (0, 1, 2))) == [8, 16, 16]  # "read" still needs it
    assert list(live_bytes(problem, (0, 2, 1))) == [8, 16, 8]


def test_scratch_is_alive_while_its_kernel_runs() -> None:
    problem = OrderProblem(
        (OrderKernel("a", (0,), scratch_bytes=5), OrderKernel("b", (0, 1), (0,))), (OrderStorage("x", 8), OrderStorage("y", 1))
    )
    assert list(live_bytes(problem, (0, 1))) == [13, 9]


def test_inputs_that_die_and_outputs_that_stay() -> None:
    storages = (
        OrderStorage("saved", 8, at_start=True),
        OrderStorage("held", 4, at_start=True, at_end=True),
        OrderStorage("out", 2, at_end=True),
    )
    problem = OrderProblem((OrderKernel("a", (0,)), OrderKernel("b", (2,))), storages)
    assert list(live_bytes(problem, (0, 1))) == [12, 6]
    assert list(live_bytes(problem, (1, 0))) == [14, 14]
    assert lower_bound(problem) == 12


def side_by_side(branches: int = 6) -> OrderProblem:
    """Branches of two kernels, large inside, that leave little; first all first halves, then all second halves."""
    first = tuple(("call", (2 * b,), ()) for b in range(branches))
    second = tuple(("call", (2 * b, 2 * b + 1), (b,)) for b in range(branches))
    return kernels(*first, *second, sizes=(100, 1) * branches)


def test_branches_run_one_after_the_other() -> None:
    problem = side_by_side()
    assert peak_of(problem, range(12)) == 601
    found = solve(problem, {"given": range(12)})
    assert (found.peak_bytes, found.status) == (101, "optimal")


def test_windows_lower_one_peak_after_the_other() -> None:
    problem = side_by_side()
    order = windows(Stepper(problem), range(12), 101, OrderEffort(10**4))
    assert problem.allows(order)
    assert peak_of(problem, order) == 101


def test_the_known_order_stays_where_nothing_is_gained() -> None:
    problem = kernels(("call", (0,), ()), ("call", (1,), ()), ("call", (0, 1, 2), (0, 1)), sizes=(4, 4, 4))
    found = solve(problem, {"given": (1, 0, 2), "other": (0, 1, 2)})
    assert (found.sequence, found.method, found.status) == ((1, 0, 2), "given", "optimal")


def test_the_same_problem_has_the_same_answer() -> None:
    problem = random_problem(5, 50)
    first, second = (solve(problem, {"given": range(50)}, 5000) for _ in range(2))
    assert (first.sequence, first.apart, first.method, first.bound_bytes) == (
        second.sequence,
        second.apart,
        second.method,
        second.bound_bytes,
    )


@pytest.mark.parametrize("order", [(0,), (0, 0), (1, 0), (0, 1, 2)])
def test_orders_that_are_not_allowed(order: tuple[int, ...]) -> None:
    assert not kernels(("call", (), ()), ("call", (), (0,)), sizes=()).allows(order)


def test_no_kernels() -> None:
    problem = OrderProblem((), (OrderStorage("x", 3, at_start=True),))
    found = solve(problem, {"given": ()})
    assert (found.peak_bytes, found.status) == (3, "optimal")
