"""What compiled code calls. A saved tensor becomes a *ticket*, and the ticket a tensor again.

A ticket is a CPU tensor of one int64. What it stands for is dropped when the ticket's storage dies: autograd may save it, a
backward may never come, an exception may pass by, a model may be deleted, and nothing is left behind.
"""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from memcompile.errors import SwapError, SwapTicketError
from memcompile.runtime.transfers.disk import DiskStore
from memcompile.runtime.transfers.host import HostStore
from memcompile.runtime.transfers.tiers import HostTier, Tier


class Store(Protocol):
    """A tier at work. What `write` returns is the store's own; `drop` takes no lock."""

    @property
    def live_bytes(self) -> int: ...
    def write(self, tensor: Tensor) -> Any: ...
    def wait_written(self, record: Any) -> None: ...
    def read(self, record: Any, dest: Tensor) -> None: ...
    def wait_read(self, record: Any, dest: Tensor) -> None: ...
    def drop(self, record: Any) -> None: ...
    def close(self) -> None: ...


_TICKETS: dict[int, tuple[Store, Any]] = {}
"""What each living ticket stands for; its finalizer takes it out."""
_numbers = itertools.count(1)


class Engine:
    """The tiers of one compiled graph. Two engines share nothing but the directory.

    Tiers are opened as the first tensor leaves: plans without moves leave no trace on a disk. ``waited_s``: seconds that steps
    have waited for transfers so far (on a GPU: the host).
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self.tiers, self.waited_s = tuple(tiers), 0.0

    @cached_property
    def stores(self) -> dict[str, Store]:
        """By the name of the tier. Raises `TierUnavailableError` for a directory that cannot be used."""
        return {tier.name: _open(tier) for tier in self.tiers}

    def out(self, tensor: Tensor, tier: str = "disk") -> Tensor:
        """Start to write ``tensor`` to a tier. Returns the ticket.

        The tensor must not change until `out_wait`. Raises `TierFullError`, `SwapLayoutError`, `TierUnavailableError`.
        """
        return _ticket(self._store(tier), tensor)

    def out_wait(self, ticket: Tensor) -> None:
        """Return when the memory of the tensor may be overwritten or freed. Raises the error of the write."""
        store, record = _found(ticket)
        start = time.perf_counter()
        store.wait_written(record)
        self.waited_s += time.perf_counter() - start

    def into(self, ticket: Tensor, dest: Tensor) -> None:
        """Start to read into ``dest``: as many bytes, and the same strides where the shape is the same. May be called before
        the write is through, and several times. Raises `SwapLayoutError`, `SwapTicketError`."""
        store, record = _found(ticket)
        store.read(record, dest)

    def into_wait(self, ticket: Tensor, dest: Tensor) -> None:
        """Return when ``dest`` holds exactly the bytes that were written. Raises `SwapCorruptedError`, and what the write
        met."""
        store, record = _found(ticket)
        start = time.perf_counter()
        store.wait_read(record, dest)
        self.waited_s += time.perf_counter() - start

    def live_bytes(self, tier: str = "disk") -> int:
        """Bytes of a tier that living tickets have."""
        return self._store(tier).live_bytes

    def close(self) -> None:
        """End threads, give files and memory back. Living tickets are worth nothing then. May be called again."""
        for store in self.stores.values():
            store.close()

    def _store(self, tier: str) -> Store:
        if tier not in self.stores:
            raise SwapError(f"this engine has no tier {tier!r}, but: {', '.join(self.stores)}. Name it in options['swap'].")
        return self.stores[tier]


def _open(tier: Tier) -> Store:
    return HostStore(tier) if isinstance(tier, HostTier) else DiskStore(tier)


def _ticket(store: Store, tensor: Tensor) -> Tensor:
    record = store.write(tensor)
    number = next(_numbers)
    array = np.array([number], dtype=np.int64)
    _TICKETS[number] = (store, record)
    weakref.finalize(array, _drop, number).atexit = False
    return torch.from_numpy(array)


def _drop(number: int) -> None:
    """A ticket's storage is gone. Runs in any thread, in the middle of anything: no locks."""
    found = _TICKETS.pop(number, None)
    if found is not None:
        found[0].drop(found[1])


def _found(ticket: Tensor) -> tuple[Store, Any]:
    found = _TICKETS.get(int(ticket))
    if found is None:
        raise SwapTicketError(f"ticket {int(ticket)} stands for nothing")
    return found
