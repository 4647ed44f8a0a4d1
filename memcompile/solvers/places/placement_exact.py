"""Is there an arrangement of a given height? For instances that resist the greedy placements.

Two searches take turns: a constraint solver, for which lifetimes and address ranges are the sides of rectangles that must not
overlap, and where no offset is fixed the depth-first search of ``placement_search.py``. Both branch as the canonical placement
does: on a buffer that can lie lowest, at its lowest offset. Which of several they take first decides between a millisecond and
an hour, so several orders of importance take turns too, most of them noisy, in slices that grow. Slices are counted in the
searches' own steps: a slow machine gives the same answer as a fast one, if later.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from ortools.sat.python import cp_model

from memcompile.solvers import work
from memcompile.solvers.places.placement import PlacementPart
from memcompile.solvers.schedule.simulate import Ints

SLICES = ("TWA", "TAW", "WAT", "TWA", "", "TWA")
"""Orders that the constraint solver branches by, one a slice, from the fourth on with noise; "": its own search."""
FIRST_SLICE, MORE_SLICE = 0.03, 1.1
"""In the solver's deterministic time, and the factor from slice to slice."""
UNIT_S, BUFFER_S, STEP_S = 20.0, 2e-5, 4e-6
"""Seconds of work of a unit of that time, of writing a buffer down, of a step of the depth-first search."""
ATTEMPTS = (
    *(("TWA", True), ("TAW", True), ("WTA", True), ("ATW", True)),
    *(("TWA", False), ("TAW", False), ("FWA", True), ("FAW", True)),
)
"""Of each round of the depth-first search: orders, and whether to go upwards."""
FIRST_STEPS, MORE_STEPS = 1000, 1.1
NOISE = (0.02, 0.05, 0.1, 0.2, 0.5)

TURNS = (1, 4 * len(ATTEMPTS))
"""Slices of the constraint solver, then attempts of the depth-first search, and so on."""

Floats = npt.NDArray[np.float64]


class Verdict(enum.Enum):
    """What a search says of a height."""

    FOUND = enum.auto()
    NONE = enum.auto()
    UNKNOWN = enum.auto()


_Answers = Iterator[tuple[Verdict, Ints]]


def search_height(
    part: PlacementPart, height: int, time_limit_s: float, seed: int = 0, most_turns: int | None = None
) -> tuple[Verdict, Ints]:
    """An arrangement of at most ``height`` bytes, the proof that there is none, or neither within the time limit.

    ``most_turns``: of the searches, for an answer that does not depend on the machine's speed: the first two take a second.
    """
    deadline = work.now() + time_limit_s
    rng = np.random.default_rng(seed)
    failures = np.ones(int(part.ends.max()))
    constrained = _constrained(part, height, deadline, failures, rng)
    turns = [constrained] if (part.fixed >= 0).any() else [constrained, _deepened(part, height, failures, rng)]
    for turn, (answers, count) in enumerate(itertools.cycle(zip(turns, TURNS, strict=False))):
        if turn == most_turns:
            return Verdict.UNKNOWN, np.zeros(0, dtype=np.int64)
        for verdict, offsets in itertools.islice(answers, count):
            if verdict is not Verdict.UNKNOWN:
                return verdict, offsets
            if work.now() > deadline:
                return Verdict.UNKNOWN, offsets
    raise AssertionError("the turns never end")


def _constrained(part: PlacementPart, height: int, deadline: float, failures: Floats, rng: np.random.Generator) -> _Answers:
    """The constraint solver's answers, a slice each."""
    for turn in itertools.count():
        name = SLICES[turn % len(SLICES)]
        order = _order(part, name, failures, rng, _noise(rng) if turn >= 3 else 0.0) if name else None
        yield _constrain(part, height, order, FIRST_SLICE * MORE_SLICE**turn, deadline)


def _deepened(part: PlacementPart, height: int, failures: Floats, rng: np.random.Generator) -> _Answers:
    """The depth-first search's answers, an attempt each."""
    from memcompile.solvers.places.placement_search import (
        PlacementSearch,  # few instances come here, and numba takes a while to load
    )

    search = PlacementSearch(part, height, failures)
    for turn in itertools.count():
        for name, upwards in ATTEMPTS:
            order = _order(part, name, failures, rng, _noise(rng) if turn else 0.0)
            steps = int(FIRST_STEPS * MORE_STEPS**turn)
            found, offsets = search.attempt(order, upwards, steps)
            work.spend(STEP_S * (steps - search.steps_left))
            yield Verdict.UNKNOWN if found is None else Verdict.FOUND if found else Verdict.NONE, offsets


def _noise(rng: np.random.Generator) -> float:
    return NOISE[rng.integers(len(NOISE))]


def _order(part: PlacementPart, name: str, failures: Floats, rng: np.random.Generator, noise: float) -> Ints:
    """Buffers by importance: T, W and A as in ``placement.py``; F: the most failures of a section during its life."""
    width = part.ends - part.begins
    spans = np.stack([part.begins, part.ends], axis=1).ravel()
    keys: dict[str, Ints | Floats] = {"T": part.crowd, "W": width, "A": width * part.sizes}
    keys["F"] = np.maximum.reduceat(np.append(failures, 0.0), spans)[::2]
    return np.lexsort([-keys[letter] * rng.uniform(1 - noise, 1 + noise, len(width)) for letter in reversed(name)])


def _constrain(part: PlacementPart, height: int, order: Ints | None, slice_: float, deadline: float) -> tuple[Verdict, Ints]:
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
    solver.parameters.max_deterministic_time = min(slice_, max(0.0, deadline - work.now()) / UNIT_S)
    solver.parameters.num_workers = 1
    if order is not None:
        solver.parameters.search_branching = cp_model.FIXED_SEARCH
        chosen = [offsets[i] for i in order.tolist()]
        model.add_decision_strategy(chosen, cp_model.CHOOSE_LOWEST_MIN, cp_model.SELECT_MIN_VALUE)
    status = solver.solve(model)
    work.spend(UNIT_S * solver.response_proto.deterministic_time + BUFFER_S * len(part.sizes))
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Verdict.FOUND, np.array([solver.value(offset) * part.unit for offset in offsets], dtype=np.int64)
    return Verdict.NONE if status == cp_model.INFEASIBLE else Verdict.UNKNOWN, np.zeros(0, dtype=np.int64)
