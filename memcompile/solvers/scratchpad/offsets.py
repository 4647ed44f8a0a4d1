"""Places in the scratchpad for what lies there, and a replacement that leaves room for them where the best one has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace as replace_

from ortools.sat.python import cp_model

from memcompile.solvers.places.packing import Buffer, split
from memcompile.solvers.places.placement import placements
from memcompile.solvers.places.placement_exact import Verdict, search_height
from memcompile.solvers.scratchpad.arrivals import Arrivals
from memcompile.solvers.scratchpad.gaps import Gap, gaps_of, store_bytes, uses_of
from memcompile.solvers.scratchpad.problem import ScratchpadProblem, Stay
from memcompile.solvers.scratchpad.replacement import Replacement, moved_bytes, replace

TURNS = 4
"""Of the two searches for places, where no greedy placement fits: a second or two."""
FOREVER_S = 1e6
JOINT_WORK = 1.0
"""Of the solver for places and replacement together, in its deterministic time."""
REPAIRS = 24
"""Tensors that give way one after the other."""
ATTEMPTS = 4
"""Replacements with more and more of the scratchpad left empty."""


Placed = tuple[Replacement, list[Stay]]
"""A replacement and what lies where."""


def stays_of(problem: ScratchpadProblem, order: Sequence[int], dropped: frozenset[Gap]) -> list[Stay]:
    """What lies in the scratchpad when, by tensor and time; all at offset 0."""
    stays = []
    spilled = {gap.tensor for gap in dropped}
    for tensor, steps in enumerate(uses_of(problem, order)):
        given = problem.tensors[tensor]
        begin = 0
        for index in range(len(steps)):
            last = index == len(steps) - 1
            if last or Gap(tensor, steps[index], steps[index + 1]) in dropped:
                loaded = begin > 0 or given.is_input
                stored = not loaded and (given.is_output or tensor in spilled)
                stays.append(Stay(tensor, steps[begin], steps[index] + 1, 0, loaded, stored))
                begin = index + 1
    return stays


def place(problem: ScratchpadProblem, stays: Sequence[Stay], size_bytes: int, turns: int = TURNS) -> list[Stay] | None:
    """``stays`` with offsets within ``size_bytes``; None where none are found."""
    buffers = [Buffer(str(i), s.begin, s.end, problem.tensors[s.tensor].size_bytes) for i, s in enumerate(stays)]
    offsets = [0] * len(buffers)
    for part in split(buffers):
        fitting = next((found for _, found in placements(part) if part.height(found) <= size_bytes), None)
        if fitting is None:
            verdict, fitting = search_height(part, size_bytes // part.unit * part.unit, FOREVER_S, most_turns=turns)
            if verdict is not Verdict.FOUND:
                return None
        for index, offset in zip(part.indices.tolist(), fitting.tolist(), strict=True):
            offsets[index] = offset
    return [replace_(stay, offset=offset) for stay, offset in zip(stays, offsets, strict=True)]


def placed(problem: ScratchpadProblem, order: Sequence[int], size_bytes: int, best: Replacement) -> Placed:
    """A replacement with places, ``best`` where it has some; always finds one.

    Else the cheapest of: a replacement for a somewhat smaller scratchpad, one that gives up a little more, and places as they
    come. Then a solver chooses replacement and places together, where it finds something cheaper.
    """
    found = place(problem, stays_of(problem, order, best.dropped), size_bytes)
    if found is not None:
        return best, found
    options: list[Placed] = []
    for attempt in range(1, ATTEMPTS + 1):
        smaller = size_bytes - size_bytes * attempt // 32
        if smaller < problem.needed_bytes:
            break
        other = replace(problem, order, smaller)
        found = place(problem, stays_of(problem, order, other.dropped), size_bytes, turns=0)
        if found is not None:
            options.append((Replacement(other.dropped, other.moved_bytes, best.bound_bytes), found))
            break
    repaired = _repaired(problem, order, size_bytes, best)
    options += [] if repaired is None else [repaired]
    options.append(_as_they_come(problem, order, size_bytes, best))
    return _joint(problem, order, size_bytes, best, min(options, key=lambda option: option[0].moved_bytes))


def _repaired(problem: ScratchpadProblem, order: Sequence[int], size_bytes: int, best: Replacement) -> Placed | None:
    """One tensor after the other gives way, the cheapest of those that lie there while another sticks out; None where that does
    not end soon."""
    dropped = set(best.dropped)
    gaps = [gap for gap in gaps_of(problem, order) if problem.tensors[gap.tensor].size_bytes]
    for _ in range(REPAIRS):
        stays = stays_of(problem, order, frozenset(dropped))
        out = _sticking_out(problem, stays, size_bytes)
        if out is None:
            found = place(problem, stays, size_bytes, turns=0)
            assert found is not None
            moves = moved_bytes(problem, frozenset(dropped))
            return Replacement(frozenset(dropped), moves, best.bound_bytes), found
        stored = {gap.tensor for gap in dropped}
        beside = [gap for gap in gaps if gap not in dropped and gap.first < out.end and gap.last >= out.begin]
        if not beside:
            return None

        def price(gap: Gap, stored: set[int] = stored) -> int:
            return problem.tensors[gap.tensor].size_bytes + (0 if gap.tensor in stored else store_bytes(problem, gap.tensor))

        dropped.add(min(beside, key=lambda gap: (price(gap), gap.first - gap.last, gap.tensor)))
    return None


def _sticking_out(problem: ScratchpadProblem, stays: Sequence[Stay], size_bytes: int) -> Stay | None:
    """The first stay that ends above the scratchpad in the lowest of the greedy placements; None where one fits."""
    buffers = [Buffer(str(i), s.begin, s.end, problem.tensors[s.tensor].size_bytes) for i, s in enumerate(stays)]
    first: Stay | None = None
    for part in split(buffers):
        lowest = min((found for _, found in placements(part)), key=part.height)
        above = [int(part.indices[at]) for at in range(len(lowest)) if lowest[at] + part.sizes[at] > size_bytes]
        for index in above:
            if first is None or stays[index].begin < first.begin:
                first = stays[index]
    return first


def _as_they_come(problem: ScratchpadProblem, order: Sequence[int], size_bytes: int, best: Replacement) -> Placed:
    """Places step by step, as an allocator would find them; always finds some."""
    dropped, offsets = Arrivals(problem, order, size_bytes, best.dropped).run()
    stays = [replace_(stay, offset=offsets[stay.tensor, stay.begin]) for stay in stays_of(problem, order, dropped)]
    return Replacement(dropped, moved_bytes(problem, dropped), best.bound_bytes), stays


def _joint(problem: ScratchpadProblem, order: Sequence[int], size_bytes: int, best: Replacement, known: Placed) -> Placed:
    """Something cheaper than ``known`` from a model of replacement and places together, and a bound that counts places too."""
    if known[0].moved_bytes <= best.bound_bytes:
        return known
    model = _Joint(problem, order, size_bytes)
    floor, limit = best.bound_bytes // model.unit, known[0].moved_bytes // model.unit
    model.model.add(model.moved >= floor)
    model.model.add(model.moved < limit)
    for gap, kept in model.keep.items():
        model.model.add_hint(kept, gap not in best.dropped)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = JOINT_WORK
    status = solver.solve(model.model)
    if status == cp_model.INFEASIBLE:
        return Replacement(known[0].dropped, known[0].moved_bytes, known[0].moved_bytes), known[1]
    bound = max(best.bound_bytes, model.unit * math.ceil(solver.best_objective_bound - 1e-6))
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Replacement(known[0].dropped, known[0].moved_bytes, min(bound, known[0].moved_bytes)), known[1]
    dropped = frozenset(gap for gap, kept in model.keep.items() if not solver.value(kept))
    stays = stays_of(problem, order, dropped)
    at = {use: model.unit * solver.value(place) for use, place in model.at.items()}
    stays = [replace_(stay, offset=at.get((stay.tensor, stay.begin), 0)) for stay in stays]
    moves = moved_bytes(problem, dropped)
    return Replacement(dropped, moves, min(bound, moves)), stays


class _Joint:
    """A rectangle for each use of a tensor, one for each gap in which it is kept, and none overlap; in ``unit`` bytes."""

    def __init__(self, problem: ScratchpadProblem, order: Sequence[int], size_bytes: int) -> None:
        self.sizes = [tensor.size_bytes for tensor in problem.tensors]
        self.unit = math.gcd(*(size for size in self.sizes if size))
        self.model = cp_model.CpModel()
        self.spans: list[cp_model.IntervalVar] = []
        self.ranges: list[cp_model.IntervalVar] = []
        self.at: dict[tuple[int, int], cp_model.IntVar] = {}
        self.keep: dict[Gap, cp_model.IntVar] = {}
        for tensor, steps in enumerate(uses_of(problem, order)):
            for step in steps if self.sizes[tensor] else ():
                place = self.model.new_int_var(0, (size_bytes - self.sizes[tensor]) // self.unit, "")
                self.at[tensor, step] = place
                self.spans.append(self.model.new_fixed_size_interval_var(step, 1, ""))
                self.ranges.append(self.model.new_fixed_size_interval_var(place, self.sizes[tensor] // self.unit, ""))
        for gap in gaps_of(problem, order):
            if self.sizes[gap.tensor]:
                self._add(gap)
        self.model.add_no_overlap_2d(self.spans, self.ranges)
        self.moved = self._cost(problem)
        self.model.minimize(self.moved)

    def _add(self, gap: Gap) -> None:
        self.keep[gap] = kept = self.model.new_bool_var("")
        start = self.at[gap.tensor, gap.first]
        self.model.add(start == self.at[gap.tensor, gap.last]).only_enforce_if(kept)
        if gap.last > gap.first + 1:
            size = self.sizes[gap.tensor] // self.unit
            length = gap.last - gap.first - 1
            self.spans.append(self.model.new_optional_fixed_size_interval_var(gap.first + 1, length, kept, ""))
            self.ranges.append(self.model.new_optional_fixed_size_interval_var(start, size, kept, ""))

    def _cost(self, problem: ScratchpadProblem) -> cp_model.LinearExprT:
        """Bytes moved, in units."""
        stored = {gap.tensor: self.model.new_bool_var("") for gap in self.keep if store_bytes(problem, gap.tensor)}
        for gap, kept in self.keep.items():
            if gap.tensor in stored:
                self.model.add_bool_or(kept, stored[gap.tensor])
        loads = [self.sizes[gap.tensor] // self.unit * (1 - kept) for gap, kept in self.keep.items()]
        return sum(loads) + sum(self.sizes[tensor] // self.unit * each for tensor, each in stored.items())
