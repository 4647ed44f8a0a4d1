"""A network in front of a small fast memory, and how it runs there: plain data.

An operator runs when all that it reads and writes lies in the fast memory, the *scratchpad*. Whatever does not fit waits in the
large memory behind it. Bytes that any plan moves are *compulsory*: an input is loaded once, a result is stored once. All others
are the plan's: a tensor that has to make room is stored, once however often it goes, and loaded again before its next use.
Activations only: weights are streamed past the scratchpad (``ScratchpadProblem.weight_bytes`` says how many bytes that is).

After Li, Gupta and Malik, "Combined scheduling, memory allocation and tensor replacement for minimizing off-chip data accesses
of DNN accelerators" (COSMA, 2023). Nothing here knows torch. Sizes and offsets are bytes; a *step* is a place in the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Status = Literal["optimal", "optimal for the order", "bounded"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """``is_input``: lies in the large memory from the start. ``is_output``: has to lie there at the end."""

    name: str
    size_bytes: int
    is_input: bool = False
    is_output: bool = False


@dataclass(frozen=True, slots=True)
class ScratchpadOp:
    """``reads``, ``writes``: tensors by index, without repeats; every tensor that is no input is written by one operator.

    ``source``: the user's line, "model.py:61".
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """A memory. ``size_bytes``: None where there is always room. ``bytes_per_second``: between it and the next faster one, 0
    where that is not known."""

    name: str
    size_bytes: int | None
    bytes_per_second: float = 0.0


class ProblemError(ValueError):
    """A network that cannot be run, or whose data contradict each other; the message names the operator or tensor."""


class ScratchpadTooSmallError(ValueError):
    """An operator alone does not fit. ``needed_bytes``: the smallest size at which every operator does."""

    def __init__(self, op: str, needed_bytes: int, size_bytes: int) -> None:
        self.op, self.needed_bytes, self.size_bytes = op, needed_bytes, size_bytes
        super().__init__(f"{op} reads and writes {needed_bytes} bytes, and the scratchpad has {size_bytes}")


HOME = Level("large memory", None)
"""Behind a scratchpad of which nothing else is known."""


@dataclass(frozen=True)
class ScratchpadProblem:
    """Operators in an order in which they can run: each reads inputs and what earlier ones write."""

    ops: tuple[ScratchpadOp, ...]
    tensors: tuple[Tensor, ...]
    weight_bytes: int = 0

    @cached_property
    def touches(self) -> tuple[tuple[int, ...], ...]:
        """Per operator the tensors that lie in the scratchpad while it runs."""
        return tuple(tuple(dict.fromkeys((*op.reads, *op.writes))) for op in self.ops)

    @cached_property
    def makers(self) -> tuple[int, ...]:
        """Per tensor the operator that writes it, -1 for inputs."""
        makers = [-1] * len(self.tensors)
        for index, op in enumerate(self.ops):
            for tensor in op.writes:
                makers[tensor] = index
        return tuple(makers)

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """Per operator those that it reads from."""
        makers = self.makers
        return tuple(tuple(sorted({makers[t] for t in op.reads if makers[t] >= 0})) for op in self.ops)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """Per operator those that read from it."""
        found: list[list[int]] = [[] for _ in self.ops]
        for index, sources in enumerate(self.sources):
            for source in sources:
                found[source].append(index)
        return tuple(map(tuple, found))

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Per operator all that run before it in any order, as bits."""
        masks: list[int] = []
        for sources in self.sources:
            mask = 0
            for source in sources:
                mask |= masks[source] | 1 << source
            masks.append(mask)
        return tuple(masks)

    @cached_property
    def working_bytes(self) -> tuple[int, ...]:
        """Per operator the bytes of what it reads and writes."""
        return tuple(sum(self.tensors[t].size_bytes for t in touched) for touched in self.touches)

    @property
    def needed_bytes(self) -> int:
        """The smallest scratchpad in which every operator fits (M_R of the paper)."""
        return max(self.working_bytes, default=0)

    @cached_property
    def compulsory_bytes(self) -> int:
        """Bytes that move in any plan: inputs that are read, and results that are written."""
        read = {tensor for op in self.ops for tensor in op.reads}
        loads = sum(self.tensors[t].size_bytes for t in read if self.tensors[t].is_input)
        return loads + sum(t.size_bytes for t in self.tensors if t.is_output and not t.is_input)

    def allows(self, order: Sequence[int]) -> bool:
        """Whether ``order`` has every operator once, each after those that it reads from."""
        place = {op: step for step, op in enumerate(order)}
        if len(order) != len(self.ops) or len(place) != len(order) or not all(0 <= op < len(self.ops) for op in order):
            return False
        return all(place[source] < place[op] for op, sources in enumerate(self.sources) for source in sources)


def check(problem: ScratchpadProblem) -> None:
    """Raise ``ProblemError`` for what cannot be run."""
    written: set[int] = set()
    for op in problem.ops:
        for tensor in (*op.reads, *op.writes):
            if not 0 <= tensor < len(problem.tensors):
                raise ProblemError(f"{op.name}: there is no tensor {tensor}")
        for tensor in op.reads:
            if tensor not in written and not problem.tensors[tensor].is_input:
                raise ProblemError(f"{op.name} reads {problem.tensors[tensor].name}, which no earlier operator writes")
        for tensor in op.writes:
            if tensor in written or problem.tensors[tensor].is_input:
                raise ProblemError(f"{op.name} writes {problem.tensors[tensor].name}, which is there already")
            written.add(tensor)
    for index, given in enumerate(problem.tensors):
        if given.size_bytes < 0:
            raise ProblemError(f"{given.name}: {given.size_bytes} bytes")
        if index not in written and not given.is_input:
            raise ProblemError(f"{given.name}: no input, and no operator writes it")


@dataclass(frozen=True, slots=True)
class Stay:
    """A tensor lies at ``offset`` in steps ``[begin, end)``.

    ``loaded``: it comes from the large memory before step ``begin``; else that step writes it. ``stored``: it goes to the large
    memory once it is written, before step ``end``, because it is a result or will be loaded again.
    """

    tensor: int
    begin: int
    end: int
    offset: int
    loaded: bool
    stored: bool


@dataclass(frozen=True, slots=True)
class LevelTransfer:
    """``size_bytes`` between the scratchpad and the large memory, before step ``step`` ("load") or after it ("store").

    ``compulsory``: any plan moves them.
    """

    step: int
    tensor: int
    kind: Literal["load", "store"]
    size_bytes: int
    compulsory: bool


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """What lies in one memory, and what moves between it and the one behind it.

    ``stays`` are in steps of the order for the scratchpad, in transfers of the level before for the others. ``seconds``: of all
    transfers at the bandwidth of the memory behind, 0 where that is not known. ``bound_bytes``: no plan of the same order moves
    fewer non-compulsory bytes.
    """

    level: Level
    stays: tuple[Stay, ...]
    transfers: tuple[LevelTransfer, ...]
    moved_bytes: int
    compulsory_bytes: int
    bound_bytes: int
    height_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ScratchpadSolution:
    """How a network runs. ``levels[0]``: the scratchpad; the others, if there are any, the memories behind it but the last.

    ``moved_bytes``: non-compulsory bytes between the scratchpad and what is behind it. ``order_bound_bytes``: no plan in this
    order moves fewer; ``bound_bytes``: no plan in any order does. ``method``: who found the order.
    """

    order: tuple[int, ...]
    levels: tuple[LevelPlan, ...]
    compulsory_bytes: int
    moved_bytes: int
    order_bound_bytes: int
    bound_bytes: int
    method: str
    solve_seconds: float

    @property
    def status(self) -> Status:
        """ "optimal": no order and no replacement moves fewer bytes."""
        if self.moved_bytes <= self.bound_bytes:
            return "optimal"
        return "optimal for the order" if self.moved_bytes <= self.order_bound_bytes else "bounded"

    @property
    def gap(self) -> float:
        """The share of the moved bytes that is not proven to be needed."""
        return 1 - self.bound_bytes / self.moved_bytes if self.moved_bytes else 0.0
