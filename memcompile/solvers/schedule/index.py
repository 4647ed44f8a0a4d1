"""Facts of a problem that every solver needs, derived once: who writes, who reads, what may run again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcompile.solvers.schedule.problem import RematProblem
from memcompile.solvers.schedule.simulate import Ints


class Steps(NamedTuple):
    """An index as arrays. Lists of lists are flat: those of i are ``reads[reads_start[i] : reads_start[i + 1]]``.

    ``footprint[p]``: bytes of all that op p reads, writes and works in.
    """

    sizes: Ints
    producer: Ints
    output: NDArray[np.bool_]
    readers_start: Ints
    readers: Ints
    reads_start: Ints
    reads: Ints
    writes_start: Ints
    writes: Ints
    seconds: NDArray[np.float64]
    workspace: Ints
    again: NDArray[np.bool_]
    inplace: NDArray[np.bool_]
    footprint: Ints


@dataclass(frozen=True)
class RematIndex:
    """A problem with its inverse maps.

    ``producer[s]``: the op that writes storage s. ``readers[s]``: the ops that read it, in base order. ``reads[p]``,
    ``writes[p]``: storages, without repetition. ``again[p]``: the op may run more than once (an op that writes an output may
    not: an output is created once).
    """

    problem: RematProblem
    sizes: tuple[int, ...]
    producer: tuple[int, ...]
    readers: tuple[tuple[int, ...], ...]
    reads: tuple[tuple[int, ...], ...]
    writes: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]
    again: tuple[bool, ...]
    output: tuple[bool, ...]

    @classmethod
    def of(cls, problem: RematProblem) -> RematIndex:
        """Index a problem; raise ValueError when it is malformed."""
        producer = [-1] * len(problem.storages)
        readers: list[list[int]] = [[] for _ in problem.storages]
        reads = tuple(tuple(dict.fromkeys(op.reads)) for op in problem.ops)
        writes = tuple(tuple(dict.fromkeys(op.writes)) for op in problem.ops)
        for p, op in enumerate(problem.ops):
            for s in reads[p]:
                if producer[s] < 0:
                    raise ValueError(f"op {p} ({op.name}) reads storage {s} ({problem.storages[s].name}) before it is written")
                readers[s].append(p)
            for s in writes[p]:
                if producer[s] >= 0:
                    raise ValueError(f"storage {s} ({problem.storages[s].name}) is written by ops {producer[s]} and {p}")
                producer[s] = p
        for s, p in enumerate(producer):
            if p < 0:
                raise ValueError(f"storage {s} ({problem.storages[s].name}) is written by no op")
        output = tuple(storage.is_output for storage in problem.storages)
        again = tuple(op.recomputable and not any(output[s] for s in writes[p]) for p, op in enumerate(problem.ops))
        return cls(
            problem=problem,
            sizes=tuple(storage.size_bytes for storage in problem.storages),
            producer=tuple(producer),
            readers=tuple(tuple(r) for r in readers),
            reads=reads,
            writes=writes,
            seconds=tuple(op.seconds for op in problem.ops),
            again=again,
            output=output,
        )

    @cached_property
    def steps(self) -> Steps:
        """The same for compiled code."""
        ops, sizes = self.problem.ops, self.sizes
        footprint = [op.workspace_bytes + sum(sizes[s] for s in {*self.reads[p], *self.writes[p]}) for p, op in enumerate(ops)]
        return Steps(
            _ints(sizes),
            _ints(self.producer),
            np.array(self.output, dtype=np.bool_),
            *_flat(self.readers),
            *_flat(self.reads),
            *_flat(self.writes),
            np.array(self.seconds, dtype=np.float64),
            _ints(op.workspace_bytes for op in ops),
            np.array(self.again, dtype=np.bool_),
            np.array([op.inplace for op in ops], dtype=np.bool_),
            _ints(footprint),
        )

    def with_workspace(self, p: int, workspace_bytes: int) -> RematIndex:
        """The same, but for what op p works in."""
        changed = replace(self, problem=self.problem.with_workspace(p, workspace_bytes))
        workspace, footprint = self.steps.workspace.copy(), self.steps.footprint.copy()
        footprint[p] += workspace_bytes - workspace[p]
        workspace[p] = workspace_bytes
        changed.__dict__["steps"] = self.steps._replace(workspace=workspace, footprint=footprint)
        return changed

    def transient_bytes(self, p: int) -> int:
        """Least bytes that op p adds to what is alive before it: its writes and workspace, minus what it can reuse in place."""
        op = self.problem.ops[p]
        total = op.workspace_bytes + sum(self.sizes[s] for s in self.writes[p])
        return total - (self.reusable_bytes(p) if op.inplace else 0)

    def reusable_bytes(self, p: int) -> int:
        """Most bytes of writes of p that can take the place of reads of p of the same size."""
        free: dict[int, int] = {}
        for s in self.reads[p]:
            if not self.output[s]:
                free[self.sizes[s]] = free.get(self.sizes[s], 0) + 1
        reused = 0
        for s in self.writes[p]:
            if free.get(self.sizes[s], 0):
                free[self.sizes[s]] -= 1
                reused += self.sizes[s]
        return reused


def _ints(values: Iterable[int]) -> Ints:
    return np.array(list(values), dtype=np.int64)


def _flat(lists: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Where each list starts, and all of them."""
    starts = itertools.accumulate((len(row) for row in lists), initial=0)
    return _ints(starts), _ints(itertools.chain.from_iterable(lists))
