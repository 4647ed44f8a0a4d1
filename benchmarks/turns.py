"""The ways of one case: prepared one after the other, kept alive, and timed in turns. What each did is a row.

A way that raises, or whose process dies, is a row that says so, and stops no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from benchmarks.peers import interleave
from benchmarks.workers import Remote, WayFailedError

R = TypeVar("R")
"""A frozen dataclass with the fields ``way``, ``status``, ``note``, ``seconds`` and ``ratio``, ``ratio_q1``, ``ratio_q3``."""


class Turns(Generic[R]):
    """``put`` gets a way's row whenever more is known of it. Ratios are to the way named ``reference`` in the same round."""

    def __init__(self, put: Callable[[R], None], reference: str) -> None:
        self.alive: dict[str, Remote] = {}
        self.rows: dict[str, R] = {}
        self._put_row, self._reference = put, reference

    def put(self, row: Any) -> None:
        """Keep the row, and pass it on."""
        self.rows[row.way] = row
        self._put_row(row)

    def prepare(self, worker: Remote, row: R, measured: Callable[[Remote, R], R]) -> None:
        """Start a way: ``measured`` completes its row."""
        self.alive[worker.way.name] = worker
        try:
            self.put(measured(worker, row))
        except WayFailedError as error:
            self._drop(worker.way.name, row, error)

    def time(self, rounds: int) -> None:
        """Time those that are alive; one that fails in its turn leaves the others."""
        while self.alive:
            reference = self.alive.get(self._reference) or next(iter(self.alive.values()))
            try:
                timings = interleave(list(self.alive.values()), reference, rounds)
            except WayFailedError:
                if not self._drop_failing():
                    raise
                continue
            for name, timing in timings.items():
                found: dict[str, float] = {"seconds": timing.seconds}
                if self._reference in self.alive:
                    found |= {"ratio": timing.ratio, "ratio_q1": timing.ratio_q1, "ratio_q3": timing.ratio_q3}
                self.put(_replaced(self.rows[name], **found))
            return

    def close(self) -> None:
        """End the ways' processes."""
        for worker in self.alive.values():
            worker.close()

    def _drop_failing(self) -> bool:
        """Whether there were ways that cannot step any more."""
        before = len(self.alive)
        for name, worker in list(self.alive.items()):
            try:
                worker.warm_up()
            except WayFailedError as error:
                self._drop(name, self.rows[name], error)
        return len(self.alive) < before

    def _drop(self, name: str, row: R, error: WayFailedError) -> None:
        self.alive.pop(name).close()
        status = "failed" if error.floor_bytes is None else "infeasible"
        floor = {"floor_bytes": error.floor_bytes} if hasattr(row, "floor_bytes") else {}
        self.put(_replaced(row, status=status, note=error.message, **floor))


def _replaced(row: Any, **fields: object) -> Any:
    return dataclasses.replace(row, **fields)
