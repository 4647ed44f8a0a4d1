"""Replays a plan step by step and counts again what moves. Shares no code with the solvers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from memcompile.solvers.scratchpad.problem import LevelPlan, ScratchpadProblem, ScratchpadSolution, Stay


class InvalidPlanError(ValueError):
    """A plan that cannot be run, or that counts wrongly; the message names the step and the tensor."""


def validate(problem: ScratchpadProblem, solution: ScratchpadSolution) -> int:
    """The non-compulsory bytes of a plan, counted again. Raises ``InvalidPlanError``.

    Each operator finds what it touches in place, nothing overlaps, a load comes after a store unless the tensor is an input,
    results are stored, and every stored, loaded and transferred byte is accounted for.
    """
    _check_order(problem, solution.order)
    level = solution.levels[0]
    _check_places(problem, level)
    moved = _replay(problem, solution.order, level.stays)
    _check_transfers(problem, level, moved)
    if solution.moved_bytes != moved or level.moved_bytes != moved:
        raise InvalidPlanError(f"{moved} bytes move, the plan says {solution.moved_bytes} and {level.moved_bytes}")
    if not solution.bound_bytes <= solution.order_bound_bytes <= moved:
        raise InvalidPlanError(f"bounds {solution.bound_bytes} and {solution.order_bound_bytes} do not lie below {moved}")
    return moved


def _check_order(problem: ScratchpadProblem, order: Sequence[int]) -> None:
    written: set[int] = set()
    for step, index in enumerate(order):
        if not 0 <= index < len(problem.ops):
            raise InvalidPlanError(f"step {step}: there is no operator {index}")
        op = problem.ops[index]
        for tensor in op.reads:
            if tensor not in written and not problem.tensors[tensor].is_input:
                raise InvalidPlanError(f"step {step}: {op.name} reads {problem.tensors[tensor].name} before it is written")
        written.update(op.writes)
    if sorted(order) != list(range(len(problem.ops))):
        raise InvalidPlanError("the order does not have every operator once")


def _check_places(problem: ScratchpadProblem, level: LevelPlan) -> None:
    """Offsets inside the memory, and no two tensors in one place at one time."""
    moments: dict[int, list[Stay]] = {}
    for stay in level.stays:
        size = problem.tensors[stay.tensor].size_bytes
        name = problem.tensors[stay.tensor].name
        if stay.begin >= stay.end:
            raise InvalidPlanError(f"{name}: a stay from step {stay.begin} to {stay.end}")
        if stay.offset < 0 or (level.level.size_bytes is not None and stay.offset + size > level.level.size_bytes):
            raise InvalidPlanError(f"{name}: {size} bytes at {stay.offset} of {level.level.size_bytes}")
        for step in range(stay.begin, stay.end):
            moments.setdefault(step, []).append(stay)
    for step, present in moments.items():
        ends, last = 0, ""
        for stay in sorted(present, key=lambda stay: stay.offset):
            given = problem.tensors[stay.tensor]
            if given.size_bytes and stay.offset < ends:
                raise InvalidPlanError(f"step {step}: {given.name} and {last} overlap")
            if given.size_bytes:
                ends, last = stay.offset + given.size_bytes, given.name


def _replay(problem: ScratchpadProblem, order: Sequence[int], stays: Sequence[Stay]) -> int:
    """What moves beyond what is compulsory, from the stays alone."""
    starts: dict[int, list[Stay]] = {}
    for stay in stays:
        starts.setdefault(stay.begin, []).append(stay)
    outside = {t for t, given in enumerate(problem.tensors) if given.is_input}
    inside: dict[int, Stay] = {}
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    for step, index in enumerate(order):
        op = problem.ops[index]
        inside = {tensor: stay for tensor, stay in inside.items() if stay.end > step}
        for stay in starts.get(step, ()):
            name = problem.tensors[stay.tensor].name
            if stay.tensor in inside:
                raise InvalidPlanError(f"step {step}: {name} is there twice")
            if stay.loaded and stay.tensor not in outside:
                raise InvalidPlanError(f"step {step}: {name} is loaded, but was never stored")
            if not stay.loaded and stay.tensor not in op.writes:
                raise InvalidPlanError(f"step {step}: {name} appears, but {op.name} does not write it")
            if stay.loaded and stay.tensor in op.writes:
                raise InvalidPlanError(f"step {step}: {name} is loaded before it is written")
            loads[stay.tensor] += stay.loaded
            inside[stay.tensor] = stay
        for tensor in (*op.reads, *op.writes):
            if tensor not in inside:
                raise InvalidPlanError(f"step {step}: {op.name} does not find {problem.tensors[tensor].name}")
        for stay in starts.get(step, ()):
            if stay.stored:
                stores[stay.tensor] += 1
                outside.add(stay.tensor)
    for tensor, given in enumerate(problem.tensors):
        if given.is_output and tensor not in outside:
            raise InvalidPlanError(f"{given.name} is a result, and is not stored at the end")
    free_loads = {t for t, given in enumerate(problem.tensors) if given.is_input}
    free_stores = {t for t, given in enumerate(problem.tensors) if given.is_output}
    moved = sum(problem.tensors[t].size_bytes * (count - (t in free_loads)) for t, count in loads.items() if count)
    return moved + sum(problem.tensors[t].size_bytes * (count - (t in free_stores)) for t, count in stores.items() if count)


def _check_transfers(problem: ScratchpadProblem, level: LevelPlan, moved: int) -> None:
    """The list of transfers says the same as the stays."""
    expected: Counter[tuple[int, int, str]] = Counter()
    for stay in level.stays:
        if stay.loaded:
            expected[stay.begin, stay.tensor, "load"] += 1
        if stay.stored:
            expected[stay.begin, stay.tensor, "store"] += 1
    listed = Counter((each.step, each.tensor, str(each.kind)) for each in level.transfers)
    if listed != expected:
        step, tensor, kind = next(iter((listed - expected) or (expected - listed)))
        raise InvalidPlanError(f"step {step}: the {kind} of {problem.tensors[tensor].name} is listed or done, not both")
    beyond = sum(each.size_bytes for each in level.transfers if not each.compulsory)
    for each in level.transfers:
        if each.size_bytes != problem.tensors[each.tensor].size_bytes:
            raise InvalidPlanError(f"step {each.step}: {each.size_bytes} bytes of {problem.tensors[each.tensor].name} move")
    if beyond != moved:
        raise InvalidPlanError(f"{moved} non-compulsory bytes move, the transfers say {beyond}")
