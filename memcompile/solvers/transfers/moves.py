"""Moves: what leaves fast memory for a slower tier while nothing reads it, and when it comes back.

Given is a schedule (with its recomputations) and a budget below its peak. Three steps:

1. *What* leaves: a walk over the kernels; where memory is short, the instance whose next read is furthest away leaves
   (Belady, 1966). What needs not have left after all stays.
2. *When* it comes back: as late as the link allows when it reads one instance after the other, ahead of time by ``LEAD``, and
   as early as memory allows.
3. *What it costs*: a replay against the clock, in which executions wait for transfers, and transfers for each other.

Nothing here knows torch. Sizes are bytes, durations are seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from memcompile.solvers.schedule.problem import Move, Schedule
from memcompile.solvers.schedule.simulate import Ints, Replay

LEAD = 3.0
"""Reads are started as if the link were that much slower: a model of time is not a clock, and kernels take the cores that a
read needs too. With half of that GPT-2 waits three times as long."""
SMALLEST_BYTES = 64 * 1024
"""What is smaller stays: it frees next to nothing, and every transfer has its latency."""


@dataclass(frozen=True, slots=True)
class Link:
    """A tier and the way to it. ``busy_s_per_byte``: by how much computation slows down, for each byte on its way."""

    name: str
    write_bytes_per_s: float
    read_bytes_per_s: float
    latency_s: float
    capacity_bytes: int
    busy_s_per_byte: float = 0.0

    def write_s(self, size_bytes: int) -> float:
        """Seconds to write ``size_bytes``, alone on the link."""
        return self.latency_s + size_bytes / self.write_bytes_per_s

    def read_s(self, size_bytes: int) -> float:
        """Seconds to read ``size_bytes``, alone on the link."""
        return self.latency_s + size_bytes / self.read_bytes_per_s


@dataclass(frozen=True, slots=True)
class Traffic:
    """What moves cost. ``waited_s``: executions wait for transfers; ``busy_s``: they run slower beside them; ``link_s``: the
    links work."""

    moved_bytes: int
    link_s: float
    waited_s: float
    busy_s: float

    @property
    def extra_s(self) -> float:
        """Seconds that the step takes longer."""
        return self.waited_s + self.busy_s

    @property
    def hidden(self) -> float:
        """Share of the links' time during which executions run."""
        return 1.0 if self.link_s <= 0 else max(0.0, 1 - self.waited_s / self.link_s)


@dataclass(frozen=True, slots=True)
class Lives:
    """Instances of a schedule by their uses: by which kernel they are written, then by which they are read, in order.

    Executions ``first[k]`` up to ``last[k]`` are one kernel: nothing leaves in the middle of it. Behind the last kernel,
    outputs are used once more. ``live``: bytes that a kernel holds when nothing moves; ``end_bytes``: what the step leaves.
    ``fixed``: may not leave.
    """

    storage: list[int]
    size: list[int]
    uses: list[list[int]]
    fixed: list[bool]
    live: Ints
    end_bytes: int
    first: Ints
    last: Ints

    @classmethod
    def of(cls, replay: Replay, schedule: Schedule, movable: Sequence[bool], runs: Sequence[tuple[int, int]] = ()) -> Lives:
        """``runs``: first and last execution of those in a row that are one kernel."""
        schedule = replace(schedule, moves=())
        found = replay.instances(np.array(schedule.sequence, dtype=np.int64))
        alone = np.ones(len(schedule.sequence), dtype=bool)
        for begin, end in runs:
            alone[begin + 1 : end + 1] = False
        kernel = np.cumsum(alone) - 1
        first = np.flatnonzero(alone)
        last = np.append(first[1:], len(alone)) - 1
        live = np.maximum(np.maximum.reduceat(replay.run(schedule).live_bytes, first), replay.held(schedule, first, last))
        storage = found.storage.tolist()
        uses = [[position] for position in kernel[found.start].tolist()]
        for instance, position in zip(found.read_instance.tolist(), kernel[found.read_position].tolist(), strict=True):
            uses[instance].append(position)
        for instance in np.flatnonzero(replay.output[found.storage]).tolist():
            uses[instance].append(len(first))
        sizes = replay.size[found.storage].tolist()
        fixed = [not movable[s] or size < SMALLEST_BYTES for s, size in zip(storage, sizes, strict=True)]
        return cls(storage, sizes, uses, fixed, live, replay.end_bytes, np.append(first, len(alone)), last)


@dataclass(slots=True)
class _Gap:
    """Instance ``i`` is away: from kernel ``gone`` on, until kernel ``need`` reads it."""

    i: int
    out: int
    gone: int
    need: int


def plan_moves(lives: Lives, durations: Sequence[float], budget_bytes: int, links: Sequence[Link]) -> tuple[Move, ...] | None:
    """Moves that keep ``budget_bytes``; None where there are none. ``links``: the fastest first."""
    gaps = _leave(lives, budget_bytes) if lives.end_bytes <= budget_bytes else None
    if gaps is None:
        return None
    gaps = _stay(lives, gaps, budget_bytes)
    return _return(lives, gaps, durations, budget_bytes, links)


def _leave(lives: Lives, budget: int) -> list[_Gap] | None:
    """Step 1: who is away, when, if each comes back only as it is read."""
    at: list[list[int]] = [[] for _ in lives.first]
    for i, uses in enumerate(lives.uses):
        for position in dict.fromkeys(uses):
            at[position].append(i)
    place = [0] * len(lives.uses)
    away: dict[int, _Gap] = {}
    gaps: list[_Gap] = []
    absent = 0
    idle: list[tuple[int, int, int]] = []  # (-next read, -size, instance)
    for p, live in enumerate(lives.live.tolist()):
        for i in at[p]:
            if i in away:
                away.pop(i).need = p
                absent -= lives.size[i]
        while live - absent > budget:
            while idle and (-idle[0][0] <= p or idle[0][2] in away):
                heapq.heappop(idle)
            if not idle:
                return None
            i = heapq.heappop(idle)[2]
            away[i] = _Gap(i, lives.uses[i][place[i]], p, -1)
            gaps.append(away[i])
            absent += lives.size[i]
        for i in at[p]:
            uses = lives.uses[i]
            while place[i] + 1 < len(uses) and uses[place[i] + 1] <= p:
                place[i] += 1
            if not lives.fixed[i] and place[i] + 1 < len(uses):
                heapq.heappush(idle, (-uses[place[i] + 1], -lives.size[i], i))
    for gap in away.values():
        gap.need = len(lives.live)
    return gaps


def _stay(lives: Lives, gaps: list[_Gap], budget: int) -> list[_Gap]:
    """Take back what needs not leave, the largest first."""
    live = lives.live.copy()
    for gap in gaps:
        live[gap.gone : gap.need] -= lives.size[gap.i]
    kept = []
    for gap in sorted(gaps, key=lambda gap: (-lives.size[gap.i], gap.need)):
        size = lives.size[gap.i]
        if int(live[gap.gone : gap.need].max()) + size <= budget:
            live[gap.gone : gap.need] += size
        else:
            kept.append(gap)
    return kept


def _return(
    lives: Lives, gaps: list[_Gap], durations: Sequence[float], budget: int, links: Sequence[Link]
) -> tuple[Move, ...] | None:
    """Step 2: when each read starts, and over which link it goes; kernels become executions."""
    clock = np.concatenate([[0.0], np.cumsum(np.add.reduceat(np.asarray(durations, dtype=np.float64), lives.first[:-1]))])
    chosen = _choose_links(lives, gaps, links)
    if chosen is None:
        return None
    gaps.sort(key=lambda gap: (gap.need, gap.i))
    latest: dict[int, float] = {}
    starts: dict[int, float] = {}
    for gap in reversed(gaps):
        link = chosen[gap.i]
        end = min(float(clock[gap.need]), latest.get(link, float("inf")))
        starts[id(gap)] = latest[link] = end - LEAD * links[link].read_s(lives.size[gap.i])
    live = lives.live.copy()
    for gap in gaps:
        live[gap.gone : gap.need] -= lives.size[gap.i]
    moves = []
    copied: set[int] = set()
    for gap in gaps:
        size = lives.size[gap.i]
        wanted = int(np.searchsorted(clock, starts[id(gap)], side="right")) - 1
        crowded = np.flatnonzero(live[gap.gone : gap.need] + size > budget)
        free = gap.gone + int(crowded[-1]) + 1 if len(crowded) else gap.gone
        back = min(gap.need, max(gap.gone, free, wanted))
        live[back : gap.need] += size
        storage = lives.storage[gap.i]
        gone, back, need = (int(lives.first[kernel]) for kernel in (gap.gone, back, gap.need))
        moves.append(Move(storage, size, int(lives.last[gap.out]), gone, back, need, chosen[gap.i], gap.i in copied))
        copied.add(gap.i)
    return tuple(moves)


def _choose_links(lives: Lives, gaps: list[_Gap], links: Sequence[Link]) -> dict[int, int] | None:
    """Instance -> the fastest link with room for it. Copies stay until the step ends."""
    free = [link.capacity_bytes for link in links]
    chosen: dict[int, int] = {}
    for gap in sorted(gaps, key=lambda gap: gap.gone):
        if gap.i in chosen:
            continue
        size = lives.size[gap.i]
        link = next((index for index, room in enumerate(free) if room >= size), None)
        if link is None:
            return None
        free[link] -= size
        chosen[gap.i] = link
    return chosen


def traffic(moves: Sequence[Move], durations: Sequence[float], links: Sequence[Link]) -> Traffic:
    """Step 3: replay against the clock. A link transfers one thing after the other, in the order of the requests."""
    out: dict[int, list[Move]] = {}
    gone: dict[int, list[Move]] = {}
    back: dict[int, list[Move]] = {}
    need: dict[int, list[Move]] = {}
    for move in moves:
        for events, position in ((out, move.out), (gone, move.gone), (back, move.back), (need, move.need)):
            events.setdefault(position, []).append(move)
    written: dict[tuple[int, int], float] = {}
    read: dict[Move, float] = {}
    free = [0.0] * len(links)
    clock, waited, link_s = 0.0, 0.0, 0.0

    def wait(until: float) -> None:
        nonlocal clock, waited
        waited += max(0.0, until - clock)
        clock = max(clock, until)

    for p, seconds in enumerate((*durations, 0.0)):
        for move in gone.get(p, ()):
            wait(written[move.storage, move.out] if not move.copied else 0.0)
        for move in back.get(p, ()):
            took = links[move.link].read_s(move.size_bytes)
            read[move] = free[move.link] = max(clock, free[move.link]) + took
            link_s += took
        for move in need.get(p, ()):
            wait(read[move])
        clock += seconds
        for move in out.get(p, ()):
            if not move.copied:
                took = links[move.link].write_s(move.size_bytes)
                written[move.storage, move.out] = free[move.link] = max(clock, free[move.link]) + took
                link_s += took
    sent = [(move, 1 if move.copied else 2) for move in moves]
    busy = sum(links[move.link].busy_s_per_byte * move.size_bytes * times for move, times in sent)
    return Traffic(sum(move.size_bytes * times for move, times in sent), link_s, waited, busy)
