"""A plan for a scratchpad, as the report has it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from memcompile.errors import ScratchpadError
from memcompile.scratchpad.figure import (
    ScratchpadLevel,
    ScratchpadReport,
    ScratchpadStay,
    ScratchpadStep,
    ScratchpadTransfer,
)
from memcompile.scratchpad.memories import Memories
from memcompile.solvers.scratchpad.problem import LevelPlan, ScratchpadProblem, ScratchpadSolution, ScratchpadTooSmallError
from memcompile.solvers.scratchpad.replacement import replace
from memcompile.solvers.scratchpad.search import plan_scratchpad
from memcompile.solvers.scratchpad.validate import validate
from memcompile.units import format_bytes

if TYPE_CHECKING:
    from torch import fx


def planned_graph(
    graph: fx.Graph, weights: Collection[fx.Node], memories: Memories, bytes_per_element: int | None
) -> ScratchpadReport:
    """A captured inference graph. ``weights``: placeholders that are parameters or buffers. Raises ``ScratchpadError``."""
    from memcompile.scratchpad.network import problem_of

    return planned(problem_of(graph, weights, bytes_per_element), memories, bytes_per_element or 0)


def planned(problem: ScratchpadProblem, memories: Memories, bytes_per_element: int = 0) -> ScratchpadReport:
    """A network of plain data, planned and checked. Raises ``ScratchpadError`` where an operator or a tensor does not fit."""
    try:
        solution = plan_scratchpad(problem, memories.levels)
    except ScratchpadTooSmallError as error:
        needed = f"it needs {error.needed_bytes} bytes ({format_bytes(error.needed_bytes)})"
        raise ScratchpadError(
            f"{error.op} does not fit in {format_bytes(error.size_bytes)}: {needed}",
            f"Give {error.needed_bytes} bytes or more, count in smaller elements (bytes_per_element), or plan a smaller input.",
        ) from None
    validate(problem, solution)
    size = memories.levels[0].size_bytes
    assert size is not None
    return _report(problem, solution, size, bytes_per_element)


def _report(
    problem: ScratchpadProblem, solution: ScratchpadSolution, size_bytes: int, bytes_per_element: int
) -> ScratchpadReport:
    return ScratchpadReport(
        size_bytes=size_bytes,
        needed_bytes=problem.needed_bytes,
        compulsory_bytes=solution.compulsory_bytes,
        moved_bytes=solution.moved_bytes,
        given_bytes=replace(problem, range(len(problem.ops)), size_bytes).moved_bytes,
        order_bound_bytes=solution.order_bound_bytes,
        bound_bytes=solution.bound_bytes,
        status=solution.status,
        method=solution.method,
        seconds=solution.solve_seconds,
        weight_bytes=problem.weight_bytes,
        bytes_per_element=bytes_per_element,
        steps=_steps(problem, solution),
        levels=tuple(_level(problem, level) for level in solution.levels),
    )


def _steps(problem: ScratchpadProblem, solution: ScratchpadSolution) -> tuple[ScratchpadStep, ...]:
    change = [0] * (len(solution.order) + 1)
    for stay in solution.levels[0].stays:
        change[stay.begin] += problem.tensors[stay.tensor].size_bytes
        change[stay.end] -= problem.tensors[stay.tensor].size_bytes
    live, found = 0, []
    for step, op in enumerate(solution.order):
        live += change[step]
        found.append(ScratchpadStep(problem.ops[op].name, live, problem.ops[op].source))
    return tuple(found)


def _level(problem: ScratchpadProblem, plan: LevelPlan) -> ScratchpadLevel:
    given = problem.tensors
    return ScratchpadLevel(
        name=plan.level.name,
        size_bytes=plan.level.size_bytes or 0,
        height_bytes=plan.height_bytes,
        moved_bytes=plan.moved_bytes,
        compulsory_bytes=plan.compulsory_bytes,
        bound_bytes=plan.bound_bytes,
        seconds=plan.seconds,
        stays=tuple(
            ScratchpadStay(given[s.tensor].name, given[s.tensor].size_bytes, s.begin, s.end, s.offset, s.loaded, s.stored)
            for s in plan.stays
        ),
        transfers=tuple(
            ScratchpadTransfer(t.step, given[t.tensor].name, t.kind, t.size_bytes, t.compulsory) for t in plan.transfers
        ),
    )
