"""Reads of weights: which stay in memory between calls, and when each of the others starts.

Given is what is alive beside the weights at each moment of a step, when each weight is needed, and a link that reads one after
the other. Nothing here knows torch. Sizes are bytes, durations are seconds, moments are indices.

Bytes that stay are bytes that are not read; but a read that starts early needs room as well. So several sizes of the resident
set are tried; for each, reads start as late as the link allows, and as early as memory allows; a replay against the clock
says what it takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from memcompile.solvers.transfers.link import Ints, Link, Timing, Transfer, latest_starts, replay, soonest

LEAD = 1.5
"""Reads start as if the link were that much slower."""
SMALL_BYTES = 256 * 1024
"""What is smaller stays where it can: its latency costs more than its bytes."""
SHARES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Of the bytes that could stay at most."""


@dataclass(frozen=True, slots=True)
class WeightRead:
    """Weight ``weight`` is needed at slot ``slot`` (moment ``need``) and dead from moment ``end`` on."""

    weight: int
    size_bytes: int
    slot: int
    need: int
    end: int


@dataclass(frozen=True, slots=True)
class PrefetchProblem:
    """``live``: bytes at each moment without any weight. ``moments`` and ``clock``: of each slot at which a read may start, the
    moment and the seconds of computation before it. ``sizes``: of the weights. ``reads``: in the order of their need."""

    live: Ints
    moments: tuple[int, ...]
    clock: tuple[float, ...]
    total_s: float
    sizes: tuple[int, ...]
    reads: tuple[WeightRead, ...]


@dataclass(frozen=True, slots=True)
class Prefetch(Timing):
    """``residents``: weights that stay. ``starts``: (read, slot at which it starts), in order. ``seconds`` of a step."""

    residents: frozenset[int]
    starts: tuple[tuple[WeightRead, int], ...]
    peak_bytes: int
    seconds: float

    @property
    def streamed_bytes(self) -> int:
        """WeightRead in each step."""
        return sum(read.size_bytes for read, _ in self.starts)


def plan_prefetch(problem: PrefetchProblem, budget_bytes: int, link: Link) -> Prefetch | None:
    """The fastest choice found within ``budget_bytes``; None where even reading each weight at its need takes more."""
    if int(_just_in_time(problem, frozenset()).max()) > budget_bytes:
        return None
    most = _residents(problem, budget_bytes, sum(problem.sizes))
    room = sum(problem.sizes[weight] for weight in most)
    sets = {_residents(problem, budget_bytes, int(share * room)) for share in SHARES} | {most}
    plans = [_placed(problem, residents, budget_bytes, link) for residents in sorted(sets, key=len)]
    return min(plans, key=lambda plan: (plan.seconds, plan.streamed_bytes))


def plan_ahead(problem: PrefetchProblem, ahead: int, link: Link) -> Prefetch:
    """Nothing stays; each read starts when the large one ``ahead`` places before it is needed."""
    large: list[WeightRead] = []
    starts = []
    for read in problem.reads:
        starts.append((read, large[-ahead].slot if len(large) >= ahead else 0))
        large += [read] if read.size_bytes >= SMALL_BYTES else []
    return _timed(problem, frozenset(), tuple(starts), link)


def _just_in_time(problem: PrefetchProblem, residents: frozenset[int]) -> Ints:
    """Bytes alive at each moment, when each read starts at its need."""
    live = problem.live + sum(problem.sizes[weight] for weight in residents)
    for read in problem.reads:
        if read.weight not in residents:
            live[read.need : read.end] += read.size_bytes
    return live


def _residents(problem: PrefetchProblem, budget: int, most_bytes: int) -> frozenset[int]:
    """As many bytes as there is room for: small weights first, then the others, each prefix spread evenly over the step."""
    spans: dict[int, list[WeightRead]] = {}
    for read in problem.reads:
        spans.setdefault(read.weight, []).append(read)
    small = sorted((weight for weight in spans if problem.sizes[weight] < SMALL_BYTES), key=problem.sizes.__getitem__)
    large = [weight for weight in spans if problem.sizes[weight] >= SMALL_BYTES]
    large.sort(key=lambda weight: -len(spans[weight]))  # stable: what is read twice first
    again = [weight for weight in large if len(spans[weight]) > 1]
    chosen: set[int] = set()
    live, taken = _just_in_time(problem, frozenset()), 0
    for weight in (*small, *again, *_spread(large[len(again) :])):
        size = problem.sizes[weight]
        if taken + size > most_bytes:
            continue
        after = live + size
        for read in spans[weight]:
            after[read.need : read.end] -= size
        if int(after.max()) <= budget:
            live, taken = after, taken + size
            chosen.add(weight)
    return frozenset(chosen)


def _spread(items: Sequence[int]) -> Iterable[int]:
    """The items so that any number of the first ones lie evenly among all (van der Corput's sequence)."""
    bits = max(1, (len(items) - 1).bit_length())
    order = (int(f"{index:0{bits}b}"[::-1], 2) for index in range(1 << bits))
    return (items[index] for index in order if index < len(items))


def _placed(problem: PrefetchProblem, residents: frozenset[int], budget: int, link: Link) -> Prefetch:
    """When each read starts."""
    reads = [read for read in problem.reads if read.weight not in residents]
    wanted = latest_starts([(problem.clock[read.slot], 0, link.read_s(read.size_bytes)) for read in reads], LEAD)
    live = _just_in_time(problem, residents)
    clock, first = np.asarray(problem.clock), 0
    starts = []
    for read, when in zip(reads, wanted, strict=True):
        slot = max(first, int(np.searchsorted(clock, when, side="right")) - 1)
        slot = min(slot, read.slot)
        begin = problem.moments[slot]
        free = soonest(live, read.size_bytes, begin, read.need, budget)
        if free > begin:
            slot = min(read.slot, int(np.searchsorted(problem.moments, free, side="left")))
        live[problem.moments[slot] : read.need] += read.size_bytes
        starts.append((read, slot))
        first = slot
    return _timed(problem, residents, tuple(starts), link)


def _timed(
    problem: PrefetchProblem, residents: frozenset[int], starts: tuple[tuple[WeightRead, int], ...], link: Link
) -> Prefetch:
    """What the reads take: of a link with several under way, only the first has to wait for its latency."""
    live = _just_in_time(problem, residents)
    transfers = []
    for read, slot in starts:
        live[problem.moments[slot] : read.need] += read.size_bytes
        transfers.append(Transfer(0, read.size_bytes / link.read_bytes_per_s, slot, read.slot, link.latency_s))
    timing = replay(transfers, problem.clock)
    seconds = problem.total_s + timing.waited_s
    return Prefetch(timing.link_s, timing.waited_s, residents, starts, int(live.max(initial=0)), seconds)


def just_in_time(problem: PrefetchProblem, link: Link) -> Prefetch:
    """The smallest peak: nothing stays, each weight is read at its need."""
    return _timed(problem, frozenset(), tuple((read, read.slot) for read in problem.reads), link)
