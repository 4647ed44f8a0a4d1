"""Which tile sizes a kernel may have on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
