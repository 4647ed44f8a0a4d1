"""Operators of weights that are not in memory, as nodes of a graph and as lowered code calls them.

    w = memcompile::fetch(ticket, key)            read the weight now (eager; a graph without a plan)
    w = memcompile::fetch_start(ticket, key)      memory for the weight is taken, the read starts
    w = memcompile::fetch_wait(w, key)            it is there

The ticket is a buffer of the model, one int64 that nobody reads: it makes weights no constants, says on which device they are
wanted, and tells which model a graph belongs to. Lowered code calls the variants with a trailing underscore.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memcompile.runtime.transfers.weight import weight_of
from memcompile.runtime.transfers.weight_store import read


def _fetch(ticket: Tensor, key: str) -> Tensor:
    return read(weight_of(key), ticket.device)


def _fetch_start_(_ticket: Tensor, y: Tensor, key: str) -> None:
    weight = weight_of(key)
    weight.store.start(weight, y)


def _fetch_wait_(y: Tensor, key: str) -> None:
    weight = weight_of(key)
    weight.store.wait(weight, y)


def _fetch_start(ticket: Tensor, key: str) -> Tensor:
    y = weight_of(key).empty(ticket.device)
    _fetch_start_(ticket, y, key)
    return y


def _fetch_wait(y: Tensor, key: str) -> Tensor:
    _fetch_wait_(y, key)
    return y


_LIBRARY: Any = torch.library.Library("memcompile", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("fetch(Tensor ticket, str key) -> Tensor")
_LIBRARY.define("fetch_start(Tensor ticket, str key) -> Tensor")
_LIBRARY.define("fetch_wait(Tensor y, str key) -> Tensor")
_LIBRARY.define("fetch_start_(Tensor ticket, Tensor(a!) y, str key) -> ()")
_LIBRARY.define("fetch_wait_(Tensor(a!) y, str key) -> ()")
for _name, _run in (
    ("fetch", _fetch),
    ("fetch_start", _fetch_start),
    ("fetch_wait", _fetch_wait),
    ("fetch_start_", _fetch_start_),
    ("fetch_wait_", _fetch_wait_),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")


def _fake_weight(ticket: Tensor, key: str) -> Tensor:
    return weight_of(key).empty(ticket.device)


def _nothing(*_args: object) -> None:
    pass


torch.library.register_fake("memcompile::fetch", _fake_weight, lib=_LIBRARY)
torch.library.register_fake("memcompile::fetch_start", _fake_weight, lib=_LIBRARY)
torch.library.register_fake("memcompile::fetch_wait", lambda y, _key: torch.empty_like(y), lib=_LIBRARY)
torch.library.register_fake("memcompile::fetch_start_", _nothing, lib=_LIBRARY)
torch.library.register_fake("memcompile::fetch_wait_", _nothing, lib=_LIBRARY)
