"""Orders and replacements for a scratchpad: the fewest bytes by trying everything, and bounds that hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.scratchpad.annealing import improved
from memcompile.solvers.scratchpad.bound import lower_bound
from memcompile.solvers.scratchpad.evicting import annealed, moved_by, tables_of
from memcompile.solvers.scratchpad.exact import cheapest
from memcompile.solvers.scratchpad.gaps import peak_bytes
from memcompile.solvers.scratchpad.order import ScratchpadEffort, order_of, smallest_peak
from memcompile.solvers.scratchpad.parts import necks, sections, window
from memcompile.solvers.scratchpad.problem import ScratchpadOp, ScratchpadProblem, ScratchpadTooSmallError, Tensor
from memcompile.solvers.scratchpad.replacement import replace
from tests.solvers.scratchpad.scratchpad_nets import chain_with_skips, fewest_bytes, orders, problems

TIGHT = st.sampled_from([0, 0, 1, 2])
"""Bytes above the smallest scratchpad in which every operator fits."""


@settings(max_examples=200, deadline=None)
@given(problems(ops=9), TIGHT)
def test_the_replacement_of_an_order_is_the_best(problem: ScratchpadProblem, more: int) -> None:
    size, order = problem.needed_bytes + more, range(len(problem.ops))
    found = replace(problem, order, size)
    assert found.moved_bytes == found.bound_bytes == fewest_bytes(problem, order, size)


def test_what_is_stored_once_is_cheaper_the_second_time() -> None:
    """a or b has to go, and later a or c: two loads of b and c are cheaper than two of a, but each of them is stored as well."""
    sizes = {"a": 5, "b": 4, "large": 6, "d": 1, "c": 4, "again": 6, "e": 1}
    reads = {"d": "ab", "e": "ac"}
    numbers = {name: index for index, name in enumerate(sizes)}
    ops = tuple(ScratchpadOp(name, tuple(numbers[read] for read in reads.get(name, "")), (numbers[name],)) for name in sizes)
    problem = ScratchpadProblem(ops, tuple(Tensor(name, size) for name, size in sizes.items()))
    found = replace(problem, range(len(ops)), 11)
    assert {gap.tensor for gap in found.dropped} == {numbers["a"]}
    assert found.moved_bytes == found.bound_bytes == fewest_bytes(problem, range(len(ops)), 11) == 3 * 5


def network(sizes: dict[str, int], ops: dict[str, tuple[str, str]], inputs: str = "") -> ScratchpadProblem:
    """``ops``: name to the tensors read and written, one letter each."""
    numbers = {name: index for index, name in enumerate(sizes)}
    tensors = tuple(Tensor(name, size, is_input=name in inputs) for name, size in sizes.items())
    made = (
        ScratchpadOp(n, tuple(numbers[t] for t in reads), tuple(numbers[t] for t in writes))
        for n, (reads, writes) in ops.items()
    )
    return ScratchpadProblem(tuple(made), tensors)


def test_a_step_with_less_room_counts_beside_one_with_more_to_keep() -> None:
    """While k runs a or b has to go; while l runs one of a, b and c, of which c is the cheapest but does not help k."""
    sizes = {"a": 3, "b": 3, "c": 3, "w": 2, "v": 2, "z": 1}
    ops = {"a": ("", "a"), "b": ("", "b"), "k": ("c", "w"), "l": ("", "v"), "end": ("abc", "z")}
    problem = network(sizes, ops, inputs="c")
    assert replace(problem, range(5), 10).moved_bytes == fewest_bytes(problem, range(5), 10) == 6


def test_the_cheaper_eviction_now_may_be_dearer_later() -> None:
    """Both x and y make room for p, but only y makes room for q. s, t and u are tokens that keep the order."""
    sizes = {"x": 2, "y": 3, "p": 7, "q": 7, "z": 1, "s": 0, "t": 0, "u": 0, "v": 1}
    ops = {"x": ("", "xs"), "y": ("s", "yt"), "p": ("t", "pu"), "q": ("u", "qv"), "end": ("xyv", "z")}
    problem = network(sizes, ops)
    assert cheapest(problem, 10, 1000).bound_bytes == fewest_bytes(problem, range(5), 10) == 6


def test_the_bound_counts_one_load_where_one_may_do() -> None:
    """t has to be outside while v and while w run. They may run one after the other, between its two readers."""
    sizes = {"t": 4, "s": 0, "a": 1, "b": 1, "c": 1, "l": 6, "m": 7, "z": 1}
    ops = {"t": ("", "ts"), "one": ("t", "a"), "v": ("s", "cm"), "w": ("a", "bl"), "two": ("tbc", "z")}
    problem = network(sizes, ops)
    assert lower_bound(problem, 10) == min(fewest_bytes(problem, order, 10) for order in orders(problem)) == 8


@settings(max_examples=200, deadline=None)
@given(problems(ops=6), TIGHT)
def test_a_complete_search_finds_the_best_order(problem: ScratchpadProblem, more: int) -> None:
    size = problem.needed_bytes + more
    best = min(fewest_bytes(problem, order, size) for order in orders(problem))
    found = cheapest(problem, size, 100_000)
    assert found.bound_bytes == best
    assert found.order is not None and problem.allows(found.order)
    assert fewest_bytes(problem, found.order, size) == best
    assert cheapest(problem, size, 100_000, limit=best).order is None
    assert cheapest(problem, size, 2).bound_bytes <= best


@settings(max_examples=100, deadline=None)
@given(problems(ops=6), TIGHT)
def test_no_order_is_below_the_bound(problem: ScratchpadProblem, more: int) -> None:
    size = problem.needed_bytes + more
    bound = lower_bound(problem, size)
    assert all(bound <= replace(problem, order, size).moved_bytes for order in orders(problem))


@settings(max_examples=150, deadline=None)
@given(problems(ops=10), TIGHT)
def test_where_one_order_is_allowed_the_bound_is_its_cost(problem: ScratchpadProblem, more: int) -> None:
    tokens = tuple(Tensor(f"done{i}", 0) for i in range(len(problem.ops)))
    first = len(problem.tensors)
    ops = tuple(
        ScratchpadOp(op.name, (*op.reads, *((first + i - 1,) if i else ())), (*op.writes, first + i))
        for i, op in enumerate(problem.ops)
    )
    chain, size = ScratchpadProblem(ops, problem.tensors + tokens), problem.needed_bytes + more
    assert lower_bound(chain, size, work=10.0) == replace(chain, range(len(ops)), size).moved_bytes


def test_the_bound_sees_what_waits() -> None:
    problem = chain_with_skips()
    assert problem.needed_bytes == 24
    assert lower_bound(problem, 24) == replace(problem, range(len(problem.ops)), 24).moved_bytes == 2 * 2 * 8


@settings(max_examples=60, deadline=None)
@given(problems(ops=7), TIGHT, st.integers(0, 3))
def test_annealing_is_never_worse_than_its_start(problem: ScratchpadProblem, more: int, seed: int) -> None:
    size, tables = problem.needed_bytes + more, tables_of(problem)
    start = list(range(len(problem.ops)))
    order, moved = annealed(tables, start, size, 500, seed)
    assert problem.allows(order)
    assert moved == moved_by(tables, order, size) <= moved_by(tables, start, size)
    assert replace(problem, order, size).moved_bytes <= moved
    assert annealed(tables, start, size, 500, seed) == (order, moved)


def test_what_is_needed_last_goes_first() -> None:
    """a, b, c of one byte each in three bytes, with one more to write: c is read last."""
    tensors = [Tensor(name, 1) for name in "abcdefg"]
    writes = [ScratchpadOp(f"make {name}", (), (i,)) for i, name in enumerate("abc")]
    reads = [
        ScratchpadOp("d", (0,), (3,)),
        ScratchpadOp("e", (1,), (4,)),
        ScratchpadOp("f", (2,), (5,)),
        ScratchpadOp("g", (3, 4), (6,)),
    ]
    problem = ScratchpadProblem((*writes, *reads), tuple(tensors))
    order = range(len(problem.ops))
    assert moved_by(tables_of(problem), order, 3) == fewest_bytes(problem, order, 3) == 4


def branches(count: int = 4) -> ScratchpadProblem:
    """Branches of one source, each wide and then narrow; the given order makes all the wide ones first."""
    tensors = [Tensor("x", 2, is_input=True), *(Tensor(f"wide{i}", 8) for i in range(count))]
    tensors += [Tensor(f"narrow{i}", 1) for i in range(count)]
    tensors.append(Tensor("out", 1, is_output=True))
    wide = [ScratchpadOp(f"wide{i}", (0,), (1 + i,)) for i in range(count)]
    narrow = [ScratchpadOp(f"narrow{i}", (1 + i,), (1 + count + i,)) for i in range(count)]
    last = ScratchpadOp("out", tuple(range(1 + count, 1 + 2 * count)), (1 + 2 * count,))
    return ScratchpadProblem((*wide, *narrow, last), tuple(tensors))


@pytest.mark.parametrize("effort", [ScratchpadEffort(), ScratchpadEffort(states=0), ScratchpadEffort(states=0, peak_steps=0)])
def test_an_order_that_makes_room(effort: ScratchpadEffort) -> None:
    problem = branches()
    size = 2 + 8 + 4
    given_order = tuple(range(len(problem.ops)))
    assert replace(problem, given_order, size).moved_bytes > 0
    found = order_of(problem, size, effort)
    assert found.moved_bytes == 0 == replace(problem, found.order, size).moved_bytes
    assert peak_bytes(problem, smallest_peak(problem, 10_000)) <= size < peak_bytes(problem, given_order)


def test_without_a_search_the_bound_is_no_more_than_is_known() -> None:
    found = order_of(branches(), 14, ScratchpadEffort(states=0, peak_steps=0, tries=0, steps=0))
    assert found.moved_bytes > 0 == found.bound_bytes


def test_a_large_part_is_annealed_in_windows() -> None:
    """Many branching blocks behind each other, too many for the whole: windows must find what is left."""
    problem, size = branches(40), 2 + 8 + 40
    given_order = range(len(problem.ops))
    before = moved_by(tables_of(problem), given_order, size)
    order, _ = improved(problem, size, [given_order], 300)
    assert problem.allows(order)
    assert moved_by(tables_of(problem), order, size) < before


def test_blocks_end_at_necks() -> None:
    problem = chain_with_skips()
    ends = {problem.ops[index].name for index in necks(problem)}
    assert {"stem", "sum0", "sum1", "end"} <= ends
    assert "wide0" not in ends and "left" not in ends
    assert sorted(op for part in sections(problem) for op in part.ops if op >= 0) == list(range(len(problem.ops)))


@settings(max_examples=60, deadline=None)
@given(problems(ops=6), TIGHT)
def test_parts_add_up(problem: ScratchpadProblem, more: int) -> None:
    size = problem.needed_bytes + more
    whole = cheapest(problem, size, 100_000).bound_bytes
    assert sum(cheapest(part.problem, size, 100_000).bound_bytes for part in sections(problem)) == whole


@settings(max_examples=200, deadline=None)
@given(problems(ops=9), TIGHT, st.data())
def test_a_window_counts_what_its_plan_moves_inside(problem: ScratchpadProblem, more: int, data: st.DataObject) -> None:
    size, order = problem.needed_bytes + more, tuple(range(len(problem.ops)))
    whole = replace(problem, order, size)
    first = data.draw(st.integers(0, len(order) - 1))
    last = data.draw(st.integers(first + 1, len(order)))
    section = window(problem, order, whole.dropped, first, last)
    inside = tuple(range(len(section.problem.ops)))
    assert section.order(inside) == list(order[first:last])
    assert section.problem.needed_bytes <= size
    best = cheapest(section.problem, size, 100_000)
    assert best.order is not None
    spliced = (*order[:first], *section.order(best.order), *order[last:])
    gain = replace(section.problem, inside, size).moved_bytes - best.bound_bytes
    assert problem.allows(spliced)
    assert replace(problem, spliced, size).moved_bytes <= whole.moved_bytes - gain


@settings(max_examples=40, deadline=None)
@given(problems(ops=5), TIGHT)
def test_orders_of_small_networks_are_optimal(problem: ScratchpadProblem, more: int) -> None:
    size = problem.needed_bytes + more
    best = min(fewest_bytes(problem, order, size) for order in orders(problem))
    found = order_of(problem, size, ScratchpadEffort())
    assert found.moved_bytes == found.bound_bytes == best
    rough = order_of(problem, size, ScratchpadEffort(states=0, peak_steps=0, tries=50))
    assert rough.bound_bytes <= best <= rough.moved_bytes


def test_an_operator_that_does_not_fit_is_named() -> None:
    with pytest.raises(ScratchpadTooSmallError, match="sum0 reads and writes 24 bytes") as caught:
        replace(chain_with_skips(), range(9), 23)
    assert (caught.value.needed_bytes, caught.value.size_bytes) == (24, 23)
