"""The arena of one graph, from its lowered code to its report: slots as each half is lowered, offsets once both are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch

from memcompile.codegen.inductor.arena_lines import arena_refusal, use_slots
from memcompile.passes.arena.allocate import ArenaPlan, plan_arena
from memcompile.passes.arena.figure import ArenaReport, PlacedBuffer
from memcompile.runtime.arena import BLOCKS, GraphArena
from memcompile.runtime.relay import Turn
from memcompile.step.trace import GraphTrace, StepPeak

ArenaScope = Literal["step", "graph", "off"]
Rewrite = Callable[[Any, GraphTrace], None]


class Placing:
    """Collects the slots of a graph's halves. ``refused``: why there is no arena; empty when there is one."""

    def __init__(self, device: torch.device, scope: ArenaScope, refused: str = "") -> None:
        self.scope, self.refused = scope, refused or ("switched off" if scope == "off" else "")
        self.arena = GraphArena(device)
        self.key = BLOCKS.add(self.arena)
        self.traces: dict[str, GraphTrace] = {}

    def __call__(self, graph: Any, kind: str) -> Rewrite | None:
        """How to rewrite the code of a graph that is being lowered; None: leave it as it is."""
        self.refused = self.refused or arena_refusal(graph)
        return None if self.refused else functools.partial(self._rewrite, graph, kind)

    def _rewrite(self, graph: Any, kind: str, wrapper: Any, trace: GraphTrace) -> None:
        half = "backward" if kind == "backward" else "forward"
        self.traces[kind] = trace
        self.arena.slots[half] = use_slots(wrapper, graph, self.key, half, self.arena.device)

    def place(self, step: StepPeak, limit_bytes: int | None, held_limit_bytes: int | None, slack_bytes: int = 0) -> ArenaPlan:
        """Choose the offsets. ``step``: the replay of ``traces``; the limits: see ``plan_arena``."""
        plan = plan_arena(
            step,
            {(half, slot.name) for half, slots in self.arena.slots.items() for slot in slots},
            limit_bytes,
            device_type=self.arena.device.type,
            across=self.scope == "step",
            held_limit_bytes=held_limit_bytes,
            slack_bytes=slack_bytes,
        )
        self.arena.place(plan.height, plan.offsets, plan.room_bytes, turns_of(plan))
        return plan

    def report(self, plan: ArenaPlan, step: StepPeak, before: StepPeak) -> ArenaReport:
        """``step``: what was placed; ``before``: the code as it would run without an arena."""
        lives = {(life.where, life.name): life for life in step.lives}
        placed = tuple(
            PlacedBuffer(f"{half}/{name}", life.birth, life.death or step.end, life.size_bytes, offset)
            for (half, name), offset in plan.offsets.items()
            for life in (lives[half, name],)
        )
        return ArenaReport(
            self.scope,
            height_bytes=plan.height,
            lower_bound_bytes=plan.lower_bound,
            calls_before=sum(life.birth > 0 for life in before.lives),
            calls_after=plan.outside_count,
            placed_bytes=plan.placed_bytes,
            outside_bytes=plan.outside_bytes,
            handed_bytes=plan.handed_bytes,
            method=plan.method,
            placed=placed,
        )


def turns_of(plan: ArenaPlan) -> dict[tuple[str, str], Turn]:
    """The relays of a plan as each of their buffers sees them."""
    turns = {}
    for number, relay in enumerate(plan.relays):
        for name in relay.buffers:
            first, last = name == relay.buffers[0], name == relay.buffers[-1]
            turns[relay.half, name] = Turn(number, relay.size_bytes, first, last)
    return turns
