"""Whole plans for a scratchpad: places, memories behind it, the certificate, and a checker that sees every lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.scratchpad import offsets
from memcompile.solvers.scratchpad.levels import as_problem
from memcompile.solvers.scratchpad.problem import (
    Level,
    ProblemError,
    ScratchpadOp,
    ScratchpadProblem,
    ScratchpadSolution,
    ScratchpadTooSmallError,
    Stay,
    Tensor,
    check,
)
from memcompile.solvers.scratchpad.replacement import replace as replacement_of
from memcompile.solvers.scratchpad.search import plan_scratchpad
from memcompile.solvers.scratchpad.validate import InvalidPlanError, validate
from tests.solvers.scratchpad.scratchpad_nets import chain_with_skips, fewest_bytes, orders, problems


@settings(max_examples=80, deadline=None)
@given(problems(), st.integers(0, 3))
def test_plans_are_valid_and_what_is_called_optimal_is(problem: ScratchpadProblem, more: int) -> None:
    size = problem.needed_bytes + more
    if not size:
        return
    solution = plan_scratchpad(problem, size)
    assert validate(problem, solution) == solution.moved_bytes
    best = min(fewest_bytes(problem, order, size) for order in orders(problem))
    assert solution.bound_bytes <= best <= solution.moved_bytes
    assert solution.order_bound_bytes >= fewest_bytes(problem, solution.order, size)
    assert (solution.status == "optimal") == (solution.moved_bytes == solution.bound_bytes)
    assert plan_scratchpad(problem, size).order == solution.order


@pytest.mark.parametrize("way", ["repaired", "as they come", "jointly"])
@settings(max_examples=60, deadline=None)
@given(problem=problems(ops=7), more=st.integers(0, 2))
def test_places_are_found_where_packing_finds_none(problem: ScratchpadProblem, more: int, way: str) -> None:
    size = problem.needed_bytes + more
    if not size:
        return
    packed, tried = offsets.place, list[None]()

    def place(problem: ScratchpadProblem, stays: list[Stay], size_bytes: int, turns: int = 1) -> list[Stay] | None:
        tried.append(None)
        return packed(problem, stays, size_bytes) if way == "repaired" and len(tried) > 1 else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offsets, "place", place)
        if way != "jointly":
            patch.setattr(offsets, "_joint", lambda *arguments: arguments[-1])
        if way != "repaired":
            patch.setattr(offsets, "_repaired", lambda *_: None)
        solution = plan_scratchpad(problem, size)
    moved = validate(problem, solution)
    if way == "jointly":
        assert moved == plan_scratchpad(problem, size).moved_bytes


def test_what_sticks_out_makes_the_cheapest_neighbour_go() -> None:
    problem = crowded()
    order = range(len(problem.ops))
    best = replacement_of(problem, order, 10)
    assert best.moved_bytes == 0
    found = offsets._repaired(problem, order, 10, best)
    assert found is not None
    repaired, stays = found
    assert repaired.moved_bytes == 3
    assert max(stay.offset + problem.tensors[stay.tensor].size_bytes for stay in stays) <= 10


def crowded() -> ScratchpadProblem:
    """Ten bytes suffice for what lives at any time, but in this order there are no places for all of it: x has to move."""
    sizes = {"x": 3, "a": 2, "b": 6, "c": 3, "d": 5, "e": 4, "f": 6}
    tensors = tuple(Tensor(name, size, is_input=name == "x") for name, size in sizes.items())
    reads = {"b": "x", "c": "x", "e": "c", "a": "x", "d": "c", "f": "a"}
    numbers = {name: index for index, name in enumerate(sizes)}
    ops = tuple(ScratchpadOp(name, (numbers[read],), (numbers[name],)) for name, read in reads.items())
    return ScratchpadProblem(ops, tensors)


def test_a_place_that_cannot_be_had_costs_and_the_bound_says_so() -> None:
    problem = crowded()
    solution = plan_scratchpad(problem, 10, reorder=False)
    assert validate(problem, solution) == 3
    assert (solution.bound_bytes, solution.order_bound_bytes, solution.status) == (0, 3, "optimal for the order")


def test_bytes_that_have_to_move_are_told_apart() -> None:
    problem = chain_with_skips()
    solution = plan_scratchpad(problem, 24)
    assert (solution.compulsory_bytes, solution.moved_bytes, solution.status, solution.gap) == (8, 32, "optimal", 0.0)
    compulsory = {(each.kind, problem.tensors[each.tensor].name) for each in solution.levels[0].transfers if each.compulsory}
    assert compulsory == {("load", "x"), ("store", "end")}
    assert plan_scratchpad(problem, 28).moved_bytes == 0


def test_memories_behind_hold_what_they_can() -> None:
    """32 bytes leave and come back: a memory of 8 keeps each until then, one of 4 holds none of them."""
    problem = chain_with_skips()
    levels = (Level("sram", 24), Level("dram", 8, 100.0), Level("flash", None, 10.0))
    solution = plan_scratchpad(problem, levels)
    first, second = solution.levels
    assert (first.moved_bytes, first.compulsory_bytes, first.seconds) == (32, 8, 0.4)
    assert (second.moved_bytes, second.compulsory_bytes, second.seconds) == (0, 8, 0.8)
    behind = as_problem(problem, first.transfers)
    assert [behind.ops[0].name, behind.ops[-1].name] == ["load x", "store end"]
    inner = ScratchpadSolution(tuple(range(len(behind.ops))), (second,), 8, 0, 0, 0, "", 0.0)
    assert validate(behind, inner) == 0
    with pytest.raises(ScratchpadTooSmallError, match="store stem"):
        plan_scratchpad(problem, (Level("sram", 24), Level("dram", 4), Level("flash", None)))


def test_a_crowded_memory_behind_sends_on() -> None:
    """The image lies in the memory behind while two sums of 8 bytes pass through it: it has to give way, and is not missed."""
    tensors = tuple(Tensor(f"t{i}", 4) for i in range(4)) + tuple(Tensor(f"u{i}", 4) for i in range(4))
    ops = [ScratchpadOp(f"make{i}", (), (i,)) for i in range(4)] + [ScratchpadOp(f"use{i}", (i,), (4 + i,)) for i in range(4)]
    problem = ScratchpadProblem(tuple(ops), tensors)
    solution = plan_scratchpad(problem, (Level("sram", 8), Level("dram", 4), Level("flash", None)), reorder=False)
    first, second = solution.levels
    assert validate(problem, solution) == first.moved_bytes > 0
    behind = as_problem(problem, first.transfers)
    inner = ScratchpadSolution(
        tuple(range(len(behind.ops))), (second,), 0, second.moved_bytes, second.bound_bytes, second.bound_bytes, "", 0
    )
    assert validate(behind, inner) > 0


def test_memories_that_make_no_sense_are_refused() -> None:
    for levels in ((Level("sram", 8),), (Level("sram", None), Level("dram", None)), (Level("sram", 0), Level("dram", None))):
        with pytest.raises(ValueError, match=r"sram|behind"):
            plan_scratchpad(chain_with_skips(), levels)


@pytest.mark.parametrize(
    ("ops", "tensors", "message"),
    [
        ([ScratchpadOp("a", (1,), (0,))], [Tensor("t", 1), Tensor("u", 1)], "a reads u, which no earlier operator writes"),
        ([ScratchpadOp("a", (), (0,)), ScratchpadOp("b", (), (0,))], [Tensor("t", 1)], "b writes t, which is there already"),
        ([ScratchpadOp("a", (), (0,))], [Tensor("t", 1, is_input=True)], "a writes t, which is there already"),
        ([ScratchpadOp("a", (), (2,))], [Tensor("t", 1)], "a: there is no tensor 2"),
        ([ScratchpadOp("a", (), (0,))], [Tensor("t", -1)], "t: -1 bytes"),
        ([], [Tensor("t", 1)], "t: no input, and no operator writes it"),
    ],
)
def test_networks_that_cannot_run_are_refused(ops: list[ScratchpadOp], tensors: list[Tensor], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        check(ScratchpadProblem(tuple(ops), tuple(tensors)))


def broken(solution: ScratchpadSolution, **changes: Any) -> ScratchpadSolution:
    return replace(solution, levels=(replace(solution.levels[0], **changes),))


def test_the_checker_sees_every_lie() -> None:
    problem = chain_with_skips()
    solution = plan_scratchpad(problem, 24)
    level = solution.levels[0]
    stays, transfers = level.stays, level.transfers
    reloaded = next(i for i, stay in enumerate(stays) if stay.loaded and not problem.tensors[stay.tensor].is_input)
    spilled = next(i for i, stay in enumerate(stays) if stay.stored and stay.tensor == stays[reloaded].tensor)
    result = next(i for i, stay in enumerate(stays) if problem.tensors[stay.tensor].is_output)
    neighbour = next(
        i for i, stay in enumerate(stays) if i != result and stay.begin <= stays[result].begin < stay.end and stay.offset
    )

    def with_stay(index: int, **changes: Any) -> ScratchpadSolution:
        return broken(solution, stays=(*stays[:index], replace(stays[index], **changes), *stays[index + 1 :]))

    lies = {
        "before it is written": replace(solution, order=solution.order[::-1]),
        "every operator once": replace(solution, order=solution.order[:-1]),
        "overlap": with_stay(neighbour, offset=stays[result].offset),
        "bytes at 23 of 24": with_stay(result, offset=23),
        "never stored": with_stay(spilled, stored=False),
        "does not find": broken(solution, stays=stays[:reloaded] + stays[reloaded + 1 :]),
        "does not write it": with_stay(reloaded, loaded=False),
        "is not stored at the end": with_stay(result, stored=False),
        "is listed or done": broken(solution, transfers=transfers[1:]),
        "the transfers say": broken(solution, transfers=tuple(replace(each, compulsory=False) for each in transfers)),
        "move": broken(solution, transfers=tuple(replace(each, size_bytes=each.size_bytes + 1) for each in transfers)),
        "the plan says": replace(solution, moved_bytes=0, bound_bytes=0, order_bound_bytes=0),
        "do not lie below": replace(solution, bound_bytes=solution.moved_bytes + 1),
        "is there twice": broken(solution, stays=(*stays, replace(stays[result], offset=stays[neighbour].offset))),
        "a stay from step": with_stay(result, end=stays[result].begin),
    }
    validate(problem, solution)
    for message, lie in lies.items():
        with pytest.raises(InvalidPlanError) as caught:
            validate(problem, lie)
        assert message in str(caught.value) or (message == "is there twice" and "overlap" in str(caught.value))
