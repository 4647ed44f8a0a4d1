"""A schedule under a cap of bytes, greedily: evict what is cheapest to remake per byte and needed furthest away.

Dynamic tensor rematerialization (Kirisame et al., 2021, section 4.1, their score h) with the future known: the next use
replaces staleness. It finds plans for tight budgets where the models of ``frontier`` see too few instants; it promises no
optimality.
"""

from __future__ import annotations

import random

import numpy as np

from memcompile.solvers import work
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import RematSchedule

EXECUTION_S = 2e-6


class CapExceededError(Exception):
    """The greedy decoder found no way to run an op within the cap."""


def decode_capped(
    index: RematIndex, cap: int, *, max_executions: int, distance_power: float = 0.5, order: int = 0
) -> RematSchedule:
    """A schedule whose executions each hold at most ``cap`` bytes (up to in-place reuse); CapExceededError when none is found.

    ``distance_power``: how much the distance of the next use counts against the price of a remake. ``order``: which
    missing read of an op is made first: 0 the first, 1 the one that needs the most room beside itself (Sethi and Ullman, 1970),
    from 2 on any, with noise on the scores (a seed).
    """
    from memcompile.solvers.schedule.evicting import NEVER, State, decoded  # numba loads slowly

    count, steps = len(index.sizes), index.steps
    noise = random.Random(order)
    weight = np.array([4.0 ** noise.uniform(-1, 1) if order > 1 else 1.0 for _ in range(count)])
    state = State(
        now=np.zeros(1, dtype=np.int64),
        used=np.array([index.problem.base_bytes], dtype=np.int64),
        resident=np.zeros(count, dtype=np.int64),
        wanted=np.full(count, NEVER, dtype=np.int64),
        pins=np.zeros(count, dtype=np.int64),
        weight=weight,
        visited=np.zeros(len(steps.seconds), dtype=np.int64),
        look=np.zeros(1, dtype=np.int64),
        ancestors=np.empty(len(steps.reads) + 1, dtype=np.int64),
    )
    sequence, split, complete = decoded(steps, state, index.problem.boundary, cap, max_executions, float(distance_power), order)
    work.spend(EXECUTION_S * len(sequence))
    if not complete:
        raise CapExceededError
    return RematSchedule(tuple(sequence.tolist()), split)
