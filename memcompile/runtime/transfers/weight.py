"""One weight that is not in memory, and all of them by the key in a graph."""

from __future__ import annotations

import itertools
import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from memcompile.runtime.transfers.weight_store import Store


@dataclass(eq=False)
class Weight:
    """A contiguous tensor that ``store`` reads: ``place`` is the store's own. ``name``: the parameter's, for reports."""

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    store: Store
    place: object = None

    @property
    def size_bytes(self) -> int:
        """Of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def empty(self, device: torch.device) -> Tensor:
        """Memory for it."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)


WEIGHTS: weakref.WeakValueDictionary[str, Weight] = weakref.WeakValueDictionary()
"""By the key in the graph. The modules of a model hold theirs: weights die with the model."""
_COUNT = itertools.count()


def new_weight(name: str, shape: tuple[int, ...], dtype: torch.dtype, store: Store, place: object) -> Weight:
    """Register a weight under a key of its own."""
    weight = Weight(f"{name}#{next(_COUNT)}", name, shape, dtype, store, place)
    WEIGHTS[weight.key] = weight
    return weight


def weight_of(key: str) -> Weight:
    """The weight of that key. Raises `OffloadError` when its model is gone."""
    found = WEIGHTS.get(key)
    if found is None:
        from memcompile.errors import OffloadError

        raise OffloadError(f"the weight {key!r} is gone: its model was deleted or restored", "Compile the model again.")
    return found
