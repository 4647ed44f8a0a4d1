"""What code takes that runs with an arena, for the last gate: the code that was really compiled against the budget.

It counts from the traces of the compiled code and from the places that its buffers got, and takes no number from a planner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import accumulate

from memcompile.passes.arena.allocate import HandedOn
from memcompile.step.trace import Life, StepPeak


def placed_peak(step: StepPeak, placed: Collection[tuple[str, str]], height: int, relays: Collection[HandedOn]) -> StepPeak:
    """``step``, the replay of code without an arena, as it runs with one of ``height`` bytes.

    ``placed``: (half, buffer) of what lies in it; ``relays``: what is handed on beside it. The timeline stays that of the code.
    """
    blocks = list(_blocks(step, placed, relays))
    changes = [0] * (step.end + 1)
    for life in blocks:
        changes[life.birth] += life.size_bytes
        changes[step.end if life.death is None else life.death] -= life.size_bytes
    live = [height + outside for outside in accumulate(changes[: step.end])]
    held = live[step.boundary] - step.entry_bytes if step.end else 0
    return replace(
        step,
        peak_bytes=max(live, default=height),
        forward_peak_bytes=max(live[: step.boundary], default=0),
        backward_peak_bytes=max(live[step.boundary :], default=0) if step.backward_peak_bytes else 0,
        held_bytes=held,
    )


def _blocks(step: StepPeak, placed: Collection[tuple[str, str]], relays: Collection[HandedOn]) -> Iterator[Life]:
    """All that is allocated outside of the arena, what is handed on as the blocks that it is handed on in."""
    handed = {(relay.half, name) for relay in relays for name in relay.buffers}
    lives = {(life.where, life.name): life for life in step.lives}
    for life in step.lives:
        if (life.where, life.name) not in handed and (life.where, life.name) not in placed:
            yield life
    for relay in relays:
        first, last = lives[relay.half, relay.buffers[0]], lives[relay.half, relay.buffers[-1]]
        yield replace(first, size_bytes=relay.size_bytes, death=last.death)
