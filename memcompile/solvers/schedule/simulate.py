"""Exact replay of a schedule: the only source of planned peaks; and the independent checker of schedules.

An execution holds the base bytes, the instances alive before it, its writes and its workspace. An instance dies after its last
read before the storage is written again; never read, it dies with the execution that wrote it. The first instance of an output
lives to the end. A write of an ``inplace`` op takes the place of a read of the same size that dies there; each dying read
serves one write. What is moved away takes nothing from its execution ``gone`` up to its execution ``back``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcompile.solvers import work
from memcompile.solvers.schedule.check_moves import check_moves
from memcompile.solvers.schedule.problem import Move, RematProblem, RematSchedule

Ints = NDArray[np.int64]

RUN_S, EXECUTION_S = 1e-4, 1e-6
"""Seconds of work of a replay, and of each execution in it."""


def alive(begins: Ints, ends: Ints, sizes: Ints, count: int) -> Ints:
    """Sum of the sizes alive at each of the moments 0 .. count - 1; i is alive in ``[begins[i], ends[i])``."""
    change = np.zeros(count + 1, dtype=np.int64)
    np.add.at(change, begins, sizes)
    np.add.at(change, ends, -sizes)
    return np.cumsum(change)[:count]


def absent(moves: tuple[Move, ...], count: int) -> Ints:
    """Bytes that are moved away during each of ``count`` executions."""
    gone = np.array([move.gone for move in moves], dtype=np.int64)
    back = np.array([move.back for move in moves], dtype=np.int64)
    return alive(gone, back, np.array([move.size_bytes for move in moves], dtype=np.int64), count)


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a schedule does: ``live_bytes[i]`` during execution i, and the storages written before the split, read after it."""

    peak_bytes: int
    live_bytes: Ints
    extra_seconds: float
    saved: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instances:
    """Every instance of every storage in a replay: execution ``start`` writes it, execution ``end`` is the last that needs it.

    Sorted by storage, then by start. ``read_instance`` and ``read_position`` list all reads in execution order.
    """

    storage: Ints
    start: Ints
    end: Ints
    read_instance: Ints
    read_position: Ints


@dataclass(frozen=True, slots=True)
class Ragged:
    """A list of lists of integers, flattened."""

    start: Ints
    count: Ints
    item: Ints

    @classmethod
    def of(cls, lists: list[list[int]]) -> Ragged:
        count = np.array([len(row) for row in lists], dtype=np.int64)
        item = np.array([x for row in lists for x in row], dtype=np.int64)
        return cls(np.cumsum(count) - count, count, item)

    def take(self, rows: Ints) -> tuple[Ints, Ints]:
        """The positions in ``rows`` and the places in ``item`` of every entry of the rows named, in order."""
        count = self.count[rows]
        position = np.repeat(np.arange(len(rows), dtype=np.int64), count)
        first = np.repeat(self.start[rows] - (np.cumsum(count) - count), count)
        return position, first + np.arange(len(position), dtype=np.int64)


class Replay:
    """The arrays of one problem, so that many schedules of it replay fast (vectorised, O(total reads log))."""

    def __init__(self, problem: RematProblem) -> None:
        self.problem = problem
        self.size = np.array([s.size_bytes for s in problem.storages], dtype=np.int64)
        self.output = np.array([s.is_output for s in problem.storages], dtype=bool)
        self.workspace = np.array([op.workspace_bytes for op in problem.ops], dtype=np.int64)
        self.seconds = np.array([op.seconds for op in problem.ops], dtype=np.float64)
        self.end_bytes = problem.base_bytes + int(self.size[self.output].sum())
        self.base_seconds = float(self.seconds.sum())
        reads = [list(dict.fromkeys(op.reads)) for op in problem.ops]
        writes = [list(dict.fromkeys(op.writes)) for op in problem.ops]
        self.reads, self.writes = Ragged.of(reads), Ragged.of(writes)
        self._index_inplace(reads, writes)

    def with_workspace(self, p: int, workspace_bytes: int) -> Replay:
        """The same, but for what op p works in."""
        changed = copy.copy(self)
        changed.problem = self.problem.with_workspace(p, workspace_bytes)
        changed.workspace = self.workspace.copy()
        changed.workspace[p] = workspace_bytes
        return changed

    def _index_inplace(self, reads: list[list[int]], writes: list[list[int]]) -> None:
        """Per inplace op, one cell per distinct size it writes; per read, the cell of its size (-1: none)."""
        sizes = self.size.tolist()
        cells: list[list[int]] = []
        cell_size: list[int] = []
        cell_writes: list[int] = []
        read_cell: list[int] = []
        for p, op in enumerate(self.problem.ops):
            written = [sizes[s] for s in writes[p]] if op.inplace else []
            distinct = list(dict.fromkeys(written))
            cells.append(list(range(len(cell_size), len(cell_size) + len(distinct))))
            cell_size += distinct
            cell_writes += [written.count(size) for size in distinct]
            place = {size: i for i, size in enumerate(distinct)}
            read_cell += [place.get(sizes[s], -1) for s in reads[p]]
        self.cells = Ragged.of(cells)
        self.cell_size = np.array(cell_size, dtype=np.int64)
        self.cell_writes = np.array(cell_writes, dtype=np.int64)
        self.read_cell = np.array(read_cell, dtype=np.int64)

    def instances(self, sequence: Ints) -> Instances:
        """Find all instances; raise ValueError when a read finds none."""
        return self._instances(sequence)[0]

    def _instances(self, sequence: Ints) -> tuple[Instances, Ints]:
        n = len(sequence)
        write_position, place = self.writes.take(sequence)
        write_storage = self.writes.item[place]
        read_position, read_place = self.reads.take(sequence)
        read_storage = self.reads.item[read_place]
        key = np.sort(write_storage * n + write_position)
        storage, start = np.divmod(key, max(n, 1))
        found = np.searchsorted(key, read_storage * n + read_position) - 1
        bad = (found < 0) | (storage[found] != read_storage) if len(key) else np.ones(len(found), dtype=bool)
        if bad.any():
            i = int(np.argmax(bad))
            name = self.problem.storages[int(read_storage[i])].name
            raise ValueError(f"execution {int(read_position[i])} reads {name}, which was not written before")
        end = start.copy()
        end[found] = read_position  # reads come in execution order: the last one stays
        first = np.ones(len(storage), dtype=bool)
        first[1:] = storage[1:] != storage[:-1]
        end[first & self.output[storage]] = n  # never freed
        return Instances(storage, start, end, found, read_position), read_place

    def run(self, schedule: RematSchedule) -> Timeline:
        """Replay a schedule."""
        sequence = np.array(schedule.sequence, dtype=np.int64)
        n = len(sequence)
        work.spend(RUN_S + EXECUTION_S * n)
        alive, read_place = self._instances(sequence)
        size = self.size[alive.storage].astype(np.float64)
        delta = np.bincount(alive.start, weights=size, minlength=n + 2)
        delta -= np.bincount(alive.end + 1, weights=size, minlength=n + 2)
        live = np.cumsum(delta)[:n].astype(np.int64) + self.workspace[sequence] + self.problem.base_bytes
        live -= self._reused(sequence, alive, read_place)
        live -= absent(schedule.moves, n)
        saved = np.unique(alive.storage[alive.read_instance[self._crossing(alive, schedule.split)]])
        return Timeline(
            peak_bytes=max(int(live.max()) if n else self.problem.base_bytes, self.end_bytes if schedule.moves else 0),
            live_bytes=live,
            extra_seconds=self.extra_seconds(schedule),
            saved=tuple(int(s) for s in saved),
        )

    def held(self, schedule: RematSchedule, first: Ints, last: Ints) -> Ints:
        """Per pair of positions, the bytes that the executions from the one to the other hold when they are one kernel."""
        sequence = np.array(schedule.sequence, dtype=np.int64)
        n = len(sequence)
        alive, read_place = self._instances(sequence)
        size = self.size[alive.storage].astype(np.float64)
        started = np.cumsum(np.bincount(alive.start, weights=size, minlength=n))
        ended = np.cumsum(np.bincount(alive.end + 1, weights=size, minlength=n + 2))
        reused = np.concatenate([[0], np.cumsum(self._reused(sequence, alive, read_place))])
        bytes_: Ints = (started[last] - ended[first]).astype(np.int64) - (reused[last + 1] - reused[first])
        for move in schedule.moves:
            bytes_ -= move.size_bytes * ((first >= move.gone) & (last < move.back))
        return bytes_ + self.problem.base_bytes

    def extra_seconds(self, schedule: RematSchedule) -> float:
        """Seconds of a schedule above the base order."""
        return float(self.seconds[np.array(schedule.sequence, dtype=np.int64)].sum()) - self.base_seconds

    @staticmethod
    def _crossing(alive: Instances, split: int) -> NDArray[np.bool_]:
        crossing: NDArray[np.bool_] = (alive.read_position >= split) & (alive.start[alive.read_instance] < split)
        return crossing

    def _reused(self, sequence: Ints, alive: Instances, read_place: Ints) -> Ints:
        """Bytes of writes that take the place of dying reads, per execution."""
        n = len(sequence)
        position, cell = self.cells.take(sequence)
        if not len(cell):
            return np.zeros(n, dtype=np.int64)
        read_cell = self.read_cell[read_place]
        dying = (alive.end[alive.read_instance] == alive.read_position) & (read_cell >= 0)
        count = self.cells.count[sequence]
        first = np.cumsum(count) - count
        dead = np.bincount(first[alive.read_position[dying]] + read_cell[dying], minlength=len(cell))
        bytes_ = np.minimum(dead, self.cell_writes[cell]) * self.cell_size[cell]
        return np.bincount(position, weights=bytes_.astype(np.float64), minlength=n).astype(np.int64)


def simulate(problem: RematProblem, schedule: RematSchedule) -> Timeline:
    """Replay a schedule once; use ``Replay`` to replay many of one problem."""
    return Replay(problem).run(schedule)


def validate(problem: RematProblem, schedule: RematSchedule) -> None:
    """Check every rule of ``RematSchedule``; raise ValueError that names the execution, the op and the rule."""
    ops, sequence, split = problem.ops, schedule.sequence, schedule.split
    if not 0 <= split <= len(sequence):
        raise ValueError(f"split {split} is outside the sequence of {len(sequence)} executions")
    runs = [0] * len(ops)
    written: dict[int, int] = {}
    last_forward = last_backward = -1
    for position, p in enumerate(sequence):
        if not 0 <= p < len(ops):
            raise ValueError(f"execution {position}: there is no op {p}")
        op = ops[p]
        where = f"execution {position}, op {p} ({op.name})"
        if runs[p]:
            if not op.recomputable:
                raise ValueError(f"{where}: runs again, but it is not recomputable")
            if any(problem.storages[s].is_output for s in op.writes):
                raise ValueError(f"{where}: creates an output a second time")
        elif p >= problem.boundary:
            if position < split:
                raise ValueError(f"{where}: a backward op before the split at {split}")
            if p < last_backward:
                raise ValueError(f"{where}: first runs after op {last_backward}, against the base order")
            last_backward = p
        elif position < split:
            if p < last_forward:
                raise ValueError(f"{where}: first runs after op {last_forward}, against the base order")
            last_forward = p
        else:
            raise ValueError(f"{where}: first runs after the split at {split}")
        runs[p] += 1
        for s in op.reads:
            if s not in written:
                raise ValueError(f"{where}: reads storage {s} ({problem.storages[s].name}), which has not been written")
        for s in op.writes:
            written[s] = position
    for p, count in enumerate(runs):
        if not count:
            raise ValueError(f"op {p} ({ops[p].name}) never runs")
    check_moves(problem, schedule)
