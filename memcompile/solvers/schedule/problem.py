"""The rematerialization problem and its solution, as plain data.

A *problem* is a step (forward, then backward) as a list of operations in their base order. Every operation reads some
storages and creates others. A *schedule* is a sequence of operation indices: the base order with operations inserted again
wherever a storage that was dropped is needed once more. A storage may be made again any number of times.

Nothing here knows torch. Sizes are bytes, durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Status = Literal["optimal", "bounded", "heuristic"]


@dataclass(frozen=True, slots=True)
class Storage:
    """One block of memory: views of it are already collapsed into it.

    ``is_output``: a user output or a gradient. It lives from its (only) creation to the end of the schedule.
    """

    name: str
    size_bytes: int
    is_output: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """One operation (a kernel or a fused group) that reads storages and creates others.

    ``reads`` and ``writes`` are storage indices. Every storage is written by exactly one op; storages that exist before the
    step (parameters, batch) are not storages of the problem, they are part of ``RematProblem.base_bytes``.
    ``seconds``: time of one execution. ``workspace_bytes``: memory alive only while the op runs.
    ``recomputable``: False for ops with side effects, random state or communication: they run exactly once.
    ``inplace``: a write may take the place of a read of the same size that dies at this op (pointwise kernels).
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    seconds: float
    workspace_bytes: int = 0
    recomputable: bool = True
    inplace: bool = False


@dataclass(frozen=True, slots=True)
class RematProblem:
    """``ops[:boundary]`` is the forward, ``ops[boundary:]`` the backward (empty for an inference graph)."""

    storages: tuple[Storage, ...]
    ops: tuple[Op, ...]
    boundary: int
    base_bytes: int = 0

    @property
    def total_seconds(self) -> float:
        """Time of the base order, each op once."""
        return sum(op.seconds for op in self.ops)

    def with_workspace(self, p: int, workspace_bytes: int) -> RematProblem:
        """The same, but for what op p works in."""
        ops = list(self.ops)
        ops[p] = replace(ops[p], workspace_bytes=workspace_bytes)
        return replace(self, ops=tuple(ops))


@dataclass(frozen=True, slots=True)
class Move:
    """An instance of ``storage`` leaves fast memory for a while. Positions are those of a schedule's executions.

    It is copied to the tier after execution ``out``, by when all its readers so far are through; its memory is free from
    execution ``gone`` on, taken again from execution ``back`` on, and holds it again before execution ``need``, which for an
    output may be one behind the last: it is there as the step ends. ``link``: which of the tiers. ``copied``: an earlier move
    of the same instance left a copy there, nothing is written.
    """

    storage: int
    size_bytes: int
    out: int
    gone: int
    back: int
    need: int
    link: int = 0
    copied: bool = False


@dataclass(frozen=True, slots=True)
class RematSchedule:
    """Op indices in execution order; ``split`` is the position where the backward starts. ``moves``: what leaves for a while.

    A valid schedule contains every forward op before ``split`` in base order, every backward op after it in base order,
    further executions only of recomputable ops, and every read finds an instance that is alive. An execution reads the latest
    instance of each storage.
    """

    sequence: tuple[int, ...]
    split: int
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, slots=True)
class RematSolution:
    """A schedule with its certificate.

    ``extra_seconds``: time above the base order. ``lower_bound_seconds``: no schedule within the budget costs less extra
    time than this. ``status``: "optimal" (equal to the bound within the solver's tolerance), "bounded" (feasible, with a
    bound), "heuristic" (feasible, the bound is trivial).
    """

    schedule: RematSchedule
    peak_bytes: int
    extra_seconds: float
    lower_bound_seconds: float
    status: Status
    method: str
    solve_seconds: float


class InfeasibleError(Exception):
    """No schedule within the budget was found.

    ``floor``: the schedule with the smallest peak that is known. ``lower_bound_bytes``: no schedule of this problem has a
    smaller peak than this.
    """

    def __init__(self, budget_bytes: int, floor: RematSolution, lower_bound_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.floor = floor
        self.lower_bound_bytes = lower_bound_bytes
        super().__init__(
            f"budget of {budget_bytes} bytes is below the smallest peak found, {floor.peak_bytes} bytes "
            f"(proven lower bound {lower_bound_bytes} bytes)"
        )
