"""A plan of one memory with its transfers, and the memories behind it.

What a memory sends to the one behind it is a network of its own: a store writes a tensor there, a load reads it, in an order
that is given. So the same replacement and the same places do for cache, SRAM, DRAM and flash, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from memcompile.solvers.scratchpad.offsets import placed
from memcompile.solvers.scratchpad.problem import Level, LevelPlan, LevelTransfer, ScratchpadOp, ScratchpadProblem, Stay
from memcompile.solvers.scratchpad.replacement import Replacement, replace


def level_plan(problem: ScratchpadProblem, level: Level, behind: Level, best: Replacement, stays: Sequence[Stay]) -> LevelPlan:
    """Stays with the transfers that follow from them. ``behind``: the memory that they go to."""
    transfers = transfers_of(problem, stays)
    compulsory = sum(each.size_bytes for each in transfers if each.compulsory)
    total = sum(each.size_bytes for each in transfers)
    return LevelPlan(
        level=level,
        stays=tuple(stays),
        transfers=transfers,
        moved_bytes=best.moved_bytes,
        compulsory_bytes=compulsory,
        bound_bytes=best.bound_bytes,
        height_bytes=max((stay.offset + problem.tensors[stay.tensor].size_bytes for stay in stays), default=0),
        seconds=total / behind.bytes_per_second if behind.bytes_per_second else 0.0,
    )


def transfers_of(problem: ScratchpadProblem, stays: Sequence[Stay]) -> tuple[LevelTransfer, ...]:
    """Loads and stores in the order in which they happen: of one step, the loads come first."""
    found = list[tuple[int, int, LevelTransfer]]()
    seen: set[int] = set()
    for stay in sorted(stays, key=lambda stay: (stay.begin, stay.tensor)):
        given = problem.tensors[stay.tensor]
        if stay.loaded:
            first = given.is_input and stay.tensor not in seen
            found.append((stay.begin, 0, LevelTransfer(stay.begin, stay.tensor, "load", given.size_bytes, first)))
        if stay.stored:
            found.append((stay.begin, 1, LevelTransfer(stay.begin, stay.tensor, "store", given.size_bytes, given.is_output)))
        seen.add(stay.tensor)
    return tuple(transfer for *_, transfer in sorted(found, key=lambda item: item[:2]))


def as_problem(problem: ScratchpadProblem, transfers: Sequence[LevelTransfer]) -> ScratchpadProblem:
    """What the memory behind has to do: an operator for each transfer, in order. Tensors keep their numbers."""
    ops = tuple(
        ScratchpadOp(
            f"{each.kind} {problem.tensors[each.tensor].name}",
            (each.tensor,) if each.kind == "load" else (),
            (each.tensor,) if each.kind == "store" else (),
        )
        for each in transfers
    )
    return ScratchpadProblem(ops, problem.tensors)


def plans_behind(problem: ScratchpadProblem, first: LevelPlan, levels: Sequence[Level]) -> list[LevelPlan]:
    """Plans of the memories behind the scratchpad, but for the last, where everything has its place. Raises
    ``ScratchpadTooSmallError`` where one of them does not hold a tensor that passes through it."""
    plans, last = list[LevelPlan](), first
    for level, behind in pairwise(levels[1:]):
        given = as_problem(problem, last.transfers)
        order = range(len(given.ops))
        size = level.size_bytes if level.size_bytes is not None else sum(tensor.size_bytes for tensor in problem.tensors)
        best, stays = placed(given, order, size, replace(given, order, size))
        last = level_plan(given, level, behind, best, stays)
        plans.append(last)
    return plans
