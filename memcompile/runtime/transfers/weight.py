"""One weight that is not in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memcompile.runtime.transfers.sources import SOURCES, new_key, source_of

if TYPE_CHECKING:
    from memcompile.runtime.transfers.weight_store import WeightStore


@dataclass(eq=False)
class Weight:
    """A contiguous tensor that ``store`` reads: ``place`` is the store's own. ``name``: the parameter's, for reports."""

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    store: WeightStore
    place: object = None

    device = None

    @property
    def stride(self) -> tuple[int, ...]:
        """Of the tensor."""
        return torch.empty(self.shape, device="meta").stride()

    @property
    def size_bytes(self) -> int:
        """Of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def start(self, ticket: Tensor, dest: Tensor) -> None:
        """See `Source`: the read starts."""
        del ticket
        self.store.start(self, dest)

    def wait(self, ticket: Tensor, dest: Tensor) -> None:
        """See `Source`."""
        del ticket
        self.store.wait(self, dest)


def new_weight(name: str, shape: tuple[int, ...], dtype: torch.dtype, store: WeightStore, place: object) -> Weight:
    """Register a weight under a key of its own."""
    weight = Weight(new_key(name), name, shape, dtype, store, place)
    SOURCES[weight.key] = weight
    return weight


def weight_of(key: str) -> Weight:
    """The weight of that key. Raises `OffloadError` when its model is gone."""
    found = source_of(key)
    assert isinstance(found, Weight)
    return found
