"""Moves: what leaves fast memory for a slower tier while nothing reads it, and when it comes back.

Given is a schedule (with its recomputations) and a budget below its peak. Three steps:

1. *What* leaves: a walk over the kernels; where memory is short, the instance whose next read is furthest away leaves
   (Belady, 1966). What needs not have left after all stays.
2. *When* it comes back: as late as the link allows when it reads one instance after the other, ahead of time by ``LEAD``, and
   as early as memory allows.
3. *What it costs*: a replay against the clock (``link.py``).

Nothing here knows torch. Sizes are bytes, durations are seconds.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from memcompile.solvers.schedule.problem import Move, RematSchedule
from memcompile.solvers.schedule.simulate import Replay
from memcompile.solvers.transfers.link import Ints, Link, Timing, Transfer, latest_starts, replay, soonest

LEAD = 3.0
"""Reads are started as if the link were that much slower: kernels of training take the cores that a read needs too. With half
of that GPT-2 waits three times as long."""
SMALLEST_BYTES = 64 * 1024
"""What is smaller stays: it frees next to nothing, and every transfer has its latency."""


@dataclass(frozen=True, slots=True)
class Traffic(Timing):
    """What moves cost. ``busy_s``: executions run slower beside them."""

    moved_bytes: int
    busy_s: float

    @property
    def extra_s(self) -> float:
        """Seconds that the step takes longer."""
        return self.waited_s + self.busy_s


@dataclass(frozen=True, slots=True)
class InstanceLives:
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
    def of(
        cls, replay: Replay, schedule: RematSchedule, movable: Sequence[bool], runs: Sequence[tuple[int, int]] = ()
    ) -> InstanceLives:
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


def plan_moves(
    lives: InstanceLives, durations: Sequence[float], budget_bytes: int, links: Sequence[Link]
) -> tuple[Move, ...] | None:
    """Moves that keep ``budget_bytes``; None where there are none. ``links``: the fastest first."""
    gaps = _leave(lives, budget_bytes) if lives.end_bytes <= budget_bytes else None
    if gaps is None:
        return None
    gaps = _stay(lives, gaps, budget_bytes)
    return _return(lives, gaps, durations, budget_bytes, links)


def _leave(lives: InstanceLives, budget: int) -> list[_Gap] | None:
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


def _stay(lives: InstanceLives, gaps: list[_Gap], budget: int) -> list[_Gap]:
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
    lives: InstanceLives, gaps: list[_Gap], durations: Sequence[float], budget: int, links: Sequence[Link]
) -> tuple[Move, ...] | None:
    """Step 2: when each read starts, and over which link it goes; kernels become executions."""
    clock = np.concatenate([[0.0], np.cumsum(np.add.reduceat(np.asarray(durations, dtype=np.float64), lives.first[:-1]))])
    chosen = _choose_links(lives, gaps, links)
    if chosen is None:
        return None
    gaps.sort(key=lambda gap: (gap.need, gap.i))
    reads = [(float(clock[gap.need]), chosen[gap.i], links[chosen[gap.i]].read_s(lives.size[gap.i])) for gap in gaps]
    live = lives.live.copy()
    for gap in gaps:
        live[gap.gone : gap.need] -= lives.size[gap.i]
    moves = []
    copied: set[int] = set()
    for gap, start_s in zip(gaps, latest_starts(reads, LEAD), strict=True):
        size = lives.size[gap.i]
        wanted = max(gap.gone, int(np.searchsorted(clock, start_s, side="right")) - 1)
        back = min(gap.need, soonest(live, size, wanted, gap.need, budget))
        live[back : gap.need] += size
        storage = lives.storage[gap.i]
        gone, back, need = (int(lives.first[kernel]) for kernel in (gap.gone, back, gap.need))
        moves.append(Move(storage, size, int(lives.last[gap.out]), gone, back, need, chosen[gap.i], gap.i in copied))
        copied.add(gap.i)
    return tuple(moves)


def _choose_links(lives: InstanceLives, gaps: list[_Gap], links: Sequence[Link]) -> dict[int, int] | None:
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
    """Step 3: what the moves of executions that take ``durations`` cost."""
    transfers = []
    for move in moves:
        link = links[move.link]
        if not move.copied:
            transfers.append(Transfer(move.link, link.write_s(move.size_bytes), move.out + 1, move.gone, is_write=True))
        transfers.append(Transfer(move.link, link.read_s(move.size_bytes), move.back, move.need))
    timing = replay(transfers, [0.0, *itertools.accumulate(durations)])
    sent = [(move, 1 if move.copied else 2) for move in moves]
    busy = sum(links[move.link].busy_s_per_byte * move.size_bytes * times for move, times in sent)
    return Traffic(timing.link_s, timing.waited_s, sum(move.size_bytes * times for move, times in sent), busy)
