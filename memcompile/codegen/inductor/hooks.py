"""Where passes take part in lowering: in the order of the fused kernels, and in the lines of the wrapper."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from memcompile.codegen.inductor.scheduled import Scheduling
from memcompile.step.trace import GraphTrace

Place = Callable[[Any, str], Callable[[Any, GraphTrace], None] | None]
"""From a graph that is being lowered and its kind to a function that rewrites its wrapper; None: leave it as it is."""


@dataclass(frozen=True, slots=True)
class Hook:
    """``scheduling``: orders fused kernels; ``place``: rewrites what is allocated. Each is None for a pass that does
    not care."""

    scheduling: Scheduling | None = None
    place: Place | None = None


NO_HOOK = Hook()


def together(hooks: Iterable[Hook]) -> Hook:
    """One hook that is all of them; of each kind, one pass may have one."""
    found = tuple(hooks)
    scheduling = [hook.scheduling for hook in found if hook.scheduling is not None]
    place = [hook.place for hook in found if hook.place is not None]
    if len(scheduling) > 1 or len(place) > 1:
        raise AssertionError("two passes want the same place in Inductor")
    return Hook(next(iter(scheduling), None), next(iter(place), None))
