"""Facts of a problem that every solver needs, derived once: who writes, who reads, what may run again."""

from __future__ import annotations

from dataclasses import dataclass

from memcompile.solvers.schedule.problem import RematProblem


@dataclass(frozen=True, slots=True)
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
