"""Which buffers lie in an arena that is there all the time, and which beside it: as much inside as a limit allows, proven.

An arena of height h takes h bytes at every moment, full or not. At each moment what is alive inside has to fit into h, and h
together with what is alive outside into the room. With a 0-1 variable a buffer both are linear, and with one variable a moment
for the level inside, the model grows with the number of buffers and not with its square.

Nothing here knows torch. Sizes, room and height are in any one unit; moments are 0 .. len(room) - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from memcompile.solvers.schedule.simulate import Ints, alive

WORK_S = 2.0
"""Deterministic seconds of the solver: about as many of a clock."""
GAP = 0.01
"""Share of the bytes inside that may be missing from the optimum."""


@dataclass(frozen=True, slots=True)
class Fill:
    """``inside``: a truth value for each buffer. ``height``: what an arena for them may take. No choice has more inside than
    ``bound``."""

    inside: NDArray[np.bool_]
    height: int
    bound: int


def fill(begins: Ints, ends: Ints, sizes: Ints, room: Ints, *, work_s: float = WORK_S, seed: int = 0) -> Fill:
    """Choose the buffers inside; buffer i is alive in ``[begins[i], ends[i])``.

    ``room``: at each moment, for the arena and these buffers. Nothing is inside where there is not room for all of them even
    without an arena, nor where the solver finds nothing within its work.
    """
    count = len(sizes)
    level_of_all = alive(begins, ends, sizes, len(room))
    if not count or (level_of_all > room).any():
        return Fill(np.zeros(count, dtype=np.bool_), 0, 0)
    most = int(room.min())
    if level_of_all.max() <= most:
        return Fill(np.ones(count, dtype=np.bool_), most, int(sizes.sum()))
    model = cp_model.CpModel()
    inside = [model.new_bool_var("") for _ in range(count)]
    height = model.new_int_var(0, most, "")
    level: cp_model.LinearExpr | int = 0
    times = np.unique(np.concatenate([begins, ends, [0]]))
    times = times[times < len(room)].tolist()
    left = np.minimum.reduceat(room - level_of_all, times)  # between changes, the least
    born, dead = ({t: np.flatnonzero(moments == t).tolist() for t in times} for moments in (begins, ends))
    for time, least in zip(times, left.tolist(), strict=True):
        before, level = level, model.new_int_var(0, most, "")
        signed = [*((i, 1) for i in born[time]), *((i, -1) for i in dead[time])]
        model.add(level == before + sum(sign * int(sizes[i]) * inside[i] for i, sign in signed))
        model.add(level <= height)
        model.add(height - level <= least)
    model.maximize(cp_model.LinearExpr.weighted_sum(inside, sizes.tolist()))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_deterministic_time = work_s
    solver.parameters.relative_gap_limit = GAP
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Fill(np.zeros(count, dtype=np.bool_), 0, int(sizes.sum()))
    chosen = np.array([solver.boolean_value(variable) for variable in inside], dtype=np.bool_)
    return Fill(chosen, solver.value(height), int(solver.best_objective_bound))
