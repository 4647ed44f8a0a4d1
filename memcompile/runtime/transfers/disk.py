"""The disk tier: tensors as blocks of one file, each with its sum, written and read by the store's own threads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np
from torch import Tensor

from memcompile.errors import SwapCorruptedError, SwapTicketError, TierFullError
from memcompile.runtime.transfers.checksum import MOST_BYTES, block_sum
from memcompile.runtime.transfers.extents import Extents
from memcompile.runtime.transfers.file import NamelessFile
from memcompile.runtime.transfers.memory import (
    PAGE_BYTES,
    Memory,
    TensorLayout,
    check_destination,
    layout_of,
    memory_of,
    whole_pages,
)
from memcompile.runtime.transfers.requests import Scratch, TransferRequest, Workers
from memcompile.runtime.transfers.tiers import DiskTier

BLOCK_BYTES = 4 * 1024**2
THREADS = 2
GROWTH_BYTES = 64 * 1024**2
"""The file grows by at least this much, where there is room."""
DIRECT_BYTES = 256 * 1024
"""From this size on a tensor is written from where it is; its unaligned ends stay in memory."""


@dataclass(frozen=True, slots=True)
class FileBlock:
    """``length`` bytes from ``start`` of the tensor on, in ``padded`` bytes at ``offset`` of the file."""

    start: int
    length: int
    offset: int

    @property
    def padded(self) -> int:
        """Whole pages."""
        return whole_pages(self.length)


@dataclass(eq=False, slots=True)
class Record:
    """A tensor on disk. ``edges``: (start, bytes) that stay in memory, less than two pages."""

    layout: TensorLayout
    blocks: list[FileBlock]
    edges: list[tuple[int, bytes]]
    sums: list[int]
    write: TransferRequest
    reads: dict[int, list[TransferRequest]] = field(default_factory=dict)
    dropped: bool = False

    @property
    def requests(self) -> list[TransferRequest]:
        """All that was asked for."""
        return [self.write, *(request for reads in list(self.reads.values()) for request in list(reads))]


class DiskStore:
    """A file of at most ``tier.capacity_bytes`` and its threads. Raises `TierUnavailableError`, `TierFullError`.

    The threads do not know the store: when the last ticket and the engine are gone, it dies and they end.
    """

    def __init__(self, tier: DiskTier, *, threads: int = THREADS, block_bytes: int = BLOCK_BYTES, direct: bool = True) -> None:
        if block_bytes % PAGE_BYTES or not 0 < block_bytes <= MOST_BYTES:
            raise ValueError(f"a block is whole pages, at most {MOST_BYTES} bytes")
        self.tier, self.block_bytes = tier, block_bytes
        self.file = NamelessFile(tier.directory, direct=direct)
        self.workers = Workers(self.file.name, threads, block_bytes, self.file.close)
        self._lock = threading.Lock()
        self._extents = Extents()
        self._garbage: SimpleQueue[Record] = SimpleQueue()
        self._zombies: list[Record] = []
        weakref.finalize(self, self.workers.stop)

    # --- what the engine calls ---

    def write(self, tensor: Tensor) -> Record:
        """Start to write ``tensor``, which is kept alive meanwhile."""
        self.workers.check_alive()
        layout = layout_of(tensor)
        memory = memory_of(tensor, layout.size_bytes)
        start, stop = self._wholewhole_pages(memory, layout.size_bytes)
        starts = range(start, stop, self.block_bytes)
        lengths = [min(self.block_bytes, stop - start) for start in starts]
        edges = [
            (first, memory.bytes_at(first, last)) for first, last in ((0, start), (stop, layout.size_bytes)) if first < last
        ]
        offsets = self._place([whole_pages(length) for length in lengths])
        blocks = [FileBlock(*item) for item in zip(starts, lengths, offsets, strict=True)]
        sums = [0] * len(blocks)
        request = TransferRequest(_Write(self.file, blocks, sums, memory).move, len(blocks), is_read=False)
        record = Record(layout, blocks, edges, sums, request)
        try:
            self.workers.submit(request)
        except BaseException:
            request.done.set()
            self.drop(record)
            raise
        return record

    def wait_written(self, record: Record) -> None:
        """Return when the tensor is on disk. Raises what went wrong."""
        self.workers.wait(record.write)

    def read(self, record: Record, dest: Tensor) -> None:
        """Start to read into ``dest``, which is kept alive meanwhile, once the write is through."""
        self.workers.check_alive()
        check_destination(record.layout, dest)
        memory = memory_of(dest, record.layout.size_bytes)
        request = TransferRequest(_Read(self.file, record, memory).move, len(record.blocks), is_read=True)
        for start, edge in record.edges:
            memory.store(start, np.frombuffer(edge, dtype=np.uint8))
        self.workers.submit(request, after=record.write)
        with self._lock:
            known = record.reads.setdefault(dest.data_ptr(), [])
            known[:] = [*(other for other in known if not other.done.is_set()), request]

    def wait_read(self, record: Record, dest: Tensor) -> None:
        """Return when ``dest`` holds what was written. Raises what went wrong, `SwapTicketError` if nobody asked."""
        with self._lock:
            requests = record.reads.get(dest.data_ptr(), [])
        if not requests:
            raise SwapTicketError("nothing is being read into this destination")
        for request in requests:
            self.workers.settle(request)
        with self._lock:
            record.reads.pop(dest.data_ptr(), None)
        for failed in (record.write, requests[-1]):
            self.workers.wait(failed)

    def drop(self, record: Record) -> None:
        """Nobody will read it any more. Takes no lock: finalizers call this, from any thread."""
        record.dropped = True
        for request in record.requests:
            request.cancelled = True
        self._garbage.put(record)

    @property
    def live_bytes(self) -> int:
        """Bytes of the file that tensors have."""
        with self._lock:
            self._reclaim()
            return self._extents.end_bytes - self._extents.free_bytes

    def close(self) -> None:
        """End the threads and give the file back, whatever is under way."""
        self.workers.close()

    # --- places in the file ---

    def _wholewhole_pages(self, memory: Memory, size_bytes: int) -> tuple[int, int]:
        """The part of a tensor that goes to the file."""
        lead = memory.lead_bytes(self.file.alignment_bytes) if size_bytes >= DIRECT_BYTES else None
        return (0, size_bytes) if lead is None else (lead, lead + (size_bytes - lead) // PAGE_BYTES * PAGE_BYTES)

    def _place(self, lengths: Sequence[int]) -> list[int]:
        try:
            return self._placed(lengths)
        except TierFullError:
            gc.collect()  # tickets in cycles, such as the traceback of an exception
            with self._lock:
                self._reclaim()
                zombies = list(self._zombies)
            for request in (request for record in zombies for request in record.requests):
                request.done.wait()
            return self._placed(lengths)

    def _placed(self, lengths: Sequence[int]) -> list[int]:
        with self._lock:
            self._reclaim()
            offsets, missing = self._extents.take(lengths)
            if missing:
                self._grow(missing, max(missing, GROWTH_BYTES))
                offsets, _ = self._extents.take(lengths)
            return offsets

    def _grow(self, needed: int, wanted: int) -> None:
        end = self._extents.end_bytes
        room = self.tier.capacity_bytes // PAGE_BYTES * PAGE_BYTES - end
        if needed > room:
            raise TierFullError(self.file.name, needed - room, f"it may have {self.tier.capacity_bytes} bytes")
        length = min(wanted, room)
        try:
            self.file.grow(end, length)
        except TierFullError:
            if length == needed:
                raise
            length = needed
            self.file.grow(end, length)
        self._extents.grow(length)

    def _reclaim(self) -> None:
        """Free the places of dropped records, once nothing is moved there any more."""
        while True:
            try:
                self._zombies.append(self._garbage.get_nowait())
            except Empty:
                break
        for record in self._zombies[:]:
            if all(request.done.is_set() for request in record.requests):
                self._zombies.remove(record)
                for block in record.blocks:
                    self._extents.give(block.offset, block.padded)


@dataclass(frozen=True, slots=True)
class _Write:
    file: NamelessFile
    blocks: list[FileBlock]
    sums: list[int]
    memory: Memory

    def move(self, index: int, scratch: Scratch) -> None:
        block = self.blocks[index]
        data = self.memory.view(block.start, block.length, self.file.alignment_bytes)
        if data is None:
            data = scratch.get(type(self.memory).staging, block.padded)
            self.memory.load(block.start, data[: block.length])  # what follows is written, summed and read as it is
        self.sums[index] = block_sum(data)
        self.file.write(data, block.offset)


@dataclass(frozen=True, slots=True)
class _Read:
    file: NamelessFile
    record: Record
    memory: Memory

    def move(self, index: int, scratch: Scratch) -> None:
        if self.record.write.failure is not None:
            return  # who waits for the read hears of it
        block = self.record.blocks[index]
        view = self.memory.view(block.start, block.length, self.file.alignment_bytes)
        data = scratch.get(type(self.memory).staging, block.padded) if view is None else view
        self.file.read(data, block.offset)
        if block_sum(data) != self.record.sums[index]:
            raise SwapCorruptedError(self.file.name, f"block {index} of {len(self.record.blocks)} has another checksum")
        if view is None:
            self.memory.store(block.start, data[: block.length])
