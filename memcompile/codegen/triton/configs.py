"""Which tile sizes a kernel may have on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KIB = 1024


@dataclass(frozen=True, slots=True)
class Target:
    """What one block may take: shared memory in bytes, registers a thread."""

    name: str
    capability: int
    shared_bytes: int
    registers: int = 255


TARGETS: Mapping[str, Target] = {t.name: t for t in (Target("cuda:80", 80, 163 * KIB), Target("cuda:90", 90, 227 * KIB))}


@dataclass(frozen=True, slots=True)
class Config:
    """Tile sizes by name (BM rows, BK / BH / BN columns of a sweep's tiles, TILES a program of K3), warps and stages."""

    sizes: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    def as_dict(self) -> dict[str, int]:
        """The form that ``launch`` takes."""
        return {**dict(self.sizes), "num_warps": self.num_warps, "num_stages": self.num_stages}

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.as_dict().items())

def candidates(chain: Any, method: str, limits: Target) -> list[Config]:
    return []
