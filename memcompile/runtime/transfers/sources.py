"""What the operators of transfers know by a key: storages of a step that move, and weights."""

from __future__ import annotations

import itertools
import math
import weakref
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from memcompile.errors import OffloadError


class TransferSource(Protocol):
    """A tensor that is not in the device's memory. ``device``: where it is wanted; None: where its ticket is."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def stride(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device | None: ...
    def start(self, ticket: Tensor, dest: Tensor) -> None: ...
    def wait(self, ticket: Tensor, dest: Tensor) -> None: ...


SOURCES: weakref.WeakValueDictionary[str, TransferSource] = weakref.WeakValueDictionary()
"""By the key in the graph. A compiled graph holds its storages, the modules of a model hold its weights."""
_COUNT = itertools.count()


def new_key(name: str) -> str:
    """A key of its own."""
    return f"{name}#{next(_COUNT)}"


def source_of(key: str) -> TransferSource:
    """What a key stands for. Raises `OffloadError` for a weight whose model is gone."""
    found = SOURCES.get(key)
    if found is None:
        raise OffloadError(f"the weight {key!r} is gone: its model was deleted or restored", "Compile the model again.")
    return found


def memory_for(source: TransferSource, device: torch.device) -> Tensor:
    """New memory for it; ``device``: of its ticket."""
    return torch.empty_strided(source.shape, source.stride, dtype=source.dtype, device=source.device or device)


class Mover(Protocol):
    """What copies: `memcompile.runtime.transfers.engine.Engine`."""

    def out(self, tensor: Tensor, tier: str) -> Tensor: ...
    def out_wait(self, ticket: Tensor) -> None: ...
    def into(self, ticket: Tensor, dest: Tensor) -> None: ...
    def into_wait(self, ticket: Tensor, dest: Tensor) -> None: ...


@dataclass(eq=False)
class Moved:
    """One storage that is moved: to which tier, its tensor (``stride`` as lowered, once it was), and who moves it.

    ``mover``: None in a dry run.
    """

    key: str
    tier: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    mover: Mover | None = field(default=None, repr=False)

    def run(self) -> Mover:
        """Who moves it."""
        assert self.mover is not None, "a dry run moves nothing"
        return self.mover

    def out(self, tensor: Tensor) -> Tensor:
        """Start the copy to the tier; returns its ticket."""
        return self.run().out(_flat(tensor), self.tier)

    def start(self, ticket: Tensor, dest: Tensor) -> None:
        """See `TransferSource`: the copy back starts."""
        self.run().into(ticket, _flat(dest))

    def wait(self, ticket: Tensor, dest: Tensor) -> None:
        """See `TransferSource`."""
        self.run().into_wait(ticket, _flat(dest))


def moved(name: str, tier: str, value: Tensor, mover: Mover | None) -> Moved:
    """Register a storage that is moved. ``value``: its (fake) tensor."""
    result = Moved(new_key(name), tier, tuple(value.shape), tuple(value.stride()), value.dtype, value.device, mover)
    SOURCES[result.key] = result
    return result


def moved_of(key: str) -> Moved:
    """The storage of that key."""
    found = SOURCES[key]
    assert isinstance(found, Moved)
    return found


def _flat(tensor: Tensor) -> Tensor:
    """All elements between the first and the last one, in the order of their memory."""
    spans = ((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((1 + sum(spans) if math.prod(tensor.shape) else 0,), (1,))
