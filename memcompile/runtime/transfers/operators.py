"""The operators of transfers, as nodes of a graph and as lowered code calls them.

    ticket = memcompile::swap_out(x, key)                 the copy of a storage to its tier starts
    ticket = memcompile::swap_out_wait(x, ticket, key)    it is there: nothing needs the memory of x any more
    y      = memcompile::swap_in(ticket, key)             memory is taken, the copy back, or the read of a weight, starts
    y      = memcompile::swap_in_wait(y, ticket, key)     it is there
    w      = memcompile::fetch(ticket, key)               a weight, read at once (eager; a graph without a plan)

The ticket of a storage is a tensor on the CPU with one element, that stands for the copy: it is saved for the backward in place
of x, and the copy is dropped with it. That of a weight is a buffer of its model, which nobody reads: it makes weights no
constants, says on which device they are wanted, and tells which model a graph belongs to. Lowered code calls the variants with
a trailing underscore, which write memory that it allocated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memcompile.runtime.transfers.sources import memory_for, moved_of, source_of
from memcompile.runtime.transfers.weight import weight_of
from memcompile.runtime.transfers.weight_store import read


def _swap_out(x: Tensor, key: str) -> Tensor:
    return moved_of(key).out(x)


def _swap_out_wait_(_x: Tensor, ticket: Tensor, key: str) -> None:
    moved_of(key).run().out_wait(ticket)


def _swap_in_(ticket: Tensor, y: Tensor, key: str) -> None:
    source_of(key).start(ticket, y)


def _swap_in_wait_(y: Tensor, ticket: Tensor, key: str) -> None:
    source_of(key).wait(ticket, y)


def _fetch(ticket: Tensor, key: str) -> Tensor:
    return read(weight_of(key), ticket.device)


def _fake_ticket(*_args: object) -> Tensor:
    return torch.empty(1, dtype=torch.int64, device="cpu")


def _fake_source(ticket: Tensor, key: str) -> Tensor:
    return memory_for(source_of(key), ticket.device)


def _fake_same(y: Tensor, _ticket: Tensor, _key: str) -> Tensor:
    return torch.empty_like(y)


def _fake_nothing(*_args: object) -> None:
    pass


_LIBRARY: Any = torch.library.Library("memcompile", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema, _run, _fake in (
    ("swap_out(Tensor x, str key) -> Tensor", _swap_out, _fake_ticket),
    ("swap_out_wait(Tensor x, Tensor ticket, str key) -> Tensor", None, _fake_ticket),
    ("swap_out_wait_(Tensor x, Tensor(a!) ticket, str key) -> ()", _swap_out_wait_, _fake_nothing),
    ("swap_in(Tensor ticket, str key) -> Tensor", None, _fake_source),
    ("swap_in_(Tensor ticket, Tensor(a!) y, str key) -> ()", _swap_in_, _fake_nothing),
    ("swap_in_wait(Tensor y, Tensor ticket, str key) -> Tensor", None, _fake_same),
    ("swap_in_wait_(Tensor(a!) y, Tensor ticket, str key) -> ()", _swap_in_wait_, _fake_nothing),
    ("fetch(Tensor ticket, str key) -> Tensor", _fetch, _fake_source),
):
    _LIBRARY.define(_schema)
    _name = _schema.partition("(")[0]
    if _run is not None:
        _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"memcompile::{_name}", _fake, lib=_LIBRARY)
