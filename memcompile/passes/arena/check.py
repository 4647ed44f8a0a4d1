"""The places of an arena against the lowered code itself: follows every name from its allocation to its deletion.

Shares no code with the replay that lifetimes come from, nor with the packing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memcompile.passes.arena.allocate import HandedOn
from memcompile.step.trace import GraphTrace
from memcompile.step.verify_values import VerificationError


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of the arena (``space`` 0), or of the block of a relay (from 1 on)."""

    space: int
    start: int
    end: int

    def overlaps(self, other: Range) -> bool:
        """Whether they share a byte."""
        return self.space == other.space and self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})" + (f" of relay {self.space}" if self.space else "")


def check_places(
    forward: GraphTrace,
    backward: GraphTrace | None,
    offsets: Mapping[tuple[str, str], int],
    height: int,
    relays: Sequence[HandedOn] = (),
) -> None:
    """No two buffers that have names at the same time share a byte, in the arena or in a relay, and nothing in these outlives
    the step.

    ``offsets``: (half, buffer) -> bytes. Which output becomes which input of the backward is read from the names of both.
    Raises VerificationError.
    """
    places = _Places(offsets, height, relays)
    used = places.run(forward, "forward", {})
    received: dict[str, tuple[Range, ...]] = {}
    wanted = [] if backward is None else [name for name, _ in backward.inputs]
    for index in reversed(range(len(forward.outputs))):  # what is returned and saved is saved by its last place
        buffer, node = forward.outputs[index], forward.output_nodes[index]
        if node in wanted:
            wanted.remove(node)
            if buffer in used:
                received[node] = used[buffer]
        elif buffer in used:
            where = " and ".join(map(str, used[buffer]))
            raise VerificationError(f"output {index} of the forward lies in the arena, at {where}, and the user holds it")
    if backward is None:
        return
    left = places.run(backward, "backward", received)
    for name in backward.outputs:
        if name in left:
            raise VerificationError(f"{name}, a gradient, lies in the arena, at {' and '.join(map(str, left[name]))}")


class _Places:
    def __init__(self, offsets: Mapping[tuple[str, str], int], height: int, relays: Sequence[HandedOn]) -> None:
        self.heights = [height, *(relay.size_bytes for relay in relays)]
        self.starts = {key: (0, offset) for key, offset in offsets.items()}
        for number, relay in enumerate(relays, 1):
            self.starts |= {(relay.half, name): (number, 0) for name in relay.buffers}

    def run(self, trace: GraphTrace, half: str, used: Mapping[str, tuple[Range, ...]]) -> dict[str, tuple[Range, ...]]:
        """Name -> its own place and those of what it holds, at the end of a half."""
        names = dict(used)
        for event in trace.events:
            if event.kind == "alloc":
                names.pop(event.name, None)
                if (place := self._place(half, event.name, event.size_bytes)) is None:
                    continue
                for other, taken in names.items():
                    if any(map(place.overlaps, taken)):
                        where = " and ".join(map(str, taken))
                        raise VerificationError(f"{event.name} of the {half} at {place} overlaps {other} at {where}")
                names[event.name] = (place,)
            elif event.kind == "hold" and event.base in names:
                names[event.name] = (*names.get(event.name, ()), *names[event.base])
            elif event.kind == "alias" and event.base in names:
                names[event.name] = names[event.base]
            elif event.kind in ("alias", "free"):
                names.pop(event.name, None)
        return names

    def _place(self, half: str, name: str, size_bytes: int) -> Range | None:
        if (half, name) not in self.starts:
            return None
        space, start = self.starts[half, name]
        place = Range(space, start, start + size_bytes)
        if start < 0 or place.end > self.heights[space]:
            raise VerificationError(f"{name} of the {half} at {place} leaves its {self.heights[space]} bytes")
        return place
