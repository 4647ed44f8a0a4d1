"""From decisions (what is resident, and when) to a schedule: everything else is made again on demand, as late as possible.

The emitter never frees anything: what is resident is what a later read may use. Memory follows from the replay, where an
instance lives until the last read that uses it. So dropping a storage here is a decision about reads, not about bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from memcompile.solvers import work
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import RematSchedule

OP_S = 1e-6


class Emitter:
    """Writes a schedule execution by execution. Invariant: every read of what was emitted finds an instance."""

    def __init__(self, index: RematIndex) -> None:
        self.index = index
        self.sequence: list[int] = []
        self.resident = bytearray(len(index.sizes))
        self.executed = bytearray(len(index.reads))
        self.split: int | None = None

    def execute(self, p: int) -> None:
        """Run op p; all its reads must be resident."""
        self.sequence.append(p)
        self.executed[p] = 1
        for s in self.index.writes[p]:
            self.resident[s] = 1

    def drop(self, storages: Iterable[int]) -> None:
        """Forbid later reads of the present instances, where the storage can be made again."""
        for s in storages:
            if self.index.again[self.index.producer[s]] and not self.index.output[s]:
                self.resident[s] = 0

    def keep_only(self, storages: Collection[int]) -> None:
        """Drop everything resident that is not in ``storages``."""
        self.drop(s for s, flag in enumerate(self.resident) if flag and s not in storages)

    def missing(self, storages: Iterable[int]) -> list[int]:
        """Ops that must run so that ``storages`` are resident, in base order."""
        index, resident = self.index, self.resident
        ops: set[int] = set()
        stack = [s for s in storages if not resident[s]]
        while stack:
            p = index.producer[stack.pop()]
            if p not in ops:
                ops.add(p)
                stack.extend(s for s in index.reads[p] if not resident[s])
        return sorted(ops)

    def make(self, storages: Iterable[int]) -> None:
        """Make ``storages`` resident."""
        for p in self.missing(storages):
            self.execute(p)

    def run(self, p: int) -> None:
        """Make the reads of op p, then run it."""
        self.make(self.index.reads[p])
        self.execute(p)

    def cross_split(self) -> None:
        """The forward ends here."""
        self.split = len(self.sequence)

    def finish(self) -> RematSchedule:
        """Run what never ran, and return the schedule."""
        if self.split is None:
            self.cross_split()
        for p, done in enumerate(self.executed):
            if not done:
                self.run(p)
        assert self.split is not None
        return RematSchedule(tuple(self.sequence), self.split)


def decode(index: RematIndex, resident: Mapping[int, Collection[int]] | None = None) -> RematSchedule:
    """Decode resident sets at instants.

    ``resident[w]``: what may stay of the storages written before op w when op w first runs; the reads of w are made if they
    are not in it. With no instants: the base schedule.
    """
    resident = dict(resident or {})
    boundary = index.problem.boundary
    emitter = Emitter(index)
    work.spend(OP_S * len(index.reads))
    for p in range(len(index.reads)):
        if p == boundary:
            emitter.cross_split()
        if p in resident:
            early = p < boundary
            emitter.make(s for s in resident[p] if (emitter.executed[index.producer[s]] if early else index.producer[s] < p))
            emitter.keep_only(resident[p])
        emitter.run(p)
    return emitter.finish()
