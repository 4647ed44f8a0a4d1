"""The ways of one case: prepared one after the other, kept alive, and timed in turns. What each did is a row.

A noisy machine is equally unkind to ways that take turns. One that raises, or whose process dies, is a row that says so, and
stops no other.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from benchmarks.core.rows import Kept, Setting, StepRow
from benchmarks.core.steps import Step
from benchmarks.core.table import quotient
from benchmarks.core.ways import PLAIN, Way
from benchmarks.core.workers import Remote, WayFailedError

R = TypeVar("R", bound=StepRow)
"""With the fields ``way``, ``status``, ``note``, ``ratio``, ``ratio_q1`` and ``ratio_q3``."""


class Stepping(Protocol):
    """A way that can be timed."""

    def warm_up(self) -> None:
        """One step that is not timed."""

    def timed_step(self) -> float:
        """Seconds of one step."""


@dataclass(frozen=True)
class Timing:
    """Step time over the rounds: median seconds, and the quartiles of the ratios to the reference in the same round."""

    seconds: float
    ratio: float
    ratio_q1: float
    ratio_q3: float

    @classmethod
    def of(cls, seconds: Sequence[float], reference: Sequence[float]) -> Timing:
        """From the seconds of each round."""
        ratios = [mine / theirs for mine, theirs in zip(seconds, reference, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return cls(statistics.median(seconds), middle, low, high)


def interleave(ways: dict[str, Any], reference: str, rounds: int) -> dict[str, Timing]:
    """Time the ways in turns, by their names; a round is one step of each, in rotating order."""
    everyone: list[tuple[str, Stepping]] = list(ways.items())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _, way in everyone:
        way.warm_up()
    for turn in range(rounds):
        shift = turn % len(everyone)
        for name, way in everyone[shift:] + everyone[:shift]:
            seconds[name].append(way.timed_step())
    return {name: Timing.of(taken, seconds[reference]) for name, taken in seconds.items()}


class Turns(Generic[R]):
    """``kept`` gets a way's row whenever more is known of it. Ratios are to the way named ``reference`` in the same round."""

    SECONDS: ClassVar[str] = "seconds"
    """The column of a step's time."""

    def __init__(self, kept: Kept[R], setting: Setting, reference: str = PLAIN.name) -> None:
        self.kept, self.setting, self.reference = kept, setting, reference
        self.alive: dict[str, Remote] = {}
        self.rows: dict[str, R] = {}

    def row(self, way: Way) -> R:
        """An empty row of a way."""
        raise NotImplementedError

    def put(self, way: str, row: R, **columns: Any) -> R:
        """Keep the row, with more of its columns."""
        self.rows[way] = dataclasses.replace(row, **columns)
        self.kept.put(self.rows[way])
        return self.rows[way]

    def prepare(self, way: Way, make: Callable[[], Step[R]]) -> R:
        """Start a way: its step measures itself, and `completed` says what that is beside the others."""
        row = self.row(way)
        worker = self.alive[way.name] = Remote(way.name, make, self.setting.threads)
        try:
            return self.put(way.name, self.completed(way, worker, worker.ask("measured", row)))
        except WayFailedError as error:
            return self._drop(way.name, row, error)

    def completed(self, way: Way, worker: Remote, row: R) -> R:
        """``row`` beside those of other ways."""
        raise NotImplementedError

    def of_reference(self, column: str, row: Any) -> Any:
        """What the reference's row has there; ``row`` may be it."""
        found = row if row.way == self.reference else self.rows.get(self.reference)
        return None if found is None else getattr(found, column)

    def to_reference(self, column: str, row: R) -> float | None:
        """A number as a multiple of the reference's."""
        return quotient(getattr(row, column), self.of_reference(column, row))

    def time(self, rounds: int) -> None:
        """Time those that are alive, unless there are no rounds; one that fails in its turn leaves the others."""
        while self.alive and rounds:
            reference = self.reference if self.reference in self.alive else next(iter(self.alive))
            try:
                timings = interleave(self.alive, reference, rounds)
            except WayFailedError:
                if not self._drop_failing():
                    raise
                continue
            for name, timing in timings.items():
                found = dataclasses.asdict(timing) if reference == self.reference else {"seconds": timing.seconds}
                self.put(name, self.rows[name], **{self.SECONDS: found.pop("seconds")}, **found)
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

    def _drop(self, way: str, row: R, error: WayFailedError) -> R:
        self.alive.pop(way).close()
        status = "failed" if error.floor_bytes is None else "infeasible"
        bounds = {name: value for name, value in vars(error).items() if name.endswith("_bytes") and hasattr(row, name)}
        return self.put(way, row, status=status, note=error.message, **bounds)
