"""COSMA's integer program as it stands: order, replacement and places in one model with a variable for each tensor and step.

Written from the paper's description (Li et al. 2023), in OR-tools. Per operator and step: it runs there. Per tensor and step:
it is created, preserved from the step before, or retrieved; and it is spilled. It lies at one offset as long as it is
preserved, and two tensors that are there at the same time lie one above the other. What is left out is what no order allows:
operators and tensors outside of the steps between the earliest and the latest that their dependences leave.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import combinations

from ortools.sat.python import cp_model

from memcompile.solvers.scratchpad.gaps import store_bytes
from memcompile.solvers.scratchpad.problem import ScratchpadProblem


@dataclass(frozen=True)
class Answer:
    """``moved_bytes``: of the best solution, None without one. ``status``: "optimal", "timeout", or "too large" without a
    run."""

    status: str
    moved_bytes: int | None
    bound_bytes: int
    variables: int
    seconds: float


def solve(problem: ScratchpadProblem, size_bytes: int, time_limit_s: float, most_variables: int = 2_000_000) -> Answer:
    """The fewest non-compulsory bytes. ``most_variables``: models above it are not built."""
    began = time.perf_counter()
    program = _Program(problem, size_bytes)
    estimate = program.estimate()
    if estimate > most_variables:
        return Answer("too large", None, 0, estimate, 0.0)
    program.build()
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = max(0.1, time_limit_s - (time.perf_counter() - began))
    status = solver.solve(program.model)
    seconds = time.perf_counter() - began
    bound = program.unit * max(0, math.ceil(solver.best_objective_bound - 1e-6))
    count = len(program.model.proto.variables)
    if status == cp_model.OPTIMAL:
        return Answer("optimal", int(solver.objective_value) * program.unit, bound, count, seconds)
    if status == cp_model.FEASIBLE:
        return Answer("timeout", int(solver.objective_value) * program.unit, bound, count, seconds)
    return Answer("timeout", None, bound, count, seconds)


class _Program:
    def __init__(self, problem: ScratchpadProblem, size_bytes: int) -> None:
        self.problem = problem
        self.sizes = [tensor.size_bytes for tensor in problem.tensors]
        self.unit = math.gcd(*(size for size in self.sizes if size))
        self.room = size_bytes // self.unit
        self.model = cp_model.CpModel()
        count = len(problem.ops)
        earliest = [mask.bit_count() for mask in problem.before]
        after = [0] * count
        for mask in problem.before:
            for op in range(count):
                after[op] += mask >> op & 1
        self.steps = [range(earliest[op], count - after[op]) for op in range(count)]
        self.spans = [self._span(tensor) for tensor in range(len(problem.tensors))]

    def _span(self, tensor: int) -> range:
        """The steps in which a tensor can be of use."""
        touching = [op for op, touched in enumerate(self.problem.touches) if tensor in touched]
        return range(min(self.steps[op].start for op in touching), max(self.steps[op].stop for op in touching))

    def estimate(self) -> int:
        """How many variables the model will have."""
        pairs = 0
        for step in range(len(self.problem.ops)):
            there = sum(step in span for span in self.spans)
            pairs += there * (there - 1) // 2
        return pairs + 5 * sum(map(len, self.spans)) + sum(map(len, self.steps))

    def build(self) -> None:
        """All equations."""
        model, problem = self.model, self.problem
        self.runs = {(op, t): model.new_bool_var("") for op, steps in enumerate(self.steps) for t in steps}
        for op, steps in enumerate(self.steps):
            model.add_exactly_one(self.runs[op, t] for t in steps)
        for t in range(len(problem.ops)):
            model.add_exactly_one(self.runs[op, t] for op, steps in enumerate(self.steps) if t in steps)
        self.there: dict[tuple[int, int], cp_model.IntVar] = {}
        self.offset: dict[tuple[int, int], cp_model.IntVar] = {}
        cost = [term for tensor in range(len(problem.tensors)) for term in self._replace(tensor)]
        for op, touched in enumerate(problem.touches):
            for t in self.steps[op]:
                for tensor in touched:
                    model.add_implication(self.runs[op, t], self.there[tensor, t])
        for t in range(len(problem.ops)):
            self._step(t)
        model.minimize(sum(cost))

    def _replace(self, tensor: int) -> list[cp_model.LinearExprT]:
        """A tensor's own equations; returns what it costs."""
        model, given, span = self.model, self.problem.tensors[tensor], self.spans[tensor]
        maker, size = self.problem.makers[tensor], self.sizes[tensor] // self.unit
        retrieved, spilled = list[cp_model.IntVar](), list[cp_model.IntVar]()
        for t in span:
            self.there[tensor, t] = there = model.new_bool_var("")
            self.offset[tensor, t] = model.new_int_var(0, self.room - size, "")
            ways = [self.runs[maker, t]] if (maker, t) in self.runs else []
            if (tensor, t - 1) in self.there:
                preserved = model.new_bool_var("")
                model.add_implication(preserved, self.there[tensor, t - 1])
                model.add(self.offset[tensor, t] == self.offset[tensor, t - 1]).only_enforce_if(preserved)
                ways.append(preserved)
            load = model.new_bool_var("")
            if not given.is_input:
                model.add_bool_or([load.negated(), *spilled])  # only what was spilled earlier can be retrieved
            model.add(sum([*ways, load]) == there)
            retrieved.append(load)
            spill = model.new_bool_var("")
            model.add_implication(spill, there)
            spilled.append(spill)
        stores = size * sum(spilled) if store_bytes(self.problem, tensor) else 0
        loads = size * sum(retrieved) - (size if given.is_input else 0)
        if given.is_output and not given.is_input:
            model.add_bool_or(spilled)
        return [stores, loads]

    def _step(self, t: int) -> None:
        """The scratchpad in one step: the sum of sizes, and no two tensors in one place."""
        model = self.model
        present = [tensor for tensor, span in enumerate(self.spans) if t in span and self.sizes[tensor]]
        model.add(sum(self.sizes[e] // self.unit * self.there[e, t] for e in present) <= self.room)
        for a, b in combinations(present, 2):
            below = model.new_bool_var("")
            both = [self.there[a, t], self.there[b, t]]
            first, second = self.offset[a, t], self.offset[b, t]
            model.add(first + self.sizes[a] // self.unit <= second).only_enforce_if([*both, below])
            model.add(second + self.sizes[b] // self.unit <= first).only_enforce_if([*both, below.negated()])
