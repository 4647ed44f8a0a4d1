"""One nameless file on a disk: opened so that the kernel frees it whatever happens to the process, read and written in blocks.

Direct I/O (``O_DIRECT``) where the file system has it: it leaves the page cache, that is the machine's memory, alone, and is
several times faster. What memory it accepts is tried out once, when the file is opened.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import uuid
from pathlib import Path

from memcompile.errors import SwapCorruptedError, TierFullError, TierUnavailableError
from memcompile.runtime.transfers.checksum import PAGE_BYTES, Bytes
from memcompile.runtime.transfers.memory import aligned_memory

PREFIX = "memcompile-swap-"
"""How a file is called for the moment that it has a name, where the file system has no nameless ones."""
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file may not be that large"}


class SwapFile:
    """A file in ``directory``. Offsets and lengths are whole pages of 4096 bytes.

    ``direct``: whether reads and writes go past the page cache. ``alignment_bytes``: what the address of memory has to be
    divisible by. Raises `TierUnavailableError` for a directory that cannot be written to, `TierFullError` for a full disk.
    """

    def __init__(self, directory: Path, *, direct: bool = True) -> None:
        self.directory = directory
        self.fd = _open_nameless(directory)
        try:
            found = self._direct_alignment() if direct else None
            self.direct, self.alignment_bytes = found is not None, found or 8
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the space back to the file system. May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def grow(self, offset: int, length: int) -> None:
        """Take the space ``[offset, offset + length)`` on the disk now, so that no write finds it full. Raises."""
        try:
            os.posix_fallocate(self.fd, offset, length)
        except OSError as error:
            raise self._translated(error, length) from error

    def write(self, data: Bytes, offset: int) -> None:
        """Write all of ``data``. Raises `TierFullError` or `TierUnavailableError`."""
        done = 0
        while done < len(data):
            try:
                moved = os.pwrite(self.fd, data.data[done:], offset + done)
            except OSError as error:
                raise self._translated(error, len(data) - done) from error
            if done + moved < len(data):
                moved -= moved % PAGE_BYTES
                if not moved:
                    raise TierFullError(self.name, len(data) - done, "the disk takes no more bytes")
            done += moved

    def read(self, data: Bytes, offset: int) -> None:
        """Fill ``data``. Raises `SwapCorruptedError` where the file is too short, `TierUnavailableError` on a failing disk."""
        done = 0
        while done < len(data):
            try:
                moved = os.preadv(self.fd, [data.data[done:]], offset + done)
            except OSError as error:
                raise self._translated(error, len(data) - done) from error
            if done + moved < len(data):
                moved -= moved % PAGE_BYTES
                if not moved:
                    raise SwapCorruptedError(self.name, f"{len(data) - done} bytes at offset {offset + done} cannot be read")
            done += moved

    @property
    def name(self) -> str:
        """For messages."""
        return f"the swap file in {str(self.directory)!r}"

    def _direct_alignment(self) -> int | None:
        """What direct I/O wants addresses to be divisible by; None where there is no direct I/O."""
        if not hasattr(os, "O_DIRECT"):
            return None
        try:
            self._set_direct(True)
        except OSError:
            return None
        memory = aligned_memory(2 * PAGE_BYTES)
        self.grow(0, PAGE_BYTES)
        for alignment_bytes in (64, 512, PAGE_BYTES):
            with contextlib.suppress(OSError):
                page = memory.data[alignment_bytes : alignment_bytes + PAGE_BYTES]
                if os.pwrite(self.fd, page, 0) == PAGE_BYTES and os.preadv(self.fd, [page], 0) == PAGE_BYTES:
                    return alignment_bytes
        self._set_direct(False)
        return None

    def _set_direct(self, on: bool) -> None:
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)

    def _translated(self, error: OSError, length: int) -> TierFullError | TierUnavailableError:
        if error.errno in _FULL:
            return TierFullError(self.name, length, _FULL[error.errno])
        return _unavailable(self.directory, error)


def _unavailable(directory: Path, error: OSError) -> TierUnavailableError:
    fix = "Choose a directory that exists and can be written to: swap={'disk': '/scratch:64GiB'}."
    return TierUnavailableError(f"the swap directory {str(directory)!r}", error.strerror or str(error), fix)


def _open_nameless(directory: Path) -> int:
    if not sys.platform.startswith("linux"):
        raise TierUnavailableError("swap to disk", f"it needs Linux, this is {sys.platform}", "Leave out swap={'disk': ...}.")
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise _unavailable(directory, error) from error
    return _open_unlinked(directory)


def _open_unlinked(directory: Path) -> int:
    """A file that loses its name at once. A process that is killed in between leaves an empty one: the next to start sweeps.

    Sweeping may take the name of a file that another process makes right now: that one wants to lose it anyway.
    """
    for stale in directory.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            stale.unlink()
    path = directory / f"{PREFIX}{uuid.uuid4().hex}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unavailable(directory, error) from error
    with contextlib.suppress(OSError):
        path.unlink()
    return fd
