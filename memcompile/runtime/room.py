"""The budget of one graph in bytes: resolved once, asked by whoever plans, lowers, checks or reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from memcompile.machine.device import free_bytes
from memcompile.options import Budget
from memcompile.runtime.ledger import Outside
from memcompile.step.trace import StepPeak


@dataclass(frozen=True, slots=True)
class Room:
    """``total_bytes``: the budget of the step. ``outside``: what is alive beside the graph and counts towards it."""

    total_bytes: int
    outside: Outside

    @property
    def graph_bytes(self) -> int:
        """What the budget leaves to the graph, all that is alive at its entry included."""
        return max(1, self.total_bytes - self.outside.bytes)

    @classmethod
    def of(
        cls, budget: Budget, unplanned: Callable[[], tuple[int, int]], outside: Outside, device: torch.device
    ) -> Room | None:
        """None without a budget. ``unplanned()``: peak of the graph without a plan and what is alive at its entry; only asked
        where the budget is a share of it, or of what the device has free."""
        peak, entry = unplanned() if budget.needs_unplanned_peak or budget.auto else (0, 0)
        total = budget.resolve(
            unplanned_peak_bytes=peak + outside.bytes,
            free_bytes=free_bytes(device) if budget.auto else 0,
            entry_bytes=entry,
        )
        return None if total is None else cls(total, outside)


class Rooms:
    """The room of one graph, resolved by whoever first knows its peak without a plan and what is alive at its entry.

    ``room``: None before that, and without a budget. ``outside``: see `Room`.
    """

    def __init__(self, budget: Budget, outside: Outside, device: torch.device) -> None:
        self.budget, self.outside, self.device = budget, outside, device
        self.room: Room | None = None

    def resolve(self, unplanned: Callable[[], tuple[int, int]]) -> Room | None:
        """``unplanned()``: see `Room.of`."""
        if self.room is None:
            self.room = Room.of(self.budget, unplanned, self.outside, self.device)
        return self.room

    def left(self, unplanned: StepPeak) -> int:
        """Bytes that a budget leaves to the graph. ``unplanned``: its peak without a plan."""
        room = self.resolve(lambda: (unplanned.peak_bytes, unplanned.entry_bytes))
        assert room is not None, "nobody named a budget"
        return room.graph_bytes

    def known(self) -> Room | None:
        """The room, where it depends on no peak that nobody knows yet."""
        if self.room is None and not self.budget.needs_unplanned_peak and not self.budget.auto:
            return self.resolve(lambda: (0, 0))
        return self.room
