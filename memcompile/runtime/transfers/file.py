"""Files that are read and written in whole pages, and the nameless one: opened so that the kernel frees it whatever happens to
the process.

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

from memcompile.errors import MemcompileError, SwapCorruptedError, TierFullError, TierUnavailableError
from memcompile.runtime.transfers.memory import PAGE_BYTES, Bytes, aligned_memory

PREFIX = "memcompile-swap-"
"""How a file is called for the moment that it has a name, where the file system has no nameless ones."""
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file may not be that large"}


class PageFile:
    """A file by its descriptor. ``name``: for messages. ``alignment_bytes``: what addresses of memory are divisible by."""

    def __init__(self, fd: int, name: str, alignment_bytes: int) -> None:
        self.fd, self.name, self.alignment_bytes = fd, name, alignment_bytes

    def close(self) -> None:
        """May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def read(self, data: Bytes, offset: int, needed: int | None = None) -> None:
        """Fill ``data`` from page ``offset`` on; at least ``needed`` bytes of it, where the file may end behind them. Raises
        `_unreadable` when the disk fails, `_cut_off` where the file is too short."""
        needed = len(data) if needed is None else needed
        done = 0
        while done < needed:
            try:
                moved = os.preadv(self.fd, [data.data[done:]], offset + done)
            except OSError as error:
                raise self._unreadable(error) from error
            if done + moved < needed:
                moved -= moved % PAGE_BYTES
                if not moved:
                    raise self._cut_off(needed - done, offset + done)
            done += moved

    def _unreadable(self, error: OSError) -> MemcompileError:
        raise NotImplementedError

    def _cut_off(self, missing: int, offset: int) -> MemcompileError:
        raise NotImplementedError


class NamelessFile(PageFile):
    """A file in ``directory``, gone when it is closed. Offsets and lengths are whole pages.

    ``direct``: whether reads and writes go past the page cache. Raises `TierUnavailableError` for a directory that cannot be
    written to, `TierFullError` for a full disk; what is read raises `TierUnavailableError` and `SwapCorruptedError`.
    """

    def __init__(self, directory: Path, *, kind: str = "swap file", direct: bool = True) -> None:
        self.directory = directory
        super().__init__(_open_nameless(directory), f"the {kind} in {str(directory)!r}", 8)
        try:
            found = self._direct_alignment() if direct else None
            self.direct, self.alignment_bytes = found is not None, found or 8
        except BaseException:
            self.close()
            raise

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

    def _unreadable(self, error: OSError) -> MemcompileError:
        return _unavailable(self.directory, error)

    def _cut_off(self, missing: int, offset: int) -> MemcompileError:
        return SwapCorruptedError(self.name, f"{missing} bytes at offset {offset} cannot be read")

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
