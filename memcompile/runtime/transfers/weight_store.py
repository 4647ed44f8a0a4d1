"""What holds weights outside of the device's memory: files that threads read ahead, or pinned memory of the host.

Unlike the swap engine's tiers a store is written once and read in every step, by several graphs: there are no tickets.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from memcompile.errors import OffloadError
from memcompile.runtime.transfers.file import PageFile
from memcompile.runtime.transfers.memory import PAGE_BYTES, Memory, memory_of, whole_pages
from memcompile.runtime.transfers.requests import Scratch, TransferRequest, Workers
from memcompile.runtime.transfers.sources import memory_for
from memcompile.runtime.transfers.weight import Weight
from memcompile.runtime.transfers.weight_files import CheckpointFile, WeightFile
from memcompile.solvers.transfers.link import Link

BLOCK_BYTES = 4 * 1024**2
THREADS = 2


class WeightStore(Protocol):
    """Where weights are. ``residents``: those that stay in memory between calls; ``link``: how fast it is, once measured."""

    name: str
    residents: Residents
    link: Link | None

    def start(self, weight: Weight, dest: Tensor) -> None:
        """Start to read into ``dest``, contiguous, which is kept alive meanwhile."""

    def wait(self, weight: Weight, dest: Tensor) -> None:
        """Return when ``dest`` may be read. Raises what went wrong."""

    def write(self, weight: Weight, value: Tensor) -> None:
        """Replace the weight. Raises `OffloadError` where it cannot be."""

    def close(self) -> None:
        """Give everything back."""


def read(weight: Weight, device: torch.device) -> Tensor:
    """The weight now, in new memory."""
    dest = memory_for(weight, device)
    weight.store.start(weight, dest)
    weight.store.wait(weight, dest)
    return dest


class Residents:
    """The weights of one model that stay in memory. Compiled graphs take turns: each drops what it did not plan for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Tensor] = {}

    def provide(self, weights: Sequence[Weight], device: torch.device) -> list[Tensor]:
        """Exactly ``weights``, in order; those that are missing are read."""
        with self._lock:
            keys = {weight.key for weight in weights}
            for key in [key for key, held in self._held.items() if key not in keys or held.device != device]:
                del self._held[key]
            missing = [weight for weight in weights if weight.key not in self._held]
            made = [(weight, memory_for(weight, device)) for weight in missing]
            for weight, dest in made:
                weight.store.start(weight, dest)
            for weight, dest in made:
                weight.store.wait(weight, dest)
            self._held.update((weight.key, dest) for weight, dest in made)
            return [self._held[weight.key] for weight in weights]

    def tensors(self) -> list[Tensor]:
        """What is held now."""
        return list(self._held.values())

    def drop(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._held.clear()


@dataclass(frozen=True, slots=True)
class FilePlace:
    """Byte ``offset`` of a file."""

    file: PageFile
    offset: int


class WeightFiles:
    """Files and the threads that read them. They end when the last weight is gone, and with them our own file."""

    name = "disk"
    link: Link | None

    def __init__(self, *, threads: int = THREADS, block_bytes: int = BLOCK_BYTES) -> None:
        self.residents, self.link = Residents(), None
        self.block_bytes = block_bytes
        self._files: list[PageFile] = []
        self._workers = Workers("weights", threads, block_bytes + PAGE_BYTES, partial(_close, self._files))
        self._lock = threading.Lock()
        self._reads: dict[int, TransferRequest] = {}
        weakref.finalize(self, self._workers.stop)

    def own_file(self, directory: Path) -> WeightFile:
        """A new nameless file in ``directory``. Raises `TierUnavailableError`."""
        file = WeightFile(directory)
        self._files.append(file)
        return file

    def open(self, path: Path) -> CheckpointFile:
        """A file that is only read. Raises `CheckpointError`."""
        file = CheckpointFile(path)
        self._files.append(file)
        return file

    def start(self, weight: Weight, dest: Tensor) -> None:
        """See `WeightStore`."""
        place = _file_place(weight)
        memory = memory_of(dest, weight.size_bytes)
        blocks = list(_blocks(place.offset, weight.size_bytes, self.block_bytes))
        request = TransferRequest(_Read(place, blocks, memory).move, len(blocks), is_read=True)
        address = dest.data_ptr()
        with self._lock:
            before = self._reads.get(address)
            self._reads[address] = request
        if before is not None:
            before.done.wait()  # of a step that ended in between
        self._workers.submit(request)

    def wait(self, weight: Weight, dest: Tensor) -> None:
        """See `WeightStore`."""
        with self._lock:
            request = self._reads.pop(dest.data_ptr(), None)
        if request is None:
            raise OffloadError(f"nothing is being read into the memory of {weight.name!r}", "This is a bug of memcompile.")
        self._workers.wait(request)

    def write(self, weight: Weight, value: Tensor) -> None:
        """See `WeightStore`."""
        place = _file_place(weight)
        if not isinstance(place.file, WeightFile):
            raise OffloadError(
                f"{weight.name!r} is read from the checkpoint {place.file.name}, which is not written to",
                "Restore the model (Offloaded.restore()), load the state, and offload it again.",
            )
        self.residents.drop()
        place.file.put(value, place.offset)

    def close(self) -> None:
        """See `WeightStore`."""
        self.residents.drop()
        self._workers.close()


def _close(files: list[PageFile]) -> None:
    for file in files:
        file.close()


def _file_place(weight: Weight) -> FilePlace:
    assert isinstance(weight.place, FilePlace)
    return weight.place


def _blocks(offset: int, size_bytes: int, block_bytes: int) -> Iterable[tuple[int, int]]:
    """(start, length) of pieces: between the first and the last they begin and end at pages of the file."""
    start = min(-offset % PAGE_BYTES, size_bytes)
    end = start + (size_bytes - start) // PAGE_BYTES * PAGE_BYTES
    if size_bytes <= block_bytes // 4:  # two more reads would take longer than the copy
        start = end = size_bytes
    if start:
        yield 0, start
    for piece in range(start, end, block_bytes):
        yield piece, min(block_bytes, end - piece)
    if end < size_bytes:
        yield end, size_bytes - end


@dataclass(frozen=True, slots=True)
class _Read:
    place: FilePlace
    blocks: list[tuple[int, int]]
    memory: Memory

    def move(self, index: int, scratch: Scratch) -> None:
        start, length = self.blocks[index]
        file, offset = self.place.file, self.place.offset + start
        low, high = offset // PAGE_BYTES * PAGE_BYTES, whole_pages(offset + length)
        view = self.memory.view(start, length, file.alignment_bytes) if (low, high) == (offset, offset + length) else None
        if view is not None:
            file.read(view, offset, length)
            return
        data = scratch.get(type(self.memory).staging, high - low)
        file.read(data, low, offset + length - low)
        self.memory.store(start, data[offset - low : offset - low + length])


class PinnedWeights:
    """Pinned memory of the host, for a model on a GPU: copies run on a stream beside the one that computes."""

    name = "host"
    link: Link | None

    def __init__(self) -> None:
        self.residents, self.link = Residents(), None
        self._reads: dict[int, tuple[Any, Tensor]] = {}

    def pin(self, value: Tensor) -> Tensor:
        """A copy of ``value`` in pinned memory."""
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value)

    def start(self, weight: Weight, dest: Tensor) -> None:
        """See `WeightStore`. After what the current stream has been given: it may still use the memory."""
        from memcompile.runtime.transfers.cuda import start_copy

        assert isinstance(weight.place, Tensor)
        if dest.device.type != "cuda":
            raise OffloadError(f"{weight.name!r} is in host memory, and the model runs on the {dest.device.type}", HOST_FIX)
        self._reads[dest.data_ptr()] = start_copy(dest, weight.place, dest.device, "in"), dest

    def wait(self, weight: Weight, dest: Tensor) -> None:
        """See `WeightStore`. What the current stream is given from now on finds the weight."""
        event, _ = self._reads.pop(dest.data_ptr())
        torch.cuda.current_stream(dest.device).wait_event(event)
        del weight

    def write(self, weight: Weight, value: Tensor) -> None:
        """See `WeightStore`."""
        assert isinstance(weight.place, Tensor)
        self.residents.drop()
        weight.place.copy_(value)

    def close(self) -> None:
        """See `WeightStore`."""
        self.residents.drop()
        self._reads.clear()


HOST_FIX = "tier='host' is pinned memory for models on a GPU; for a model on the CPU use tier='disk'."
