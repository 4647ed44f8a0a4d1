"""When results of a problem die, and what is alive at its cuts. A cut is the number of operators before it."""

from __future__ import annotations

import numpy as np

from memcompile.solvers.tiling.memory import operator_macs
from memcompile.solvers.tiling.problem import Reach, TilingProblem
from memcompile.solvers.tiling.stages import last_readers


class ResultLives:
    """``last``: of each operator the last reader, or the number of operators for outputs. ``alive_bytes``: at each cut, whole
    results made before it and read after it. ``layerwise_bytes``, ``macs``: of each operator when it runs whole."""

    def __init__(self, problem: TilingProblem) -> None:
        self.problem = problem
        self.last = last_readers(problem)
        self.readers: list[list[int]] = [[] for _ in problem.operators]
        for index, operator in enumerate(problem.operators):
            for source in sorted({read.source for read in operator.reads}):
                self.readers[source].append(index)
        self.alive_bytes = self._alive()
        self.layerwise_bytes = [self._layerwise(index) for index in range(len(problem.operators))]
        self.macs = [operator_macs(problem, i) if x.kind != "input" else 0 for i, x in enumerate(problem.operators)]

    def last_before(self, index: int, cut: int) -> int | None:
        """The last reader before a cut."""
        return next((reader for reader in reversed(self.readers[index]) if reader < cut), None)

    def folded(self, index: int) -> bool:
        """Whether an operator changes the only result of the one before it, pixel by pixel, and may do so in its place."""
        operator = self.problem.operators[index]
        for position in operator.in_place:
            read = operator.reads[position]
            alone = read.source == index - 1 and self.readers[index - 1] == [index] and self.last[index - 1] == index
            if alone and is_identity(read.rows) and is_identity(read.columns):
                return self.problem.operators[index - 1].kind != "input"
        return False

    def _alive(self) -> list[int]:
        total = np.zeros(len(self.problem.operators) + 2, dtype=np.int64)
        for index, operator in enumerate(self.problem.operators):
            is_input = operator.kind == "input"
            if self.last[index] > index and (operator.held or not is_input):
                total[0 if is_input else index + 1] += operator.size_bytes
                total[self.last[index] + 1] -= operator.size_bytes
        return [int(x) for x in np.cumsum(total)[:-1]]

    def _layerwise(self, index: int) -> int:
        operator = self.problem.operators[index]
        if operator.kind == "input":
            return self.alive_bytes[index]
        for position in operator.in_place:
            source = operator.reads[position].source
            over = self.problem.operators[source]
            if self.last[source] == index and over.kind != "input" and over.size_bytes >= operator.size_bytes:
                return self.alive_bytes[index]
        return self.alive_bytes[index] + operator.size_bytes


def is_identity(reach: Reach | None) -> bool:
    """Whether every index reads itself alone."""
    if reach is None:
        return False
    own = np.arange(len(reach))
    return bool((reach[:, 0] == own).all() and (reach[:, 1] == own + 1).all())
