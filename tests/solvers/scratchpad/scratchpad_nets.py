"""Small networks for the scratchpad planner, and the same answers by trying everything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import strategies as st

from memcompile.solvers.scratchpad.problem import ScratchpadOp, ScratchpadProblem, Tensor


@st.composite
def problems(draw: st.DrawFn, ops: int = 6, size: int = 6) -> ScratchpadProblem:
    """A network of up to ``ops`` operators: each reads one or two tensors that are there, and writes one or two."""
    tensors = [Tensor("x", draw(st.integers(1, size)), is_input=True)]
    found: list[ScratchpadOp] = []
    for index in range(draw(st.integers(1, ops))):
        reads = draw(st.lists(st.integers(0, len(tensors) - 1), min_size=1, max_size=2, unique=True))
        writes = range(len(tensors), len(tensors) + draw(st.sampled_from([1, 1, 1, 2])))
        for number in writes:
            tensors.append(Tensor(f"t{number}", draw(st.integers(0, size)), is_output=draw(st.integers(0, 5)) == 0))
        found.append(ScratchpadOp(f"op{index}", tuple(reads), tuple(writes)))
    return ScratchpadProblem(tuple(found), tuple(tensors))


def orders(problem: ScratchpadProblem) -> Iterator[tuple[int, ...]]:
    """All that are allowed."""
    for order in itertools.permutations(range(len(problem.ops))):
        if problem.allows(order):
            yield order


def fewest_bytes(problem: ScratchpadProblem, order: Sequence[int], size_bytes: int) -> int:
    """Non-compulsory bytes of an order: every way to evict, step by step. Shares no code with the solvers."""
    last = {tensor: step for step, op in enumerate(order) for tensor in problem.touches[op]}
    size = [tensor.size_bytes for tensor in problem.tensors]
    states: dict[tuple[frozenset[int], frozenset[int]], int] = {(frozenset(), frozenset()): 0}
    for step, op in enumerate(order):
        touched = frozenset(problem.touches[op])
        following: dict[tuple[frozenset[int], frozenset[int]], int] = {}
        for (inside, seen), moved in states.items():
            others = sorted(inside - touched)
            for count in range(len(others) + 1):
                for kept in itertools.combinations(others, count):
                    present = touched | set(kept)
                    if sum(size[t] for t in present) > size_bytes:
                        continue
                    cost = moved
                    for tensor in set(others) - set(kept):
                        given = problem.tensors[tensor]
                        cost += size[tensor]  # it is read again: what is not is gone
                        cost += 0 if given.is_input or given.is_output or tensor in seen else size[tensor]
                    stored = seen | (set(others) - set(kept))
                    key = frozenset(t for t in present if last[t] > step), frozenset(stored)
                    following[key] = min(following.get(key, cost), cost)
        states = following
    return min(states.values())


def chain_with_skips() -> ScratchpadProblem:
    """Two blocks with a residual each, then one whose branches can run in either order."""
    tensors = [Tensor("x", 4, is_input=True)]
    ops: list[ScratchpadOp] = []

    def add(name: str, size: int, *reads: int, is_output: bool = False) -> int:
        tensors.append(Tensor(name, size, is_output=is_output))
        ops.append(ScratchpadOp(name, reads, (len(tensors) - 1,)))
        return len(tensors) - 1

    at = add("stem", 8, 0)
    for block in range(2):
        inner = add(f"wide{block}", 12, at)
        at = add(f"sum{block}", 8, add(f"narrow{block}", 8, inner), at)
    left = add("left_out", 2, add("left", 10, at))
    right = add("right_out", 2, add("right", 6, at))
    add("end", 4, left, right, is_output=True)
    return ScratchpadProblem(tuple(ops), tuple(tensors))
