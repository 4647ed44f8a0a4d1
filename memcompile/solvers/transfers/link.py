"""Links to slower memories, and the clock against which plans are replayed: executions wait for transfers, and transfers for
each other. A weight that is read is a move that left before the step. Sizes are bytes, durations are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Link:
    """A tier and the way to it. ``busy_s_per_byte``: by how much computation slows down, for each byte on its way."""

    name: str
    write_bytes_per_s: float
    read_bytes_per_s: float
    latency_s: float
    capacity_bytes: int
    busy_s_per_byte: float = 0.0

    @classmethod
    def to_read(cls, name: str, read_bytes_per_s: float, latency_s: float) -> Link:
        """One over which nothing leaves."""
        return cls(name, float("inf"), read_bytes_per_s, latency_s, 0)

    def write_s(self, size_bytes: int) -> float:
        """Seconds to write ``size_bytes``, alone on the link."""
        return self.latency_s + size_bytes / self.write_bytes_per_s

    def read_s(self, size_bytes: int) -> float:
        """Seconds to read ``size_bytes``, alone on the link."""
        return self.latency_s + size_bytes / self.read_bytes_per_s


@dataclass(frozen=True, slots=True)
class Transfer:
    """``seconds`` of link number ``link``, and ``latency_s`` more where it is idle. Asked for before execution ``start``,
    waited for before execution ``need``. Before one execution, writes come first, and what is asked for before waits."""

    link: int
    seconds: float
    start: int
    need: int
    latency_s: float = 0.0
    is_write: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """``link_s``: the links work. ``waited_s``: executions wait for them."""

    link_s: float
    waited_s: float

    @property
    def hidden(self) -> float:
        """Share of the links' time during which executions run."""
        return 1.0 if self.link_s <= 0 else max(0.0, 1 - self.waited_s / self.link_s)


def replay(transfers: Sequence[Transfer], clock: Sequence[float]) -> Timing:
    """A link carries one thing after the other, in the order of the requests. ``clock``: seconds of computation before each
    execution, and behind the last."""
    events = [(t.start, 0 if t.is_write else 2, index) for index, t in enumerate(transfers)]
    events += [(t.need, 1 if t.is_write else 3, index) for index, t in enumerate(transfers)]
    free: dict[int, float] = {}
    done: dict[int, float] = {}
    waited = link_s = 0.0
    for position, _, index in sorted(events):
        transfer, now = transfers[index], clock[position] + waited
        if index in done:
            waited += max(0.0, done[index] - now)
            continue
        before = free.get(transfer.link, 0.0)
        took = transfer.seconds + (transfer.latency_s if before <= now else 0.0)
        free[transfer.link] = done[index] = max(before, now) + took
        link_s += transfer.seconds
    return Timing(link_s, waited)


def latest_starts(reads: Sequence[tuple[float, int, float]], lead: float) -> list[float]:
    """When reads have to start that are needed one after the other: (moment of the need, link, seconds) of each.

    A link reads one after the other, as if it were ``lead`` times slower: a model of time is not a clock.
    """
    latest: dict[int, float] = {}
    starts = []
    for need_s, link, seconds in reversed(reads):
        latest[link] = min(need_s, latest.get(link, float("inf"))) - lead * seconds
        starts.append(latest[link])
    return starts[::-1]


def soonest(live: Ints, size_bytes: int, begin: int, need: int, budget: int) -> int:
    """The first moment from ``begin`` on from which ``size_bytes`` more fit until ``need``."""
    crowded = np.flatnonzero(live[begin:need] + size_bytes > budget)
    return begin + int(crowded[-1]) + 1 if len(crowded) else begin
