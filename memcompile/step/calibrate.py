"""Model against lowered code, operation by operation.

The planner's model frees a storage right after its last reader; a fused kernel holds all its inputs until it ends, and a
reused buffer lives a little longer. Where the lowered code holds more than the model says, the difference becomes the
operation's workspace: the next plan knows it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from memcompile.solvers.schedule.problem import RematSchedule
from memcompile.solvers.schedule.simulate import Replay, simulate
from memcompile.step.facts import Facts
from memcompile.step.trace import GraphTrace, StepPeak, TracedBuffer

Names = Mapping[tuple[str, str], int]
"""(half, FX node name) -> position in a schedule."""


NEAR = 0.7
"""Moments of the lowered code below this share of the budget are not compared with the model."""


def base_names(facts: Facts) -> dict[tuple[str, str], int]:
    """Positions of the unplanned backward's nodes: its schedule runs every op once, in order.

    The forward is left out: what a plan drops changes what is held around each of its ops.
    """
    return {
        (op.half, node.name): position
        for position, op in enumerate(facts.ops)
        if op.half == "backward"
        for node in (*op.roots, *(target for target, _ in op.storages))
    }


def calibrated(
    facts: Facts, schedule: RematSchedule, names: Names, traces: Mapping[str, GraphTrace], peak: StepPeak, budget_bytes: int
) -> Facts:
    """Facts whose ops carry the bytes that the lowered code holds above the model.

    ``names``: which position of ``schedule`` a lowered node belongs to. Only what comes near the budget counts: elsewhere the
    difference cannot matter. An op that may run in several places counts only where it breaks the budget, since what is held
    around it differs from place to place.
    """
    live = simulate(facts.problem, schedule).live_bytes
    extra: dict[int, int] = {}
    for position, exact_bytes in _exact(names, traces, peak).items():
        missing = exact_bytes - int(live[position])
        op = schedule.sequence[position]
        near = budget_bytes if facts.problem.ops[op].recomputable and op < facts.problem.boundary else NEAR * budget_bytes
        if missing > 0 and exact_bytes > near:
            extra[op] = max(extra.get(op, 0), missing)
    return _with_workspaces(facts, extra)


def fused(facts: Facts, schedule: RematSchedule, budget_bytes: int) -> Facts:
    """Facts whose forward ops carry what the loop that they run in holds beside them, where that breaks the budget.

    Ops of one lowered loop that a schedule runs in a row will be fused again: all that they read and write is alive together.
    """
    live = simulate(facts.problem, schedule).live_bytes
    extra: dict[int, int] = {}
    for first, last, held_bytes in _held(facts, schedule, _loops(facts)):
        for position in range(first, last + 1):
            if held_bytes > max(budget_bytes, int(live[position])):
                op = schedule.sequence[position]
                extra[op] = max(extra.get(op, 0), held_bytes - int(live[position]))
    return _with_workspaces(facts, extra)


def crowded(facts: Facts, schedule: RematSchedule, budget_bytes: int) -> frozenset[int]:
    """Positions in a schedule whose loops must share no C++ function: all that it reads and writes would break the budget."""
    functions = [(op.half, op.loops and op.loops[0]) for op in facts.ops]
    runs = _held(facts, schedule, functions)
    return frozenset(i for first, last, held_bytes in runs if held_bytes > budget_bytes for i in range(first, last + 1))


def _held(facts: Facts, schedule: RematSchedule, kernels: Sequence[tuple[str, object]]) -> Iterator[tuple[int, int, int]]:
    """First and last position of the executions in a row that belong to one kernel, and the bytes that it holds at once."""
    runs = _runs(schedule, kernels)
    firsts, lasts = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    held = Replay(facts.problem).held(schedule, firsts, lasts)
    return zip(firsts.tolist(), lasts.tolist(), held.tolist(), strict=True)


def fused_runs(facts: Facts, schedule: RematSchedule) -> list[tuple[int, int]]:
    """First and last position of the executions in a row that run in one loop."""
    return _runs(schedule, _loops(facts))


def _loops(facts: Facts) -> list[tuple[str, object]]:
    return [(op.half, op.loops) for op in facts.ops]


def _runs(schedule: RematSchedule, kernels: Sequence[tuple[str, object]]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for kernel, group in itertools.groupby(range(len(schedule.sequence)), key=lambda i: kernels[schedule.sequence[i]]):
        positions = list(group)
        if kernel[1] is not None and len(positions) > 1:
            runs.append((positions[0], positions[-1]))
    return runs


def _with_workspaces(facts: Facts, extra: Mapping[int, int]) -> Facts:
    if not extra:
        return facts
    ops = tuple(
        dataclasses.replace(op, workspace_bytes=op.workspace_bytes + extra[index]) if index in extra else op
        for index, op in enumerate(facts.problem.ops)
    )
    return dataclasses.replace(facts, problem=dataclasses.replace(facts.problem, ops=ops))


def _exact(names: Names, traces: Mapping[str, GraphTrace], peak: StepPeak) -> dict[int, int]:
    """Position -> most bytes alive in the lowered code while the op's kernel runs.

    Left out: what the lowered code does before its turn (a zero fill for a gradient that is scattered much later, fused into
    the first kernel). What is alive there says nothing about the op.
    """
    found: dict[int, int] = {}
    earliest = max(names.values(), default=0)
    for kernel in reversed(list(_kernels(names, traces, peak))):
        for position, live_bytes in kernel.items():
            if position <= earliest:
                found[position] = max(found.get(position, 0), live_bytes)
        earliest = min(earliest, *kernel)
    return found


def _kernels(names: Names, traces: Mapping[str, GraphTrace], peak: StepPeak) -> Iterator[dict[int, int]]:
    """Per kernel of the lowered code: position of each op in it -> most bytes alive from the op's first buffer on.

    A kernel that Inductor made of ops under a new name (a product and the addition after it) belongs to the position after the
    last one, where no other kernel does.
    """
    free = set(names.values()) - {_position(b, half, names) for half, t in traces.items() for b in t.buffers.values()}
    running: dict[int, int] = {}
    last: int | None = None
    for moment in peak.timeline:
        trace = traces.get(moment.where) or traces.get("inference")
        buffer = trace.buffers.get(moment.name) if trace is not None else None
        if buffer is not None and not moment.is_kernel:
            position = _position(buffer, moment.where, names)
            if position is None and last is not None and last + 1 in free:
                position = last + 1
            if position is not None:
                running.setdefault(position, 0)
        running = {position: max(live_bytes, moment.live_bytes) for position, live_bytes in running.items()}
        if moment.is_kernel and running:
            last = max(running)
            yield running
            running = {}


def _position(buffer: TracedBuffer, half: str, names: Names) -> int | None:
    return next((names[half, name] for name in buffer.origins if (half, name) in names), None)
