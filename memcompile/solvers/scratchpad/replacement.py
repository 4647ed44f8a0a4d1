"""Which tensors wait in the scratchpad and which outside, for an order: the fewest bytes moved, with a proof.

Between two uses a tensor is kept or not. One that is not kept at some time is stored, once, and loaded before its next use.
What is kept in a step must fit beside what the operator touches. That is a small integer program: most steps have room for all
(Li et al. 2023 state the same with one variable per tensor and step). Places are left to ``offsets.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from memcompile.solvers.scratchpad.gaps import Gap, gaps_of, store_bytes
from memcompile.solvers.scratchpad.problem import ScratchpadProblem, ScratchpadTooSmallError

WORK = 2.0
"""Of the solver, in its deterministic time: some ten seconds. What it is given here takes a hundredth."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """``dropped``: the gaps in which a tensor is not kept. No replacement moves fewer than ``bound_bytes``."""

    dropped: frozenset[Gap]
    moved_bytes: int
    bound_bytes: int


def moved_bytes(problem: ScratchpadProblem, dropped: frozenset[Gap]) -> int:
    """Non-compulsory bytes."""
    stores = sum(store_bytes(problem, tensor) for tensor in {gap.tensor for gap in dropped})
    return stores + sum(problem.tensors[gap.tensor].size_bytes for gap in dropped)


def check_room(problem: ScratchpadProblem, size_bytes: int) -> None:
    """Raise ``ScratchpadTooSmallError`` where an operator alone does not fit."""
    if problem.ops and problem.needed_bytes > size_bytes:
        worst = max(range(len(problem.ops)), key=problem.working_bytes.__getitem__)
        raise ScratchpadTooSmallError(problem.ops[worst].name, problem.needed_bytes, size_bytes)


def replace(
    problem: ScratchpadProblem, order: Sequence[int], size_bytes: int, *, held: Sequence[Gap] = (), work: float = WORK
) -> Replacement:
    """The fewest non-compulsory bytes for ``order`` in ``size_bytes``. ``held``: gaps that are not kept whatever they cost."""
    check_room(problem, size_bytes)
    forced = set(held)
    gaps = [gap for gap in gaps_of(problem, order) if gap.last > gap.first + 1 and gap not in forced]
    room = [size_bytes - problem.working_bytes[op] for op in order]
    sizes = [tensor.size_bytes for tensor in problem.tensors]
    forced |= {gap for gap in gaps if sizes[gap.tensor] > min(room[gap.first + 1 : gap.last])}
    gaps = [gap for gap in gaps if gap not in forced and sizes[gap.tensor]]
    crowded = _crowded(gaps, sizes, room)
    asked = sorted({gap for _, inside in crowded for gap in inside}, key=lambda gap: (gap.tensor, gap.first))
    if not asked:
        moved = moved_bytes(problem, frozenset(forced))
        return Replacement(frozenset(forced), moved, moved)
    return _solve(problem, asked, crowded, frozenset(forced), work)


def _crowded(gaps: Sequence[Gap], sizes: Sequence[int], room: Sequence[int]) -> list[tuple[int, frozenset[Gap]]]:
    """Steps in which not all can be kept: the room, and the gaps. Steps that follow from a neighbour are left out."""
    crossing: list[set[Gap]] = [set() for _ in room]
    for gap in gaps:
        for step in range(gap.first + 1, gap.last):
            crossing[step].add(gap)
    full = [
        (room[step], frozenset(inside))
        for step, inside in enumerate(crossing)
        if sum(sizes[gap.tensor] for gap in inside) > room[step]
    ]
    kept: list[tuple[int, frozenset[Gap]]] = []
    for each in full:
        while kept and kept[-1][1] <= each[1] and kept[-1][0] >= each[0]:
            kept.pop()
        if not kept or not (each[1] <= kept[-1][1] and each[0] >= kept[-1][0]):
            kept.append(each)
    return kept


def _solve(
    problem: ScratchpadProblem,
    asked: Sequence[Gap],
    crowded: Sequence[tuple[int, frozenset[Gap]]],
    forced: frozenset[Gap],
    work: float,
) -> Replacement:
    sizes = [tensor.size_bytes for tensor in problem.tensors]
    unit = math.gcd(*(sizes[gap.tensor] for gap in asked))
    model = cp_model.CpModel()
    keep = {gap: model.new_bool_var("") for gap in asked}
    stored_anyway = {gap.tensor for gap in forced}
    stored = {
        tensor: model.new_bool_var("")
        for tensor in dict.fromkeys(gap.tensor for gap in asked)
        if store_bytes(problem, tensor) and tensor not in stored_anyway
    }
    for gap, kept in keep.items():
        if gap.tensor in stored:
            model.add_bool_or(kept, stored[gap.tensor])
    for room, inside in crowded:
        ordered = sorted(inside, key=lambda gap: (gap.tensor, gap.first))
        model.add(sum(sizes[gap.tensor] // unit * keep[gap] for gap in ordered) <= room // unit)
    loads = sum(sizes[gap.tensor] // unit * (1 - kept) for gap, kept in keep.items())
    model.minimize(loads + sum(sizes[tensor] // unit * each for tensor, each in stored.items()))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = work
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        dropped = forced | frozenset(asked)
        base = moved_bytes(problem, forced)
        return Replacement(dropped, moved_bytes(problem, dropped), base + unit * max(0, math.ceil(solver.best_objective_bound)))
    dropped = forced | {gap for gap, kept in keep.items() if not solver.value(kept)}
    bound = moved_bytes(problem, forced) + unit * math.ceil(solver.best_objective_bound - 1e-6)
    moved = moved_bytes(problem, dropped)
    return Replacement(dropped, moved, moved if status == cp_model.OPTIMAL else min(moved, bound))
