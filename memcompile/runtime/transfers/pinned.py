"""A pool of pinned host memory: at most so many bytes, the buffers of one step are used again in the next."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memcompile.errors import TierFullError, TierUnavailableError
from memcompile.runtime.transfers.memory import aligned_memory

Allocate = Callable[[int], tuple[Tensor, Callable[[], None]]]
GRAIN_BYTES = 64 * 1024
SLACK = 1.25
"""A buffer serves tensors down to this share below its size."""


@dataclass(eq=False, slots=True)
class PinnedBuffer:
    """Pinned bytes. ``last``: the event of the last copy from or to it (CUDA)."""

    bytes: Tensor
    free: Callable[[], None]
    last: Any = None


class PinnedPool:
    """Buffers of at most ``capacity_bytes`` together. Not thread-safe.

    ``allocate``: new memory of a size, and the function that frees it.
    """

    def __init__(self, capacity_bytes: int, allocate: Allocate | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.allocated_bytes = 0
        self._allocate = allocate or registered
        self._idle: list[PinnedBuffer] = []

    @property
    def idle_bytes(self) -> int:
        """Bytes of the buffers that nobody has."""
        return sum(len(buffer.bytes) for buffer in self._idle)

    def take(self, size_bytes: int) -> PinnedBuffer:
        """A buffer of at least that size. Raises `TierFullError`; idle buffers make room."""
        fitting = [b for b in self._idle if size_bytes <= len(b.bytes) <= max(size_bytes * SLACK, GRAIN_BYTES)]
        if fitting:
            best = min(fitting, key=lambda b: len(b.bytes))
            self._idle.remove(best)
            return best
        rounded = max(-(-size_bytes // GRAIN_BYTES), 1) * GRAIN_BYTES
        missing = self.allocated_bytes - self.idle_bytes + rounded - self.capacity_bytes
        if missing > 0:
            raise TierFullError("swap to the host", missing, f"its {self.capacity_bytes} bytes are used up")
        while self.allocated_bytes + rounded > self.capacity_bytes:
            self._release(self._idle[0])
        buffer = PinnedBuffer(*self._allocate(rounded))
        self.allocated_bytes += rounded
        return buffer

    def give(self, buffer: PinnedBuffer) -> None:
        """A buffer is idle again. Copies that still run are known to it (``last``)."""
        self._idle.append(buffer)

    def release(self) -> None:
        """Free all idle buffers."""
        while self._idle:
            self._release(self._idle[0])

    def _release(self, buffer: PinnedBuffer) -> None:
        if buffer.last is not None:
            buffer.last.synchronize()
        self._idle.remove(buffer)
        self.allocated_bytes -= len(buffer.bytes)
        buffer.free()


def registered(size_bytes: int) -> tuple[Tensor, Callable[[], None]]:
    """Pinned memory of exactly that size: torch's own pool would round it up to a power of two."""
    memory = torch.from_numpy(aligned_memory(size_bytes))
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = runtime.cudaHostRegister(memory.data_ptr(), size_bytes, 0)
    if int(status) != 0:
        fix = "Raise the limit of locked memory (ulimit -l), or make swap={'host': ...} smaller."
        raise TierUnavailableError("swap to the host", f"{size_bytes} bytes cannot be pinned ({status})", fix)
    return memory, functools.partial(_unregister, memory)


def _unregister(memory: Tensor) -> None:
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    runtime.cudaHostUnregister(memory.data_ptr())
