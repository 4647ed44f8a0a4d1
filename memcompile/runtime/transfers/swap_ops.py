"""The four operators of a move, as nodes of a graph and as lowered code calls them.

    ticket = memcompile::swap_out(x, key)             the copy to the tier starts
    ticket = memcompile::swap_out_wait(x, ticket, key)    it is there: nothing needs the memory of x any more
    y      = memcompile::swap_in(ticket, key)         memory for x is taken again, the copy back starts
    y      = memcompile::swap_in_wait(y, ticket, key)     it is back

A ticket is a tensor on the CPU with one element, that stands for the copy: it is saved for the backward in place of x, and the
copy is dropped with it. Lowered code calls the variants with a trailing underscore, which write memory that it allocated.
"""

from __future__ import annotations

import itertools
import math
import weakref
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


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

    def empty(self) -> Tensor:
        """Memory for it."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)

    def run(self) -> Mover:
        """Who moves it."""
        assert self.mover is not None, "a dry run moves nothing"
        return self.mover


MOVED: weakref.WeakValueDictionary[str, Moved] = weakref.WeakValueDictionary()
"""By the key in the graph. A compiled graph holds its own."""
_COUNT = itertools.count()


def moved(name: str, tier: str, value: Tensor, mover: Mover | None) -> Moved:
    """Register a storage that is moved, under a key of its own. ``value``: its (fake) tensor."""
    key = f"{name}#{next(_COUNT)}"
    MOVED[key] = result = Moved(key, tier, tuple(value.shape), tuple(value.stride()), value.dtype, value.device, mover)
    return result


def _flat(tensor: Tensor) -> Tensor:
    """All elements between the first and the last one, in the order of their memory."""
    spans = ((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((1 + sum(spans) if math.prod(tensor.shape) else 0,), (1,))


def _swap_out(x: Tensor, key: str) -> Tensor:
    return MOVED[key].run().out(_flat(x), MOVED[key].tier)


def _swap_out_wait_(_x: Tensor, ticket: Tensor, key: str) -> None:
    MOVED[key].run().out_wait(ticket)


def _swap_in_(ticket: Tensor, y: Tensor, key: str) -> None:
    MOVED[key].run().into(ticket, _flat(y))


def _swap_in_wait_(y: Tensor, ticket: Tensor, key: str) -> None:
    MOVED[key].run().into_wait(ticket, _flat(y))


def _nothing(*_args: object) -> None:
    pass


_LIBRARY: Any = torch.library.Library("memcompile", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("swap_out(Tensor x, str key) -> Tensor")
_LIBRARY.define("swap_out_wait(Tensor x, Tensor ticket, str key) -> Tensor")
_LIBRARY.define("swap_in(Tensor ticket, str key) -> Tensor")
_LIBRARY.define("swap_in_wait(Tensor y, Tensor ticket, str key) -> Tensor")
_LIBRARY.define("swap_out_wait_(Tensor x, Tensor(a!) ticket, str key) -> ()")
_LIBRARY.define("swap_in_(Tensor ticket, Tensor(a!) y, str key) -> ()")
_LIBRARY.define("swap_in_wait_(Tensor(a!) y, Tensor ticket, str key) -> ()")
for _name, _run in (
    ("swap_out", _swap_out),
    ("swap_out_wait_", _swap_out_wait_),
    ("swap_in_", _swap_in_),
    ("swap_in_wait_", _swap_in_wait_),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")


def _fake_ticket(*_args: object) -> Tensor:
    return torch.empty(1, dtype=torch.int64, device="cpu")


torch.library.register_fake("memcompile::swap_out", _fake_ticket, lib=_LIBRARY)
torch.library.register_fake("memcompile::swap_out_wait", _fake_ticket, lib=_LIBRARY)
torch.library.register_fake("memcompile::swap_in", lambda _ticket, key: MOVED[key].empty(), lib=_LIBRARY)
torch.library.register_fake("memcompile::swap_in_wait", lambda y, _ticket, _key: torch.empty_like(y), lib=_LIBRARY)
for _name in ("swap_out_wait_", "swap_in_", "swap_in_wait_"):
    torch.library.register_fake(f"memcompile::{_name}", _nothing, lib=_LIBRARY)
