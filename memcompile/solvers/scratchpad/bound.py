"""Bytes that no order can avoid to move, when the orders are too many to look at.

While an operator runs, some tensors are waiting in any order: those made by what runs before it and read by what runs behind
it. Where they do not fit beside what it touches, some of them wait outside, and are loaded again. One integer program over all
operators: which tensors wait outside while each of them runs, and how many loads that takes at least. For operators of which
only one order is allowed the bound is the optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ortools.sat.python import cp_model

from memcompile.solvers.scratchpad.gaps import store_bytes
from memcompile.solvers.scratchpad.problem import ScratchpadProblem

WORK = 0.5
"""Of the solver, in its deterministic time."""


@dataclass(frozen=True, slots=True)
class _Wait:
    """``tensor`` waits while ``op`` runs: its next load is in one of the spans ``[first, last)`` of its chain of users."""

    tensor: int
    op: int
    first: int
    last: int


def lower_bound(problem: ScratchpadProblem, size_bytes: int, work: float = WORK) -> int:
    """No order and no replacement moves fewer non-compulsory bytes through ``size_bytes``."""
    waits = _Waits(problem)
    sizes = [tensor.size_bytes for tensor in problem.tensors]
    tight: list[tuple[int, list[_Wait]]] = []
    for op, inside in enumerate(waits.by_op):
        excess = problem.working_bytes[op] + sum(sizes[wait.tensor] for wait in inside) - size_bytes
        if excess > 0:
            tight.append((excess, inside))
    if not tight:
        return 0
    unit = math.gcd(*(sizes[wait.tensor] for _, inside in tight for wait in inside))
    model = cp_model.CpModel()
    loads: dict[tuple[int, int], cp_model.IntVar] = {}
    stored: dict[int, cp_model.IntVar] = {}
    outside: dict[tuple[int, int, int], cp_model.IntVar] = {}

    def outside_of(wait: _Wait) -> cp_model.IntVar:
        key = wait.tensor, wait.first, wait.last
        if key not in outside:
            outside[key] = gone = model.new_bool_var("")
            spans = [(wait.tensor, span) for span in range(wait.first, wait.last)]
            for span in spans:
                loads.setdefault(span, model.new_bool_var(""))
            model.add_bool_or([gone.negated(), *(loads[span] for span in spans)])
            if store_bytes(problem, wait.tensor):
                stored.setdefault(wait.tensor, model.new_bool_var(""))
                model.add_implication(gone, stored[wait.tensor])
        return outside[key]

    for excess, inside in tight:
        model.add(sum(sizes[wait.tensor] // unit * outside_of(wait) for wait in inside) >= -(-excess // unit))
    cost = sum(sizes[tensor] // unit * load for (tensor, _), load in loads.items())
    model.minimize(cost + sum(sizes[tensor] // unit * each for tensor, each in stored.items()))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = work
    solver.solve(model)
    return unit * max(0, math.ceil(solver.best_objective_bound - 1e-6))


class _Waits:
    """Per operator the tensors that wait while it runs, in any order.

    The loads of a tensor are told apart by a chain of its users, each of which runs before the next one in any order: span i is
    the time from behind user i until user i + 1 has its operands.
    """

    def __init__(self, problem: ScratchpadProblem) -> None:
        self.problem = problem
        before = problem.before
        self.by_op: list[list[_Wait]] = [[] for _ in problem.ops]
        readers: list[list[int]] = [[] for _ in problem.tensors]
        for op, each in enumerate(problem.ops):
            for tensor in each.reads:
                readers[tensor].append(op)
        for tensor, given in enumerate(problem.tensors):
            if given.size_bytes and readers[tensor]:
                users = readers[tensor] if given.is_input else [problem.makers[tensor], *readers[tensor]]
                self._add(tensor, users, before)

    def _add(self, tensor: int, users: list[int], before: tuple[int, ...]) -> None:
        chain = _chain(users, before)
        mask = sum(1 << user for user in users)
        first_after = min(users)
        for op in range(first_after + 1, len(self.problem.ops)):
            if mask >> op & 1 or not before[op] & mask:
                continue
            if not any(before[user] >> op & 1 for user in users if user > op):
                continue
            first = max((i for i, user in enumerate(chain) if before[op] >> user & 1), default=-1)
            last = next((i for i, user in enumerate(chain) if before[user] >> op & 1), len(chain))
            self.by_op[op].append(_Wait(tensor, op, first, last))


def _chain(users: list[int], before: tuple[int, ...]) -> list[int]:
    """The longest sequence of ``users``, which are in an order that is allowed, each before the next one in any order."""
    best: dict[int, tuple[int, int | None]] = {}
    for user in users:
        earlier = [(best[other][0] + 1, other) for other in best if before[user] >> other & 1]
        best[user] = max(earlier, default=(1, None), key=lambda item: item[0])
    at: int | None = max(best, key=lambda user: best[user][0])
    found = []
    while at is not None:
        found.append(at)
        at = best[at][1]
    return found[::-1]
