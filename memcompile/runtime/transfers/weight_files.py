"""Files of weights: one that is only read (a checkpoint), and our own, nameless, which is written once.

Our own file puts each weight ``LEAD_BYTES`` behind a page: torch's allocator gives memory at such addresses, so that direct I/O
needs no copy in between. A checkpoint has its tensors anywhere: whole pages around them are read and copied from.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from memcompile.errors import CheckpointError, MemcompileError, OffloadError
from memcompile.runtime.transfers.file import NamelessFile, PageFile
from memcompile.runtime.transfers.memory import PAGE_BYTES, HostMemory, aligned_memory, whole_pages

LEAD_BYTES = 64
_CHUNK_BYTES = 4 * 1024**2


class _Weights(PageFile):
    """What reads of weights raise."""

    def _unreadable(self, error: OSError) -> MemcompileError:
        return OffloadError(f"{self.name} cannot be read: {error.strerror}", "Check the disk.")

    def _cut_off(self, missing: int, offset: int) -> MemcompileError:
        reason = f"{missing} bytes at offset {offset} of {self.name} are missing"
        return OffloadError(reason, "The file was cut off after the model was offloaded: offload it again.")


class CheckpointFile(_Weights):
    """A file that is only read, past the page cache where the file system can. Raises `CheckpointError`."""

    def __init__(self, path: Path) -> None:
        fd, alignment_bytes = _open(path)
        super().__init__(fd, repr(str(path)), alignment_bytes)


def _open(path: Path) -> tuple[int, int]:
    """The descriptor, and what addresses have to be divisible by."""
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct)
            try:
                os.preadv(fd, [aligned_memory(PAGE_BYTES).data], 0)
                return fd, PAGE_BYTES
            except OSError:
                os.close(fd)
                raise
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), 1
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from error


class WeightFile(_Weights, NamelessFile):
    """A nameless file on disk that grows weight by weight. Raises `TierFullError`, `TierUnavailableError`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, kind="file of weights")
        self.end_bytes = 0

    def append(self, value: Tensor) -> int:
        """Write ``value``, contiguous, on the CPU; returns its offset."""
        size_bytes = value.numel() * value.element_size()
        offset = self.end_bytes + LEAD_BYTES
        length = whole_pages(LEAD_BYTES + size_bytes)
        self.grow(self.end_bytes, length)
        self.end_bytes += length
        self.put(value, offset)
        return offset

    def put(self, value: Tensor, offset: int) -> None:
        """Write ``value`` over a weight of its size."""
        value = value.detach().cpu().contiguous()
        size_bytes = value.numel() * value.element_size()
        data = HostMemory(value, size_bytes).bytes
        base = offset - LEAD_BYTES
        staging = aligned_memory(_CHUNK_BYTES)
        for low in range(0, LEAD_BYTES + size_bytes, _CHUNK_BYTES):
            begin, end = max(low - LEAD_BYTES, 0), min(low + _CHUNK_BYTES - LEAD_BYTES, size_bytes)
            at = begin + LEAD_BYTES - low
            length = whole_pages(at + end - begin)
            staging[:at] = 0
            np.copyto(staging[at : at + end - begin], data[begin:end])
            staging[at + end - begin : length] = 0
            self.write(staging[:length], base + low)
