"""Helpers of the swap engine's tests: an engine in a folder, bytes to move, I/O that waits or fails when told."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memcompile.runtime.transfers.disk import DiskStore
from memcompile.runtime.transfers.engine import Engine
from memcompile.runtime.transfers.tiers import DiskTier

MIB = 1024**2


def disk_engine(folder: Path, capacity_bytes: int = 256 * MIB, **settings: Any) -> Engine:
    """An engine whose tier is open."""
    engine = Engine((DiskTier(folder, capacity_bytes),))
    engine.stores = {"disk": DiskStore(DiskTier(folder, capacity_bytes), **settings)}
    return engine


def store_of(engine: Engine) -> DiskStore:
    store = engine.stores["disk"]
    assert isinstance(store, DiskStore)
    return store


def random_bytes(size_bytes: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (size_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def round_trip(engine: Engine, tensor: Tensor) -> Tensor:
    ticket = engine.out(tensor)
    engine.out_wait(ticket)
    return read_back(engine, ticket, torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype))


def read_back(engine: Engine, ticket: Tensor, dest: Tensor) -> Tensor:
    engine.into(ticket, dest)
    engine.into_wait(ticket, dest)
    return dest


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8))


class Gate:
    """Stands in for ``os.pwrite`` or ``os.preadv``: calls wait until `open`, and are written down."""

    def __init__(self, real: Callable[..., int], journal: list[str] | None = None, name: str = "") -> None:
        self.real, self.name = real, name
        self.journal = [] if journal is None else journal
        self.opened, self.reached = threading.Event(), threading.Event()

    def __call__(self, *args: Any) -> int:
        self.journal.append(self.name)
        self.reached.set()
        assert self.opened.wait(60)
        return self.real(*args)

    def open(self) -> None:
        self.opened.set()


def settle(engine: Engine) -> None:
    """Wait until nothing is under way, without asking for anything in particular."""
    while store_of(engine).workers._pending:
        time.sleep(0.001)


def open_files(folder: Path) -> list[str]:
    """Links of this process's descriptors that lead into ``folder``, nameless files among them."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except OSError:
            continue
    return [link for link in links if link.startswith(str(folder))]
