"""A small 0-1 model and the engines that solve it through OR-tools: CP-SAT (small models) and SCIP (large ones).

Every engine runs on one thread with a fixed seed. CP-SAT is limited by deterministic time, so that its answers repeat; SCIP by
its processor time. What they do counts as work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from memcompile.solvers import work

Engine = Literal["cp-sat", "scip"]
Outcome = Literal["optimal", "feasible", "infeasible", "unknown"]

BUILD_S = 2e-5
"""Seconds that a variable takes, with its share of clauses and rows, to be written down and presolved."""
ITERATION_S = 1e-4
"""Seconds of an iteration of SCIP's simplex."""
SLOW = 10.0
"""How many times slower than usual, and how many seconds longer, CP-SAT may be before the clock ends its search."""


@dataclass(slots=True)
class Model:
    """Minimise ``cost . x`` over 0 and 1, with clauses (some literal holds) and rows (sum <= bound)."""

    cost: list[int] = field(default_factory=list)
    clauses: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    rows: list[tuple[list[int], list[int], int]] = field(default_factory=list)

    def add(self, cost: int = 0) -> int:
        """A new variable."""
        self.cost.append(cost)
        return len(self.cost) - 1

    def clause(self, positive: tuple[int, ...], negative: tuple[int, ...] = ()) -> None:
        """At least one of ``positive`` is 1 or one of ``negative`` is 0."""
        self.clauses.append((positive, negative))

    def at_most(self, variables: list[int], coefficients: list[int], bound: int) -> None:
        """``coefficients . variables <= bound``."""
        self.rows.append((variables, coefficients, bound))

    def fix(self, variable: int) -> None:
        """Force it to be 1."""
        self.at_most([variable], [-1], -1)


@dataclass(frozen=True, slots=True)
class Answer:
    """Values (empty when there are none) and a proven lower bound of the objective."""

    outcome: Outcome
    values: tuple[int, ...]
    objective: float
    bound: float


def solve_model(model: Model, engine: Engine, *, time_limit_s: float, gap: int, hint: dict[int, int], seed: int) -> Answer:
    """Solve to within ``gap`` of the optimum, or until the limit."""
    if time_limit_s <= 0:
        return Answer("unknown", (), 0.0, 0.0)
    if engine == "cp-sat":
        return _cp_sat(model, time_limit_s, gap, hint, seed)
    return _scip(model, time_limit_s, gap)


def _cp_sat(model: Model, time_limit_s: float, gap: int, hint: dict[int, int], seed: int) -> Answer:
    cp = cp_model.CpModel()
    variables = [cp.new_bool_var("") for _ in model.cost]
    for positive, negative in model.clauses:
        cp.add_bool_or([variables[v] for v in positive] + [~variables[v] for v in negative])
    for row, coefficients, bound in model.rows:
        cp.add(cp_model.LinearExpr.weighted_sum([variables[v] for v in row], coefficients) <= bound)
    cp.minimize(cp_model.LinearExpr.weighted_sum(variables, model.cost))
    for v, value in hint.items():
        cp.add_hint(variables[v], value)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_deterministic_time = time_limit_s
    solver.parameters.max_time_in_seconds = SLOW * time_limit_s + SLOW
    solver.parameters.absolute_gap_limit = float(gap)
    status = solver.solve(cp)
    work.spend(solver.response_proto.deterministic_time + BUILD_S * len(variables))
    if status == cp_model.INFEASIBLE:
        return Answer("infeasible", (), 0.0, 0.0)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer("unknown", (), 0.0, max(0.0, solver.best_objective_bound))
    values = tuple(int(solver.value(v)) for v in variables)
    outcome: Outcome = "optimal" if status == cp_model.OPTIMAL else "feasible"
    return Answer(outcome, values, solver.objective_value, max(0.0, solver.best_objective_bound))


def _scip(model: Model, time_limit_s: float, gap: int) -> Answer:
    solver = pywraplp.Solver.CreateSolver("SCIP")
    infinity = solver.infinity()
    variables = [solver.IntVar(0, 1, "") for _ in model.cost]
    for positive, negative in model.clauses:
        row = solver.Constraint(1 - len(negative), infinity)
        for v in positive:
            row.SetCoefficient(variables[v], 1)
        for v in negative:
            row.SetCoefficient(variables[v], -1)
    for names, coefficients, bound in model.rows:
        scale = 1.0 / max(1, max((abs(c) for c in coefficients), default=1))
        row = solver.Constraint(-infinity, bound * scale)
        for v, coefficient in zip(names, coefficients, strict=True):
            row.SetCoefficient(variables[v], coefficient * scale)
    objective = solver.Objective()
    unit = max(1, max(model.cost, default=1))
    for variable, cost in zip(variables, model.cost, strict=True):
        if cost:
            objective.SetCoefficient(variable, cost / unit)
    objective.SetMinimization()
    solver.SetTimeLimit(int(time_limit_s * 1000))
    parameters = pywraplp.MPSolverParameters()
    parameters.SetDoubleParam(parameters.RELATIVE_MIP_GAP, 1e-3)
    solver.SetSolverSpecificParametersAsString(f"limits/absgap = {gap / unit:.9f}\ntiming/clocktype = 1\n")
    status = solver.Solve(parameters)
    work.spend(min(time_limit_s, ITERATION_S * solver.iterations()) + BUILD_S * len(variables))
    if status == pywraplp.Solver.INFEASIBLE:
        return Answer("infeasible", (), 0.0, 0.0)
    bound = max(0.0, objective.BestBound() * unit)
    if status not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
        return Answer("unknown", (), 0.0, 0.0)
    values = tuple(round(variable.solution_value()) for variable in variables)
    done: Outcome = "optimal" if status == pywraplp.Solver.OPTIMAL else "feasible"
    return Answer(done, values, objective.Value() * unit, min(bound, objective.Value() * unit))
