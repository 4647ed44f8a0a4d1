"""The places of an arena against the lowered code itself: follows every name from its allocation to its deletion.

Shares no code with the replay that lifetimes come from, nor with the packing.
"""

from __future__ import annotations

from collections.abc import Mapping

from memcompile.codegen.trace import GraphTrace
from memcompile.verify import VerificationError

Range = tuple[int, int]


def check_places(
    forward: GraphTrace,
    backward: GraphTrace | None,
    offsets: Mapping[tuple[str, str], int],
    height: int,
    *,
    num_user_outputs: int,
    num_symbols: int = 0,
) -> None:
    """No two buffers of an arena that have names at the same time share a byte, and nothing in it outlives the step.

    ``offsets``: (half, buffer) -> bytes. Arguments of the halves as in ``trace.step_peak``. Raises VerificationError.
    """
    used = _run(forward, "forward", {}, offsets, height)
    handed = {index: used[name] for index, name in enumerate(forward.outputs) if name in used}
    for index, place in handed.items():
        if index < num_user_outputs or backward is None:
            raise VerificationError(f"output {index} of the forward lies in the arena, at {place[0]}, and the user holds it")
    if backward is None:
        return
    received: dict[str, Range] = {}
    for position, (name, _) in enumerate(backward.inputs):
        index = num_user_outputs + position - num_symbols
        if position >= num_symbols and index in handed:
            received[name] = handed[index]
    left = _run(backward, "backward", received, offsets, height)
    for name in backward.outputs:
        if name in left:
            raise VerificationError(f"{name}, a gradient, lies in the arena, at {left[name][0]}")


def _run(
    trace: GraphTrace, half: str, used: Mapping[str, Range], offsets: Mapping[tuple[str, str], int], height: int
) -> dict[str, Range]:
    """Name -> addresses at the end of a half."""
    names = dict(used)
    for event in trace.events:
        if event.kind == "alloc":
            names.pop(event.name, None)
            start = offsets.get((half, event.name))
            if start is None:
                continue
            end = start + event.size_bytes
            if start < 0 or end > height:
                raise VerificationError(f"{event.name} of the {half} at [{start}, {end}) leaves the arena of {height} bytes")
            for other, (low, high) in names.items():
                if low < end and start < high:
                    raise VerificationError(
                        f"{event.name} of the {half} at [{start}, {end}) overlaps {other} at [{low}, {high})"
                    )
            names[event.name] = (start, end)
        elif event.kind == "alias" and event.base in names:
            names[event.name] = names[event.base]
        elif event.kind in ("alias", "free"):
            names.pop(event.name, None)
    return names
