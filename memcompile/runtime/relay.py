"""Blocks that buffers of lowered code hand on to each other while one half of a step runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memcompile.runtime.storage import Ints, view_of

Allocate = Callable[[Ints, Ints, torch.dtype], Tensor]


@dataclass(frozen=True, slots=True)
class Turn:
    """A buffer's turn in a relay of its half: which ``relay``, and the bytes of its block. The ``first`` buffer allocates the
    block, the ``last`` takes it along."""

    relay: int
    size_bytes: int
    first: bool = False
    last: bool = False


class Relays:
    """The blocks of one run of one half; what is under way dies with it."""

    __slots__ = ("allocate", "blocks")

    def __init__(self, allocate: Allocate) -> None:
        self.allocate = allocate
        self.blocks: dict[int, Tensor] = {}

    def take(self, turn: Turn, size: Ints, stride: Ints, dtype: torch.dtype) -> Tensor:
        """The buffer, in the block whose turn it is."""
        if turn.first:
            self.blocks[turn.relay] = self.allocate((turn.size_bytes,), (1,), torch.uint8)
        block = self.blocks.pop(turn.relay) if turn.last else self.blocks[turn.relay]
        return view_of(block.view(dtype), size, stride, 0)
