"""Is there an arrangement of a given height? A constraint solver, for instances that resist the greedy placements.

Lifetimes and address ranges are the sides of rectangles that must not overlap. The search branches as the canonical placement
does: always on the buffer that can lie lowest, at its lowest offset. Which of several it takes first decides between a
millisecond and an hour, so several orders of importance take turns, in slices of time that double, among them noisy ones, and
the solver's own search.
"""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Iterator

import numpy as np
from ortools.sat.python import cp_model

from memcompile.solvers.placement import Part, orders
from memcompile.solvers.simulate import Ints

FIRST_SLICE_S = 0.25
NOISE = (0.02, 0.1, 0.3)
NOISY = 3
"""Noisy orders a round."""


class Verdict(enum.Enum):
    """What a search says of a height."""

    FOUND = enum.auto()
    NONE = enum.auto()
    UNKNOWN = enum.auto()


def search_height(part: Part, height: int, time_limit_s: float, seed: int = 0) -> tuple[Verdict, Ints]:
    """An arrangement of at most ``height`` bytes, the proof that there is none, or neither within the time limit."""
    deadline = time.monotonic() + time_limit_s
    slice_s = FIRST_SLICE_S
    rng = random.Random(seed)
    while (left_s := deadline - time.monotonic()) > 0:
        for order, share in _round(part, rng, own_search=slice_s >= 1):
            verdict, offsets = _solve(part, height, order, min(left_s, share * slice_s), seed)
            if verdict is not Verdict.UNKNOWN:
                return verdict, offsets
            if (left_s := deadline - time.monotonic()) <= 0:
                break
        slice_s *= 2
    return Verdict.UNKNOWN, np.zeros(0, dtype=np.int64)


def _round(part: Part, rng: random.Random, own_search: bool) -> Iterator[tuple[Ints | None, float]]:
    """Orders to branch by (None: the solver's own search), each with its share of a slice."""
    by = orders(part)
    for name in ("TWA", "TAW", "WAT"):
        yield by[name], 1.0
    if own_search:
        yield None, 2.0
    for _ in range(NOISY):
        noise = rng.choice(NOISE)
        factor = np.array([rng.uniform(1 - noise, 1 + noise) for _ in part.sizes])
        width = (part.ends - part.begins) * factor
        yield np.lexsort((-part.sizes, -width, -part.crowd * factor)), 1 / NOISY


def _solve(part: Part, height: int, order: Ints | None, time_limit_s: float, seed: int) -> tuple[Verdict, Ints]:
    model = cp_model.CpModel()
    offsets, spans, ranges = [], [], []
    columns = (part.begins, part.ends, part.sizes // part.unit, part.fixed)
    for begin, end, size, fixed in zip(*(column.tolist() for column in columns), strict=True):
        low, high = (0, height // part.unit - size) if fixed < 0 else (fixed // part.unit, fixed // part.unit)
        offsets.append(model.new_int_var(low, high, ""))
        spans.append(model.new_fixed_size_interval_var(begin, end - begin, ""))
        ranges.append(model.new_fixed_size_interval_var(offsets[-1], size, ""))
    model.add_no_overlap_2d(spans, ranges)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.random_seed = seed
    solver.parameters.num_workers = 1
    if order is not None:
        solver.parameters.search_branching = cp_model.FIXED_SEARCH
        chosen = [offsets[i] for i in order.tolist()]
        model.add_decision_strategy(chosen, cp_model.CHOOSE_LOWEST_MIN, cp_model.SELECT_MIN_VALUE)
    status = solver.solve(model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Verdict.FOUND, np.array([solver.value(offset) * part.unit for offset in offsets], dtype=np.int64)
    return Verdict.NONE if status == cp_model.INFEASIBLE else Verdict.UNKNOWN, np.zeros(0, dtype=np.int64)
