"""Files that spare later processes a measurement or a compilation; whatever is wrong with one, it is made again.

Every file is its content and a last line with the digest of its name and content: what is damaged, cut short, or stands under
another name is not used, above all not executed. The directory belongs to this user (or to root) and nobody else can write to
it, or that is an error. Each file is written under a name of its own and then renamed: readers see a whole file or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from memcompile.errors import UnsafeCacheError
from memcompile.logs import get_logger
from memcompile.machine.codec import decode_as, encode

log = get_logger(__name__)

T = TypeVar("T")

PRIVATE = 0o700
_SEAL = b"\n# sha256 "
"""In front of the digest: a comment where the content is text, bytes that no loader looks at behind a library."""
_SEAL_BYTES = len(_SEAL) + 64 + 1

_known: dict[Path, Any] = {}
"""What ``get`` returned in this process: equal for all its graphs, also where no file can be written."""


def directory() -> Path:
    """``$MEMCOMPILE_CACHE_DIR``, else ``$XDG_CACHE_HOME/memcompile``, else ``~/.cache/memcompile``."""
    if chosen := os.environ.get("MEMCOMPILE_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "memcompile"


def path_of(kind: str, key: Mapping[str, Any], suffix: str = ".json") -> Path:
    """The file of a ``kind`` for ``key``, which JSON can write."""
    return directory() / f"{kind}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}{suffix}"


def get(
    kind: str,
    key: Mapping[str, Any],
    form: type[T],
    measure: Callable[[], T],
    *,
    refresh: bool = False,
    valid: Callable[[T], bool] = lambda _: True,
) -> T:
    """The value of a ``kind`` for ``key``, measured unless this process or a file knows it and it is no ``refresh``.

    ``form``: the type of the value, of those that ``codec`` knows. ``valid``: whether a value read from a file makes sense.
    Raises `UnsafeCacheError`, and what ``measure`` raises.
    """
    path = path_of(kind, key)
    if not refresh and path not in _known:
        _known[path] = _decoded(path, form, valid)
    if refresh or _known[path] is None:
        _known[path] = measure()
        text = json.dumps({"key": key, "value": encode(_known[path])}, indent=1)
        write(path, text.encode())
    found: T = _known[path]
    return found


def known(kind: str, key: Mapping[str, Any], form: type[T], *, valid: Callable[[T], bool] = lambda _: True) -> T | None:
    """The value where it was measured before; None elsewhere."""
    path = path_of(kind, key)
    if _known.get(path) is None:
        _known[path] = _decoded(path, form, valid)
    found: T | None = _known[path]
    return found


def forget() -> None:
    """Read the files again: what this process knows is dropped."""
    _known.clear()


def read(path: Path) -> bytes | None:
    """The content of a file; None, with a warning, for one that is not as it was written. Raises `UnsafeCacheError`."""
    check_owner(path.parent)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the cache %s cannot be read, it is made again: %s", path, error)
        return None
    content = data[:-_SEAL_BYTES]
    if data != _sealed(path, content):
        log.warning("the cache %s is damaged, it is made again", path)
        return None
    return content


def write(path: Path, content: bytes) -> bool:
    """Put a whole file there; a warning, and False, where that is impossible. Raises `UnsafeCacheError`."""
    draft: Path | None = None
    try:
        _make_private(path.parent)
        check_owner(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".draft-", delete=False) as file:
            draft = Path(file.name)
            file.write(_sealed(path, content))
        draft.replace(path)
    except OSError as error:
        log.warning("cannot write the cache %s: %s", path, error)
        if draft is not None:
            with contextlib.suppress(OSError):
                draft.unlink()
        return False
    return True


@dataclass(frozen=True, slots=True)
class Kept:
    """The files of one ``kind`` by their keys, for who does not know of files (`memcompile.solvers.keeping.FunctionStore`)."""

    kind: str
    suffix: str

    def read(self, key: Mapping[str, object]) -> bytes | None:
        """See `read`."""
        return read(path_of(self.kind, key, self.suffix))

    def write(self, key: Mapping[str, object], content: bytes) -> bool:
        """See `write`."""
        return write(path_of(self.kind, key, self.suffix), content)


@contextlib.contextmanager
def as_file(path: Path, content: bytes) -> Iterator[Path]:
    """``path``, written with ``content``; where that is impossible, a file that lasts as long as the context."""
    if write(path, content):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        draft.write_bytes(content)
        yield draft


def _decoded(path: Path, form: type[T], valid: Callable[[T], bool]) -> T | None:
    content = read(path)
    if content is None:
        return None
    try:
        value = decode_as(form, json.loads(content)["value"])
        if valid(value):
            return value
        reason = "values out of range"
    except (ValueError, KeyError, TypeError) as error:  # whole, but of another version
        reason = str(error)
    log.warning("the cache %s is of no use (%s), it is made again", path, reason)
    return None


def _sealed(path: Path, content: bytes) -> bytes:
    return content + _SEAL + hashlib.sha256(path.name.encode() + b"\0" + content).hexdigest().encode() + b"\n"


def _make_private(folder: Path) -> None:
    """The folder and those above it that are missing, for this user alone whatever the umask."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir(PRIVATE)


def check_owner(folder: Path) -> None:
    """Raises `UnsafeCacheError` for a directory that another user owns or may write to; one that is not there is none."""
    try:
        found = folder.stat()
    except OSError:
        return
    if found.st_uid not in (os.geteuid(), 0):
        raise UnsafeCacheError(str(folder), f"belongs to user {found.st_uid}, not to you (user {os.geteuid()})")
    if stat.S_ISDIR(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeCacheError(str(folder), f"can be written by others (mode {stat.S_IMODE(found.st_mode):o}): chmod 700 it")
