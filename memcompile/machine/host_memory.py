"""Free memory of the machine, as the kernel and the container's limits see it. No torch, no psutil."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def host_free_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that can still be allocated: what the kernel calls available, or what the tightest cgroup leaves if that is less.

    None on systems that tell neither. ``root`` is where /proc and /sys are found.
    """
    available = _available_bytes(root)
    left = [room for directory in _cgroups(root) if (room := _cgroup_room(directory)) is not None]
    known = [*left, *([] if available is None else [available])]
    return max(0, min(known)) if known else None


def _available_bytes(root: Path) -> int | None:
    text = _read(root / "proc/meminfo")
    for line in (text or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, from its own up to the root: every limit on the way counts."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        folder = base / path.lstrip("/")
        while folder != base and base in folder.parents:
            yield folder
            folder = folder.parent
        yield base


def _cgroup_room(folder: Path) -> int | None:
    """Limit less usage, file cache that can be dropped not counted as used. Version 2 files first, then version 1."""
    for limit_name, usage_name, cache_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = _read(folder / limit_name), _read(folder / usage_name)
        if limit is None or usage is None or limit.strip() == "max":
            continue
        stat = dict(line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
        return int(limit) - int(usage) + int(stat.get(cache_key, 0))
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
