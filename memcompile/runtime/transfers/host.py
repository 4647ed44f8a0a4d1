"""The host tier: tensors of a GPU in pinned memory, copied on streams of their own. Nothing here waits on the CPU."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from memcompile.errors import SwapTicketError, TierUnavailableError
from memcompile.runtime.transfers.cuda import flat_bytes, start_copy
from memcompile.runtime.transfers.memory import TensorLayout, check_destination, layout_of
from memcompile.runtime.transfers.pinned import PinnedBuffer, PinnedPool
from memcompile.runtime.transfers.tiers import HostTier


@dataclass(eq=False, slots=True)
class HostRecord:
    """A tensor in host memory. ``reads``: by address, the event of a copy back and its destination."""

    layout: TensorLayout
    buffer: PinnedBuffer
    device: torch.device
    written: Any
    source: Tensor | None
    reads: dict[int, tuple[Any, Tensor]] = field(default_factory=dict)


class HostStore:
    """Pinned memory of at most ``tier.capacity_bytes``. Raises `TierUnavailableError` without a GPU."""

    def __init__(self, tier: HostTier, pool: PinnedPool | None = None) -> None:
        self.tier = tier
        self._pool = pool or PinnedPool(tier.capacity_bytes)
        self._lock = threading.Lock()
        self._garbage: SimpleQueue[HostRecord] = SimpleQueue()
        self._copies: list[tuple[Any, Tensor]] = []  # of dropped records: what has to outlive a copy
        self._closed = False
        weakref.finalize(self, _end, self._pool, self._garbage).atexit = False

    def write(self, tensor: Tensor) -> HostRecord:
        """Start the copy to the host after what the current stream has been given."""
        if not _on_gpu(tensor):
            fix = "Swap tensors of the CPU to disk: swap={'disk': '/scratch:64GiB'}."
            raise TierUnavailableError("swap to the host", f"the tensor is on {tensor.device}, which is host memory", fix)
        layout = layout_of(tensor)
        with self._lock:
            self._check_open()
            self._reclaim()
            buffer = self._pool.take(layout.size_bytes)
        try:
            source, dest = flat_bytes(tensor, layout.size_bytes), buffer.bytes[: layout.size_bytes]
            last = () if buffer.last is None else (buffer.last,)
            written = start_copy(dest, source, tensor.device, "out", *last)
        except BaseException:
            with self._lock:
                self._pool.give(buffer)
            raise
        buffer.last = written
        return HostRecord(layout, buffer, tensor.device, written, tensor)

    def wait_written(self, record: HostRecord) -> None:
        """What the current stream is given from now on starts after the copy."""
        torch.cuda.current_stream(record.device).wait_event(record.written)
        record.source = None

    def read(self, record: HostRecord, dest: Tensor) -> None:
        """Start the copy to ``dest`` after what the current stream has been given, and after the copy out."""
        self._check_open()
        check_destination(record.layout, dest)
        if not _on_gpu(dest):
            fix = "Read it back into a tensor of the GPU."
            raise TierUnavailableError("swap to the host", f"the destination is on {dest.device}", fix)
        size_bytes = record.layout.size_bytes
        source = record.buffer.bytes[:size_bytes]
        done = start_copy(flat_bytes(dest, size_bytes), source, dest.device, "in", record.written)
        record.buffer.last = done
        with self._lock:
            record.reads[dest.data_ptr()] = (done, dest)

    def wait_read(self, record: HostRecord, dest: Tensor) -> None:
        """What the current stream is given from now on finds the bytes in ``dest``."""
        with self._lock:
            found = record.reads.pop(dest.data_ptr(), None)
        if found is None:
            raise SwapTicketError("nothing is being read into this destination")
        torch.cuda.current_stream(dest.device).wait_event(found[0])

    def drop(self, record: HostRecord) -> None:
        """Nobody will read it any more. Takes no lock: finalizers call this, from any thread."""
        self._garbage.put(record)

    @property
    def live_bytes(self) -> int:
        """Bytes of the buffers that tensors have."""
        with self._lock:
            self._reclaim()
            return self._pool.allocated_bytes - self._pool.idle_bytes

    def close(self) -> None:
        """Give the pinned memory back."""
        with self._lock:
            self._closed = True
            self._reclaim()
            self._pool.release()

    def _check_open(self) -> None:
        if self._closed:
            raise TierUnavailableError("swap to the host", "it was closed", "Compile the model again.")

    def _reclaim(self) -> None:
        while True:
            try:
                record = self._garbage.get_nowait()
            except Empty:
                break
            if record.source is not None:
                self._copies.append((record.written, record.source))
            self._copies += record.reads.values()
            self._pool.give(record.buffer)
        self._copies = [copy for copy in self._copies if not copy[0].query()]


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _end(pool: PinnedPool, garbage: SimpleQueue[HostRecord]) -> None:
    """The store is gone, and so are all tickets: what they had is freed with the rest."""
    while not garbage.empty():
        pool.give(garbage.get_nowait().buffer)
    pool.release()
