"""Parts of a network that can be planned one after the other.

At a *neck* all that came before has run, nothing that follows has, and what both sides touch has just been written: whatever
runs before it, it is the same state. So orders and replacements on both sides do not depend on each other, and the optimum is
the sum of those of the parts. Blocks with a residual around them end at necks.

A *window* of an order is the same by decree: what lies in the scratchpad at both ends stays as it is in a plan at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memcompile.solvers.scratchpad.gaps import Gap
from memcompile.solvers.scratchpad.problem import ScratchpadOp, ScratchpadProblem, Tensor


@dataclass(frozen=True)
class OrderSection:
    """Some operators of a network as a problem. ``ops[i]``: which operator of the network operator i is, -1 for those that
    stand for what comes before or behind."""

    problem: ScratchpadProblem
    ops: tuple[int, ...]

    def order(self, sequence: Sequence[int]) -> list[int]:
        """An order of the section as operators of the network."""
        return [self.ops[op] for op in sequence if self.ops[op] >= 0]


def necks(problem: ScratchpadProblem) -> list[int]:
    """Operators in their base order behind which a part ends; the last operator is one."""
    count = len(problem.ops)
    last_use = [-1] * len(problem.tensors)
    for index, touched in enumerate(problem.touches):
        for tensor in touched:
            last_use[tensor] = index
    alive: set[int] = set()
    found: list[int] = []
    least_after = _behind_all(problem)
    for index, touched in enumerate(problem.touches):
        alive |= {t for t in touched if last_use[t] > index}
        alive -= {t for t in touched if last_use[t] <= index}
        is_neck = problem.before[index] == (1 << index) - 1 and least_after[index]
        if index == count - 1 or (is_neck and alive <= set(problem.ops[index].writes)):
            found.append(index)
    return found


def _behind_all(problem: ScratchpadProblem) -> list[bool]:
    """Per operator whether all later ones run behind it in any order."""
    common = -1
    found = [True] * len(problem.ops)
    for index in reversed(range(len(problem.ops))):
        found[index] = bool(common >> index & 1)
        common &= problem.before[index]
    return found


def sections(problem: ScratchpadProblem) -> list[OrderSection]:
    """The parts between necks, in order. Each but the first starts with an operator that writes what the neck before it
    does."""
    found = list[OrderSection]()
    first = 0
    for neck in necks(problem):
        inside = range(first, neck + 1)
        entry = () if first == 0 else problem.ops[first - 1].writes
        used = {t for op in inside for t in problem.touches[op]}
        found.append(_section(problem, inside, [t for t in entry if t in used], []))
        first = neck + 1
    return found


def window(problem: ScratchpadProblem, order: Sequence[int], dropped: frozenset[Gap], first: int, last: int) -> OrderSection:
    """Steps ``[first, last)`` of an order, between what a plan keeps there."""
    entering, leaving = list[int](), list[int]()
    uses: dict[int, list[int]] = {}
    for step, op in enumerate(order):
        for tensor in problem.touches[op]:
            uses.setdefault(tensor, []).append(step)
    changed: dict[int, Tensor] = {}
    for tensor, steps in uses.items():
        given = problem.tensors[tensor]
        before = max((step for step in steps if step < first), default=None)
        inside = [step for step in steps if first <= step < last]
        after = min((step for step in steps if step >= last), default=None)
        if before is not None and (inside or after is not None):
            following = inside[0] if inside else after
            assert following is not None
            is_kept = Gap(tensor, before, following) not in dropped
            stored = any(gap.tensor == tensor and gap.first < first for gap in dropped) or given.is_input or given.is_output
            changed[tensor] = replace(given, is_input=not is_kept, is_output=is_kept and stored)
            entering += [tensor] if is_kept else []
        if after is not None and (inside or tensor in entering):
            previous = inside[-1] if inside else before
            assert previous is not None
            if Gap(tensor, previous, after) not in dropped:
                leaving.append(tensor)
            elif tensor not in changed or not changed[tensor].is_input:
                changed[tensor] = replace(changed.get(tensor, given), is_output=not given.is_input or tensor in changed)
    return _section(problem, [order[step] for step in range(first, last)], entering, leaving, changed)


def _section(
    problem: ScratchpadProblem,
    inside: Sequence[int],
    entering: Sequence[int],
    leaving: Sequence[int],
    changed: dict[int, Tensor] | None = None,
) -> OrderSection:
    """``entering``: there as the section starts. ``leaving``: there as it ends. ``changed``: other tensors in their place."""
    numbers: dict[int, int] = {}
    tensors: list[Tensor] = []
    entry, exit_ = bool(entering), bool(leaving)

    def number(tensor: int) -> int:
        if tensor not in numbers:
            numbers[tensor] = len(tensors)
            given = (changed or {}).get(tensor, problem.tensors[tensor])
            tensors.append(given)
        return numbers[tensor]

    def token(name: str) -> int:
        tensors.append(Tensor(name, 0))
        return len(tensors) - 1

    ops: list[ScratchpadOp] = []
    ids: list[int] = []
    started = token("entry") if entry else -1
    if entry:
        ops.append(ScratchpadOp("entry", (), (*map(number, entering), started)))
        ids.append(-1)
    ended: list[int] = []
    for op in inside:
        given = problem.ops[op]
        reads, writes = tuple(map(number, given.reads)), tuple(map(number, given.writes))
        if entry:
            reads = (*reads, started)
        if exit_:
            ended.append(token("done"))
            writes = (*writes, ended[-1])
        ops.append(ScratchpadOp(given.name, reads, writes))
        ids.append(op)
    if exit_:
        ops.append(ScratchpadOp("exit", (*map(number, leaving), *ended), ()))
        ids.append(-1)
    return OrderSection(ScratchpadProblem(tuple(ops), tuple(tensors)), tuple(ids))
