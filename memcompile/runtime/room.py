"""The budget of one graph in bytes: resolved once, asked by whoever plans, lowers, checks or reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from memcompile.machine.device import free_bytes
from memcompile.options import Budget
from memcompile.runtime.ledger import Outside
from memcompile.solvers.calls.choose import LEAST, Share
from memcompile.step.trace import StepPeak


@dataclass(frozen=True, slots=True)
class Room:
    """``total_bytes``: the budget of the step. ``outside``: what is alive beside the graph and counts towards it. ``share``:
    what of it the graph may take, where its step was planned."""

    total_bytes: int
    outside: Outside
    share: Share | None = None

    @property
    def graph_bytes(self) -> int:
        """What the budget leaves to the graph, all that is alive at its entry included."""
        if self.share is not None and self.share.peak_bytes is not None:
            return self.share.peak_bytes
        return max(1, self.total_bytes - self.outside.bytes)


class Rooms:
    """The room of one graph, resolved by whoever first knows its peak without a plan and what is alive at its entry.

    ``room``: None before that, and without a budget. ``outside``, ``share``: see `Room`. ``total_bytes``: what a share of the
    step's peak came to for this model, as far as is known; None: nothing is. While others of its step are not known, the graph
    takes what it has to.
    """

    def __init__(
        self, budget: Budget, outside: Outside, device: torch.device, share: Share | None = None, total_bytes: int | None = None
    ) -> None:
        self.budget, self.outside, self.device, self.share, self.total_bytes = budget, outside, device, share, total_bytes
        self.room: Room | None = None

    def resolve(self, unplanned: Callable[[], tuple[int, int]]) -> Room | None:
        """``unplanned()``: peak of the graph without a plan and what is alive at its entry; only asked where the budget is a
        share of it, or of what the device has free."""
        if self.room is None and (total := self._total(unplanned)) is not None:
            self.room = Room(total, self.outside, self.share)
        return self.room

    def _total(self, unplanned: Callable[[], tuple[int, int]]) -> int | None:
        budget = self.budget
        peak, entry = unplanned() if budget.needs_unplanned_peak or budget.auto else (0, 0)
        peak += self.outside.bytes
        free = free_bytes(self.device) if budget.auto else 0
        total = budget.resolve(unplanned_peak_bytes=peak, free_bytes=free, entry_bytes=entry)
        if total is None or not budget.needs_unplanned_peak:
            return total
        if self.share == LEAST:
            return peak
        if self.share is not None:
            return peak if self.total_bytes is None else self.total_bytes
        return max(total, self.total_bytes or 0)

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
