"""What a stage runs, what is left after it, and what has to be there while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from memcompile.solvers.tiling.problem import Stage, TilingProblem


class StageError(ValueError):
    """A stage that cannot run tile by tile; the message names the operator."""


def last_readers(problem: TilingProblem) -> list[int]:
    """For every operator the last one that reads it: the number of operators for outputs, its own index if nobody does."""
    last = list(range(len(problem.operators)))
    for index, operator in enumerate(problem.operators):
        for read in operator.reads:
            last[read.source] = index
    for output in problem.outputs:
        last[output] = len(problem.operators)
    return last


def members(problem: TilingProblem, stage: Stage) -> tuple[int, ...]:
    """Operators that the stage runs, in order: each of ``again`` just before the first that reads it."""
    again, order, placed = set(stage.again), list[int](), set[int]()

    def place(index: int) -> None:
        for source in sorted({read.source for read in problem.operators[index].reads} & again):
            if source not in placed:
                place(source)
        placed.add(index)
        order.append(index)

    for index in range(stage.first, stage.last):
        if problem.operators[index].kind != "input":
            place(index)
    return tuple(order)


def results(problem: TilingProblem, stage: Stage) -> tuple[int, ...]:
    """Operators of the stage that are read after it, or returned by the network."""
    kept = {output for output in problem.outputs if stage.first <= output < stage.last} | set(stage.kept)
    for operator in problem.operators[stage.last :]:
        kept.update(read.source for read in operator.reads if stage.first <= read.source < stage.last)
    kept.difference_update(stage.dropped)
    return tuple(sorted(index for index in kept if problem.operators[index].kind != "input"))


def sources(problem: TilingProblem, stage: Stage) -> tuple[int, ...]:
    """Operators from outside, inputs included, that those of the stage read."""
    inside = set(members(problem, stage))
    return tuple(sorted({read.source for index in inside for read in problem.operators[index].reads} - inside))


def needed_after(problem: TilingProblem, stages: Sequence[Stage]) -> list[frozenset[int]]:
    """For every stage the operators before it, held inputs included, whose whole results are read after it or returned."""
    needed = {output for output in problem.outputs if counts(problem, output)}
    spans: list[frozenset[int]] = []
    for stage in reversed(stages):
        needed -= {index for index in range(stage.first, stage.last) if problem.operators[index].kind != "input"}
        spans.append(frozenset(needed))
        needed.update(index for index in sources(problem, stage) if counts(problem, index))
    return spans[::-1]


def needed_in_order(problem: TilingProblem, stage: Stage) -> frozenset[int]:
    """The same for a stage among others that make nothing again."""
    later = (read.source for operator in problem.operators[stage.last :] for read in operator.reads)
    needed = {index for index in (*later, *problem.outputs) if counts(problem, index)}
    return frozenset(i for i in needed if i < stage.first or problem.operators[i].kind == "input")


def counts(problem: TilingProblem, index: int) -> bool:
    """Whether the whole result takes bytes while it is alive: not so for inputs that are not held."""
    operator = problem.operators[index]
    return operator.kind != "input" or operator.held


def check_tiled(problem: TilingProblem, stage: Stage) -> None:
    """Raise StageError where a tile cannot make an operator of the stage alone."""
    inside = set(members(problem, stage))
    for index in sorted(inside):
        operator = problem.operators[index]
        if operator.kind == "whole":
            raise StageError(f"{operator.name} is only made at once")
        for read in operator.reads:
            if read.source in inside and problem.operators[read.source].kind == "reduction":
                raise StageError(f"{operator.name} reads {problem.operators[read.source].name}, complete after all tiles only")
