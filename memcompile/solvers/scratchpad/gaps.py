"""An order as times between uses: for how long each tensor may wait in the scratchpad, and what it costs if it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from memcompile.solvers.scratchpad.problem import ScratchpadProblem


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two uses of a tensor that follow each other, in steps ``first`` and ``last``.

    To keep the tensor takes its bytes in the steps strictly between; not to keep it, a load before ``last``.
    """

    tensor: int
    first: int
    last: int


def uses_of(problem: ScratchpadProblem, order: Sequence[int]) -> list[list[int]]:
    """Per tensor the steps that touch it, first one first."""
    uses: list[list[int]] = [[] for _ in problem.tensors]
    for step, op in enumerate(order):
        for tensor in problem.touches[op]:
            uses[tensor].append(step)
    return uses


def gaps_of(problem: ScratchpadProblem, order: Sequence[int]) -> list[Gap]:
    """All gaps, by tensor and time."""
    uses = uses_of(problem, order)
    return [Gap(t, a, b) for t, steps in enumerate(uses) for a, b in pairwise(steps)]


def store_bytes(problem: ScratchpadProblem, tensor: int) -> int:
    """What it costs to store a tensor once, beyond what is compulsory: inputs are there, results go there anyway."""
    given = problem.tensors[tensor]
    return 0 if given.is_input or given.is_output else given.size_bytes


def peak_bytes(problem: ScratchpadProblem, order: Sequence[int]) -> int:
    """The smallest scratchpad in which ``order`` moves compulsory bytes alone, but for places: tensors lie there from their
    first use to their last one."""
    change = [0] * (len(order) + 1)
    for tensor, steps in enumerate(uses_of(problem, order)):
        if steps:
            change[steps[0]] += problem.tensors[tensor].size_bytes
            change[steps[-1] + 1] -= problem.tensors[tensor].size_bytes
    live = peak = 0
    for each in change:
        live += each
        peak = max(peak, live)
    return peak
