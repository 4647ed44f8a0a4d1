"""The slower memories that a user names: ``swap={"host": "16GiB", "disk": "/scratch:64GiB"}`` as data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memcompile.errors import InvalidOptionError, UnknownOptionError
from memcompile.units import BYTES_FORMS, parse_bytes

TIER_NAMES = ("host", "disk")
DISK_FORMS = "a directory, '/scratch', or a directory and a size, '/scratch:64GiB'"


@dataclass(frozen=True, slots=True)
class HostTier:
    """Pinned memory of the machine, for tensors of a GPU: at most ``capacity_bytes`` in each compiled graph."""

    capacity_bytes: int

    name = "host"

    def to_option(self) -> str | int:
        """The value that `parse_tiers` reads."""
        return self.capacity_bytes


@dataclass(frozen=True, slots=True)
class DiskTier:
    """A nameless file in ``directory`` of at most ``capacity_bytes``, one for each compiled graph."""

    directory: Path
    capacity_bytes: int

    name = "disk"

    def to_option(self) -> str | int:
        """The value that `parse_tiers` reads."""
        return f"{self.directory}:{self.capacity_bytes}"


Tier = HostTier | DiskTier


def parse_tiers(mapping: object) -> tuple[Tier, ...]:
    """The tiers that ``mapping`` names, fastest first; none for None.

    A directory without a size may take what is free on its disk now. Raises `UnknownOptionError`, `InvalidOptionError`, and
    `TierUnavailableError` for a directory that is missing or cannot be written to.
    """
    if mapping is None:
        return ()
    if not isinstance(mapping, Mapping):
        raise InvalidOptionError("swap", mapping, "a mapping such as {'host': '16GiB', 'disk': '/scratch:64GiB'}, or None")
    for name in mapping:
        if name not in TIER_NAMES:
            raise UnknownOptionError(str(name), TIER_NAMES, where="options['swap']")
    parsers = {"host": _parse_host, "disk": _parse_disk}
    return tuple(parsers[name](mapping[name]) for name in TIER_NAMES if name in mapping)


def _parse_host(value: object) -> Tier:
    return HostTier(_parse_size("host", value, value, BYTES_FORMS))


def _parse_disk(value: object) -> Tier:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise InvalidOptionError("swap['disk']", value, DISK_FORMS)
    from memcompile.runtime.transfers.file import NamelessFile  # loads torch, which options do without

    path, colon, size = str(value).rpartition(":")
    if isinstance(value, Path) or not colon or Path(value).expanduser().is_dir():
        path, size = str(value), ""
    elif not path:
        raise InvalidOptionError("swap['disk']", value, DISK_FORMS, hint="no directory")
    capacity_bytes = _parse_size("disk", size, value, DISK_FORMS) if size else None
    directory = Path(path).expanduser().absolute()
    NamelessFile(directory).close()  # says what is wrong with the directory
    return DiskTier(directory, _free_bytes(directory) if capacity_bytes is None else capacity_bytes)


def _parse_size(tier: str, text: object, value: object, accepted: str) -> int:
    try:
        if not isinstance(text, str | int):
            raise ValueError(f"{type(text).__name__} is not a size")
        size_bytes = parse_bytes(text)
        if not size_bytes:
            raise ValueError("a tier has room for more than nothing")
        return size_bytes
    except ValueError as error:
        raise InvalidOptionError(f"swap[{tier!r}]", value, accepted, hint=str(error)) from None


def _free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
