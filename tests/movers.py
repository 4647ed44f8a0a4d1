"""Movers that hold copies in memory, for tests of what is around them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class LazyMover:
    """Reads and writes as late as it may: what leaves is read when its memory is given up, what comes back is garbage until it
    is waited for. Whoever uses memory too early or too late gets wrong numbers.

    ``log``: what happened, as (step, number of the copy). ``held``: the copies whose tickets are alive.
    """

    log: list[tuple[str, int]] = field(default_factory=list)
    held: dict[int, Tensor | None] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)

    def out(self, tensor: Tensor, tier: str) -> Tensor:
        number = len(self.log)
        self.log.append(("out", number))
        array = np.array([number])
        weakref.finalize(array, self.held.pop, number, None)
        self.held[number], self.leaving[number] = None, tensor
        return torch.from_numpy(array)

    def out_wait(self, ticket: Tensor) -> None:
        number = int(ticket)
        self.log.append(("gone", number))
        self.held[number] = self.leaving.pop(number).clone()

    def into(self, ticket: Tensor, dest: Tensor) -> None:
        self.log.append(("back", int(ticket)))
        dest.view(torch.uint8).fill_(255)

    def into_wait(self, ticket: Tensor, dest: Tensor) -> None:
        self.log.append(("need", int(ticket)))
        copy = self.held[int(ticket)]
        assert copy is not None, "it came back before it was gone"
        dest.copy_(copy)
