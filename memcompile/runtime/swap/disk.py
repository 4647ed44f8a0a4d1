"""The disk tier: tensors as blocks of one file, each with its sum, written and read by the store's own threads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from torch import Tensor

from memcompile.errors import SwapCorruptedError, SwapTicketError, TierFullError
from memcompile.runtime.swap.checksum import MOST_BYTES, PAGE_BYTES, block_sum
from memcompile.runtime.swap.extents import Extents
from memcompile.runtime.swap.file import SwapFile, aligned_memory
from memcompile.runtime.swap.memory import HostMemory, Layout, check_destination, layout_of
from memcompile.runtime.swap.requests import Request, Scratch, Workers
from memcompile.runtime.swap.tiers import DiskTier

BLOCK_BYTES = 4 * 1024**2
THREADS = 2
GROWTH_BYTES = 64 * 1024**2
"""The file grows by at least this much, where there is room."""
DIRECT_BYTES = 256 * 1024
"""From this size on a tensor is written from where it is; its unaligned ends stay in memory."""


@dataclass(frozen=True, slots=True)
class Block:
    """``length`` bytes from ``start`` of the tensor on, in ``padded`` bytes at ``offset`` of the file."""

    start: int
    length: int
    offset: int

    @property
    def padded(self) -> int:
        """Whole pages."""
        return _pages(self.length)


@dataclass(eq=False, slots=True)
class Record:
    """A tensor on disk. ``edges``: (start, bytes) that stay in memory, less than two pages."""

    layout: Layout
    blocks: list[Block]
    edges: list[tuple[int, bytes]]
    sums: list[int]
    write: Request
    reads: dict[int, list[Request]] = field(default_factory=dict)
    dropped: bool = False

    @property
    def requests(self) -> list[Request]:
        """All that was asked for."""
        return [self.write, *(request for reads in list(self.reads.values()) for request in list(reads))]


class DiskStore:
    """A file of at most ``tier.capacity_bytes`` and its threads. Raises `TierUnavailableError`, `TierFullError`.

    The threads do not know the store: when the last ticket and the engine are gone, it dies and they end.
    """

    name = "disk"

    def __init__(
        self, tier: DiskTier, *, threads: int = THREADS, block_bytes: int = BLOCK_BYTES, direct: bool = True
    ) -> None:
        if block_bytes % PAGE_BYTES or not 0 < block_bytes <= MOST_BYTES:
            raise ValueError(f"a block is whole pages, at most {MOST_BYTES} bytes")
        self.tier, self.block_bytes = tier, block_bytes
        self.file = SwapFile(tier.directory, direct=direct)
        self.workers = Workers(self.file.name, threads, block_bytes, self.file.close)
        self.staging_bytes = threads * block_bytes
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
        memory = HostMemory(tensor, layout.size_bytes)
        lead = self._lead_bytes(memory.address, layout.size_bytes)
        end = layout.size_bytes if lead is None else lead + (layout.size_bytes - lead) // PAGE_BYTES * PAGE_BYTES
        starts = range(lead or 0, end, self.block_bytes)
        lengths = [min(self.block_bytes, end - start) for start in starts]
        edges = [(start, memory.piece(start, stop - start).tobytes()) for start, stop in ((0, lead or 0), (end, layout.size_bytes))]
        offsets = self._place([_pages(length) for length in lengths])
        blocks = [Block(*item) for item in zip(starts, lengths, offsets, strict=True)]
        sums = [0] * len(blocks)
        request = Request(_Write(self.file, blocks, sums, memory).move, len(blocks), is_read=False)
        self.workers.submit(request)
        return Record(layout, blocks, [edge for edge in edges if edge[1]], sums, request)

    def wait_written(self, record: Record) -> None:
        """Return when the tensor is on disk. Raises what went wrong."""
        self.workers.wait(record.write)

    def read(self, record: Record, dest: Tensor) -> None:
        """Start to read into ``dest``, which is kept alive meanwhile, once the write is through."""
        check_destination(record.layout, dest)
        memory = HostMemory(dest, record.layout.size_bytes)
        request = Request(_Read(self.file, record, memory).move, len(record.blocks), is_read=True)
        for start, edge in record.edges:
            memory.piece(start, len(edge)).data[:] = edge
        with self._lock:
            known = record.reads.setdefault(memory.address, [])
            known[:] = [*(other for other in known if not other.done.is_set()), request]
        self.workers.submit(request, after=record.write)

    def wait_read(self, record: Record, dest: Tensor) -> None:
        """Return when ``dest`` holds what was written. Raises what went wrong; `SwapTicketError` where nothing was asked for."""
        with self._lock:
            requests = record.reads.get(dest.data_ptr(), [])
        if not requests:
            raise SwapTicketError("nothing is being read into this destination")
        try:
            for request in requests[:-1]:
                request.done.wait()
            self.workers.wait(requests[-1])
            if record.write.failure is not None:
                self.workers.wait(record.write)
        finally:
            with self._lock:
                record.reads.pop(dest.data_ptr(), None)

    def drop(self, record: Record) -> None:
        """Nobody will read it any more. Takes no lock: finalizers call this, from any thread."""
        record.dropped = True
        for request in record.requests:
            request.cancelled = True
        self._garbage.put(record)

    def reserve(self, size_bytes: int) -> None:
        """Take ``size_bytes`` of the disk now. Raises `TierFullError`."""
        with self._lock:
            self._reclaim()
            missing = _pages(size_bytes) - self._extents.free_bytes
            if missing > 0:
                self._grow(missing, missing)

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

    def _lead_bytes(self, address: int, size_bytes: int) -> int | None:
        """Bytes before the first address that the file takes as it is; None where the tensor is copied as a whole."""
        return -address % self.file.alignment_bytes if size_bytes >= DIRECT_BYTES else None

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
    file: SwapFile
    blocks: list[Block]
    sums: list[int]
    memory: HostMemory

    def move(self, index: int, scratch: Scratch) -> None:
        block = self.blocks[index]
        data = self.memory.piece(block.start, block.length)
        if not self.file.takes(self.memory.address + block.start, block.length):
            data = scratch.get(aligned_memory, block.padded)
            self.memory.load(block.start, data[: block.length])
            data[block.length :] = 0
        self.sums[index] = block_sum(data)
        self.file.write(data, block.offset)


@dataclass(frozen=True, slots=True)
class _Read:
    file: SwapFile
    record: Record
    memory: HostMemory

    def move(self, index: int, scratch: Scratch) -> None:
        block = self.record.blocks[index]
        if self.record.write.failure is not None:
            return  # who waits for the read hears of it
        staged = not self.file.takes(self.memory.address + block.start, block.length)
        data = scratch.get(aligned_memory, block.padded) if staged else self.memory.piece(block.start, block.length)
        self.file.read(data, block.offset)
        if block_sum(data) != self.record.sums[index]:
            raise SwapCorruptedError(self.file.name, f"block {index} of {len(self.record.blocks)} has another checksum")
        if staged:
            self.memory.store(block.start, data[: block.length])


def _pages(length: int) -> int:
    return -(-length // PAGE_BYTES) * PAGE_BYTES
