"""Files of weights: one that is only read (a checkpoint), and our own, nameless, which is written once.

Our own file puts each weight ``LEAD_BYTES`` behind a page: torch's allocator gives memory at such addresses, so that direct I/O
needs no copy in between. A checkpoint has its tensors anywhere: whole pages around them are read and copied from.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from memcompile.errors import CheckpointError, OffloadError
from memcompile.runtime.transfers.checksum import Bytes
from memcompile.runtime.transfers.file import SwapFile
from memcompile.runtime.transfers.memory import HostMemory, aligned_memory

PAGE_BYTES = 4096
LEAD_BYTES = 64
_CHUNK_BYTES = 4 * 1024**2


class Reader:
    """A file by its descriptor. ``alignment_bytes``: what addresses of memory that it reads into are divisible by."""

    def __init__(self, fd: int, name: str, alignment_bytes: int) -> None:
        self.fd, self.name, self.alignment_bytes = fd, name, alignment_bytes

    @classmethod
    def open(cls, path: Path) -> Reader:
        """Past the page cache where the file system can. Raises `CheckpointError`."""
        direct = getattr(os, "O_DIRECT", 0)
        if direct:
            with contextlib.suppress(OSError):
                reader = cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct), repr(str(path)), PAGE_BYTES)
                try:
                    os.preadv(reader.fd, [_buffer(aligned_memory(PAGE_BYTES))], 0)
                    return reader
                except OSError:
                    reader.close()
                    raise
        try:
            return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), repr(str(path)), 1)
        except OSError as error:
            raise CheckpointError(path, error.strerror or str(error)) from error

    def read(self, data: Bytes, offset: int, needed: int) -> None:
        """Fill ``data`` from page ``offset`` on; ``needed`` bytes at least, where the file ends. Raises `OffloadError`."""
        done = 0
        while done < needed:
            try:
                moved = os.preadv(self.fd, [_buffer(data[done:])], offset + done)
            except OSError as error:
                raise OffloadError(f"{self.name} cannot be read: {error.strerror}", "Check the disk.") from error
            if done + moved < needed:
                moved -= moved % PAGE_BYTES
                if not moved:
                    missing = f"{needed - done} bytes at offset {offset + done} of {self.name} are missing"
                    raise OffloadError(missing, "The file was cut off after the model was offloaded: offload it again.")
            done += moved

    def close(self) -> None:
        """May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class WeightFile(Reader):
    """A nameless file on disk that grows weight by weight: it is gone when it is closed, or the process ends."""

    def __init__(self, file: SwapFile) -> None:
        super().__init__(file.fd, file.name.replace("swap file", "file of weights"), file.alignment_bytes)
        self._file, self.end_bytes = file, 0

    def append(self, value: Tensor) -> int:
        """Write ``value``, contiguous, on the CPU; returns its offset. Raises `TierFullError`, `TierUnavailableError`."""
        size_bytes = value.numel() * value.element_size()
        offset = self.end_bytes + LEAD_BYTES
        length = _pages(LEAD_BYTES + size_bytes)
        self._file.grow(self.end_bytes, length)
        self.end_bytes += length
        self.write(value, offset)
        return offset

    def write(self, value: Tensor, offset: int) -> None:
        """Write ``value`` over a weight of its size."""
        value = value.detach().cpu().contiguous()
        size_bytes = value.numel() * value.element_size()
        data = HostMemory(value, size_bytes).bytes
        base = offset - LEAD_BYTES
        staging = aligned_memory(_CHUNK_BYTES)
        for low in range(0, LEAD_BYTES + size_bytes, _CHUNK_BYTES):
            begin, end = max(low - LEAD_BYTES, 0), min(low + _CHUNK_BYTES - LEAD_BYTES, size_bytes)
            at = begin + LEAD_BYTES - low
            length = _pages(at + end - begin)
            staging[:at] = 0
            np.copyto(staging[at : at + end - begin], data[begin:end])
            staging[at + end - begin : length] = 0
            self._file.write(staging[:length], base + low)

    def close(self) -> None:
        """See `Reader`."""
        self.fd = -1
        self._file.close()


def _buffer(data: Bytes) -> memoryview:
    found: Any = data
    return memoryview(found)


def _pages(length: int) -> int:
    return -(-length // PAGE_BYTES) * PAGE_BYTES
