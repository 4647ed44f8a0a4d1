"""What compiled code calls. A saved tensor becomes a *ticket*, and the ticket a tensor again.

A ticket is a CPU tensor of one int64. What it stands for is dropped when the ticket's storage dies: autograd may save it, a
backward may never come, an exception may pass by, a model may be deleted, and nothing is left behind.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from memcompile.errors import SwapError, SwapTicketError, TierFullError, TierUnavailableError
from memcompile.runtime.transfers.disk import DiskStore
from memcompile.runtime.transfers.host import HostStore
from memcompile.runtime.transfers.tiers import HostTier, Tier


class Store(Protocol):
    """A tier at work. What `write` returns is the store's own; `drop` takes no lock."""

    @property
    def name(self) -> str: ...
    @property
    def staging_bytes(self) -> int: ...
    @property
    def live_bytes(self) -> int: ...
    def write(self, tensor: Tensor) -> Any: ...
    def wait_written(self, record: Any) -> None: ...
    def read(self, record: Any, dest: Tensor) -> None: ...
    def wait_read(self, record: Any, dest: Tensor) -> None: ...
    def drop(self, record: Any) -> None: ...
    def reserve(self, size_bytes: int) -> None: ...
    def close(self) -> None: ...


_TICKETS: dict[int, tuple[Store, Any]] = {}
"""What each living ticket stands for; its finalizer takes it out."""
_numbers = itertools.count(1)


class Engine:
    """The tiers of one compiled graph, fastest first. Two engines share nothing but the directory.

    Raises `TierUnavailableError` for a directory that cannot be used.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self.tiers = tuple(tiers)
        self.stores: dict[str, Store] = {tier.name: _open(tier) for tier in self.tiers}

    def out(self, tensor: Tensor, tier: str | None = None) -> Tensor:
        """Start to write ``tensor`` to a tier; None: the fastest that has room. Returns the ticket.

        The tensor must not change until `out_wait`. Raises `TierFullError`, `SwapLayoutError`, `TierUnavailableError`.
        """
        if tier is not None:
            return _ticket(self._store(tier), tensor)
        full: TierFullError | None = None
        for store in self.stores.values():
            if not self._serves(store, tensor):
                continue
            try:
                return _ticket(store, tensor)
            except TierFullError as error:
                full = error
        raise full or TierUnavailableError("swap", "there is no tier for this tensor", "Set swap={'disk': '/scratch:64GiB'}.")

    def out_wait(self, ticket: Tensor) -> None:
        """See `swap_out_wait`."""
        swap_out_wait(ticket)

    def into(self, ticket: Tensor, dest: Tensor) -> None:
        """See `swap_in`."""
        swap_in(ticket, dest)

    def into_wait(self, ticket: Tensor, dest: Tensor) -> None:
        """See `swap_in_wait`."""
        swap_in_wait(ticket, dest)

    def reserve(self, size_bytes: int, tier: str = "disk") -> None:
        """Take the room now, before a step starts. Raises `TierFullError`."""
        self._store(tier).reserve(size_bytes)

    def live_bytes(self, tier: str = "disk") -> int:
        """Bytes of a tier that living tickets have."""
        return self._store(tier).live_bytes

    @property
    def staging_bytes(self) -> int:
        """Bytes of host memory that the I/O threads copy through, at most."""
        return sum(store.staging_bytes for store in self.stores.values())

    def close(self) -> None:
        """End threads, give files and memory back. Living tickets are worth nothing then. May be called again."""
        for store in self.stores.values():
            store.close()

    @staticmethod
    def _serves(store: Store, tensor: Tensor) -> bool:
        return store.name != "host" or tensor.device.type == "cuda"

    def _store(self, tier: str) -> Store:
        if tier not in self.stores:
            raise SwapError(f"this engine has no tier {tier!r}, but: {', '.join(self.stores)}. Name it in options['swap'].")
        return self.stores[tier]


def swap_out_wait(ticket: Tensor) -> None:
    """Return when the memory of the tensor may be overwritten or freed. Raises the error of the write."""
    store, record = _found(ticket)
    store.wait_written(record)


def swap_in(ticket: Tensor, dest: Tensor) -> None:
    """Start to read into ``dest``: as many bytes, and the same strides where the shape is the same. May be called before the
    write is through, and several times. Raises `SwapLayoutError`, `SwapTicketError`."""
    store, record = _found(ticket)
    store.read(record, dest)


def swap_in_wait(ticket: Tensor, dest: Tensor) -> None:
    """Return when ``dest`` holds exactly the bytes that were written. Raises `SwapCorruptedError`, and what the write met."""
    store, record = _found(ticket)
    store.wait_read(record, dest)


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
