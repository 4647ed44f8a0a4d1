"""Places as tensors arrive, for the rare replacement that no arrangement is found for: it costs more, but it always ends."""

from __future__ import annotations

from collections.abc import Sequence

from memcompile.solvers.scratchpad.gaps import Gap, gaps_of, uses_of
from memcompile.solvers.scratchpad.problem import ScratchpadProblem


class Arrivals:
    """Each tensor goes into the smallest gap that holds it. Where there is none, the largest of those that are not needed now
    leave, and at last the operands themselves, which then lie side by side.

    ``wished``: gaps in which a tensor is not kept anyway.
    """

    def __init__(self, problem: ScratchpadProblem, order: Sequence[int], size_bytes: int, wished: frozenset[Gap]) -> None:
        self.problem, self.order, self.size, self.wished = problem, order, size_bytes, wished
        self.sizes = [tensor.size_bytes for tensor in problem.tensors]
        self.final = [steps[-1] if steps else -1 for steps in uses_of(problem, order)]
        self.following = {(gap.tensor, gap.first): gap for gap in gaps_of(problem, order)}
        self.at: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.dropped: set[Gap] = set()

    def run(self) -> tuple[frozenset[Gap], dict[tuple[int, int], int]]:
        """The gaps in which tensors are not kept, and the offset of each tensor in each step that touches it."""
        offsets: dict[tuple[int, int], int] = {}
        for step, op in enumerate(self.order):
            touched = self.problem.touches[op]
            missing = sorted(set(touched) - self.at.keys(), key=lambda t: (-self.sizes[t], t))
            if not all(self._put(tensor, touched) for tensor in missing):
                self._side_by_side(touched, missing)
            for tensor in touched:
                offsets[tensor, step] = self.at[tensor]
                self.last[tensor] = step
                if step == self.final[tensor]:
                    del self.at[tensor]
                elif self.following[tensor, step] in self.wished:
                    self._leave(tensor)
        return frozenset(self.dropped), offsets

    def _put(self, tensor: int, touched: Sequence[int]) -> bool:
        while (offset := self._gap(self.sizes[tensor])) is None:
            others = self.at.keys() - set(touched)
            if not others:
                return False
            self._leave(max(others, key=lambda t: (self.sizes[t], t)))
        self.at[tensor] = offset
        return True

    def _side_by_side(self, touched: Sequence[int], missing: Sequence[int]) -> None:
        for tensor in touched:
            if tensor not in missing:
                self._leave(tensor)
        end = 0
        for tensor in touched:
            self.at[tensor] = end
            end += self.sizes[tensor]

    def _leave(self, tensor: int) -> None:
        self.dropped.add(self.following[tensor, self.last[tensor]])
        del self.at[tensor]

    def _gap(self, size: int) -> int | None:
        """The start of the smallest gap of at least ``size`` bytes."""
        best: tuple[int, int] | None = None
        end = 0
        taken = sorted((offset, offset + self.sizes[tensor]) for tensor, offset in self.at.items())
        for start, stop in [*taken, (self.size, self.size)]:
            if start - end >= size and (best is None or start - end < best[0]):
                best = start - end, end
            end = max(end, stop)
        return None if best is None else best[1]
