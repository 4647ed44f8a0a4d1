"""Where each buffer of a step lies: one arena for forward and backward together, every offset chosen before anything runs.

What the user holds after the step (outputs, gradients) and what library kernels allocate themselves stays outside. An arena
takes as much as it holds at its fullest, all the time, while gradients pile up outside as the activations go. So that arena
and outside together never take more than the lowered code does without an arena, some buffers that live where the outside is
small are left outside too: ``solvers/places/fill.py`` chooses. Where no arrangement of what it chooses is low enough, lanes are
filled instead (``solvers/places/lanes.py``). On the CPU, buffers outside hand their blocks on to each other where there is room
for the blocks between them (``solvers/places/relays.py``): memory that was touched before costs no page faults.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memcompile.solvers.places.fill import fill
from memcompile.solvers.places.lanes import lanes
from memcompile.solvers.places.packing import Buffer, Packing, pack, validate
from memcompile.solvers.places.relays import Relay, relays_of_halves
from memcompile.solvers.schedule.simulate import Ints, alive
from memcompile.step.trace import Life, StepPeak

ALIGNMENT = {"cpu": 64, "cuda": 512}
"""Bytes: what the allocator of each device aligns to."""
PACKING_S = 1.0
"""Seconds that one packing may search where greedy placements are not low enough."""
TRIES = 4
"""Choices of what lies in the arena, where packings turn out higher than what is alive in them."""


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """``offsets``: (half, buffer) -> bytes from the start of an arena of ``height`` bytes; no arena for them is below
    ``lower_bound``.

    ``room_bytes``: what blocks of memory for arenas may take in all while this step runs; None where nobody named a limit.
    ``peak_bytes`` (and those of the halves, and what is held between them above the entry): arena and outside together.
    ``placed_bytes``: sum of the sizes of the placed buffers, ``outside_bytes``: of all others that the step allocates.
    ``relays``: what is handed on within a half, outside of the arena.
    """

    height: int
    lower_bound: int
    offsets: Mapping[tuple[str, str], int]
    room_bytes: int | None
    peak_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    held_bytes: int
    placed_bytes: int
    outside_bytes: int
    outside_count: int
    method: str
    relays: tuple[HandedOn, ...] = ()

    @property
    def handed_bytes(self) -> int:
        """What the step need not allocate because blocks are handed on."""
        return sum(sum(relay.sizes) - relay.size_bytes for relay in self.relays)


@dataclass(frozen=True, slots=True)
class HandedOn:
    """A block of ``size_bytes`` that the ``buffers`` of a half take one after the other; ``sizes``: of each, in bytes."""

    half: str
    size_bytes: int
    buffers: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, relay: Relay, lives: Sequence[Life]) -> HandedOn:
        """``lives``: what the relay counts."""
        here = [lives[i] for i in relay.buffers]
        return cls(here[0].where, relay.size, tuple(life.name for life in here), tuple(life.size_bytes for life in here))


def plan_arena(
    step: StepPeak,
    slots: Collection[tuple[str, str]],
    limit_bytes: int | None,
    *,
    device_type: str = "cpu",
    across: bool = True,
    held_limit_bytes: int | None = None,
    slack_bytes: int = 0,
) -> ArenaPlan:
    """Place as much of a step as its limit allows; nothing where it allows nothing.

    ``slots``: (half, buffer) of what may be placed. What the step takes in all, entry included, stays within what it takes
    without an arena, each buffer aligned, and within ``limit_bytes``.
    ``across``: saved tensors may lie in the arena. ``held_limit_bytes``: what the step may hold between its halves, above its
    entry, where other graphs run then. ``slack_bytes``: what the step may take above what it takes without an arena.
    """
    may = [_may_lie(life, slots, step.boundary, across) for life in step.lives]
    candidates = [life for life, yes in zip(step.lives, may, strict=True) if yes]
    alignment = ALIGNMENT[device_type]
    outside = _alive([life for life, yes in zip(step.lives, may, strict=True) if not yes], step.end)
    most = int(_alive(step.lives, step.end, alignment).max(initial=0)) + slack_bytes
    most = most if limit_bytes is None else min(most, limit_bytes)
    room = np.full(step.end, most, dtype=np.int64)
    if held_limit_bytes is not None:
        room[step.boundary] = min(most, step.entry_bytes + held_limit_bytes)
    placed, packing = _placed(candidates, room - outside, alignment)
    inside = {id(life) for life in placed}
    outside += _alive([life for life in candidates if id(life) not in inside], step.end)
    rest = [life for life in candidates if id(life) not in inside and not life.size_bytes % alignment and device_type == "cpu"]
    begins, ends = _times(rest)
    sizes = np.array([life.size_bytes for life in rest], dtype=np.int64)
    relays = relays_of_halves(begins, ends, sizes, room - outside - packing.height, step.boundary)
    blocks = [HandedOn.of(relay, rest) for relay in relays]
    for relay in relays:
        outside += relay.wasted(begins, ends, sizes, step.end)
        inside |= {id(rest[i]) for i in relay.buffers[1:]}
    allocated = [life for life in step.lives if life.birth and id(life) not in inside]
    total = outside + packing.height
    return ArenaPlan(
        packing.height,
        packing.lower_bound,
        {(life.where, life.name): offset for life, offset in zip(placed, packing.offsets, strict=True)},
        None if limit_bytes is None else limit_bytes - int(outside.max(initial=0)),
        int(total.max(initial=0)),
        int(total[: step.boundary].max(initial=0)),
        int(total[step.boundary :].max(initial=0)) if step.backward_peak_bytes else 0,
        int(total[step.boundary]) - step.entry_bytes,
        sum(life.size_bytes for life in placed),
        sum(life.size_bytes for life in allocated) + sum(block.size_bytes - block.sizes[0] for block in blocks),
        len(allocated),
        packing.method,
        tuple(blocks),
    )


def _may_lie(life: Life, slots: Collection[tuple[str, str]], boundary: int, across: bool) -> bool:
    if life.death is None or not life.size_bytes or (life.where, life.name) not in slots:
        return False
    return across or not life.birth < boundary < life.death


def _alive(lives: Sequence[Life], end: int, alignment: int = 1) -> Ints:
    """Bytes alive at each event."""
    begins = np.array([life.birth for life in lives], dtype=np.int64)
    ends = np.array([end if life.death is None else life.death for life in lives], dtype=np.int64)
    sizes = np.array([-(-life.size_bytes // alignment) * alignment for life in lives], dtype=np.int64)
    return alive(begins, ends, sizes, end)


def _placed(lives: Sequence[Life], room: Ints, alignment: int) -> tuple[list[Life], Packing]:
    """The buffers to place and where: as many bytes as can be.

    ``room``: bytes per event for the arena and the buffers outside of it together. An arrangement that is higher than what is
    alive in it is answered by choosing again, with as much less room, and by lanes.
    """
    begins, ends = _times(lives)
    sizes = np.array([-(-life.size_bytes // alignment) for life in lives], dtype=np.int64)
    in_lanes = _in_lanes(lives, begins, ends, sizes, room // alignment, alignment)
    for _ in range(TRIES):
        chosen = fill(begins, ends, sizes, room // alignment)
        placed = [life for life, yes in zip(lives, chosen.inside, strict=True) if yes]
        packing = pack(_buffers(placed), alignment=alignment, time_limit_s=PACKING_S)
        if (excess := packing.height - chosen.height * alignment) <= 0:
            break
        room = room - excess
    else:
        placed, packing = [], pack([])
    placed, packing = max((placed, packing), in_lanes, key=lambda found: sum(life.size_bytes for life in found[0]))
    validate(_buffers(placed), packing.offsets, alignment=alignment)
    return placed, packing


def _in_lanes(
    lives: Sequence[Life], begins: Ints, ends: Ints, sizes: Ints, room: Ints, alignment: int
) -> tuple[list[Life], Packing]:
    """Like ``_placed``; ``sizes`` and ``room`` count units of the alignment."""
    began = time.monotonic()
    found = lanes(begins, ends, sizes, room - alive(begins, ends, sizes, len(room)))
    inside = np.flatnonzero(found.offsets >= 0)
    lower_bound = int(alive(begins[inside], ends[inside], sizes[inside], len(room)).max(initial=0)) * alignment
    offsets = tuple((found.offsets[inside] * alignment).tolist())
    packing = Packing(offsets, found.height * alignment, lower_bound, "lanes", time.monotonic() - began)
    return [lives[i] for i in inside.tolist()], packing


def _times(lives: Sequence[Life]) -> tuple[Ints, Ints]:
    """Birth and death of buffers that die."""
    return np.array([p.birth for p in lives], dtype=np.int64), np.array([p.death for p in lives], dtype=np.int64)


def _buffers(lives: Sequence[Life]) -> list[Buffer]:
    return [Buffer(f"{life.where} {life.name}", life.birth, life.death or 0, life.size_bytes) for life in lives]
