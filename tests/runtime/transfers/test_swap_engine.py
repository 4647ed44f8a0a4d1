"""The swap engine on a disk: what is read back is what was written, in any order, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memcompile.errors import SwapLayoutError, SwapTicketError
from memcompile.runtime.transfers.engine import Engine
from memcompile.runtime.transfers.memory import aligned_memory
from tests.swapping import MIB, Gate, disk_engine, random_bytes, read_back, round_trip, same_bytes, settle, store_of

DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
SIZES = (0, 1, 7, 8, 4095, 4096, 4097, 70_001, 256 * 1024, 300_001, 4 * MIB, 9 * MIB + 5)


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_type_comes_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    engine = disk_engine(tmp_path)
    raw = random_bytes(3 * 1001 * 16)
    tensor = (raw % 2).view(dtype) if dtype is torch.bool else raw.view(dtype)  # NaNs of all kinds among them
    tensor = tensor.view(3, -1)
    assert same_bytes(round_trip(engine, tensor), tensor)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
@pytest.mark.parametrize("size_bytes", SIZES)
def test_every_size_comes_back_at_every_address(tmp_path: Path, size_bytes: int, direct: bool) -> None:
    engine = disk_engine(tmp_path, direct=direct)
    assert direct or not store_of(engine).file.direct
    for shift in (0, 3):  # unaligned memory on either side
        tensor = random_bytes(size_bytes + shift)[shift:]
        ticket = engine.out(tensor)
        for other in (0, 1, 64):
            around = torch.full((size_bytes + other + 64,), 7, dtype=torch.uint8)
            dest = around[other : other + size_bytes]
            assert read_back(engine, ticket, dest).equal(tensor)
            assert around[:other].eq(7).all()
            assert around[other + size_bytes :].eq(7).all()


def test_aligned_memory_is_moved_without_a_copy(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    if not store_of(engine).file.direct:
        pytest.skip("no direct I/O here")
    tensor, dest = torch.from_numpy(aligned_memory(2 * MIB)), torch.from_numpy(aligned_memory(2 * MIB))
    tensor.copy_(random_bytes(2 * MIB))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memcompile.runtime.transfers.requests.Scratch.get", lambda *_: pytest.fail("staged"))
        assert read_back(engine, engine.out(tensor), dest).equal(tensor)


def test_permuted_strides_are_kept_or_refused(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    image = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    ticket = engine.out(image)
    assert read_back(engine, ticket, torch.empty_like(image)).equal(image)
    plain = torch.empty(image.numel() * 4, dtype=torch.uint8)
    assert read_back(engine, ticket, plain).view(torch.float32).equal(image.permute(0, 2, 3, 1).flatten())
    with pytest.raises(SwapLayoutError, match="strides"):
        engine.into(ticket, torch.empty(2, 3, 8, 8))
    with pytest.raises(SwapLayoutError, match="1536 bytes were swapped out, the destination has 1024"):
        engine.into(ticket, torch.empty(256))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 8)[:, ::2],
        torch.zeros(4, 1).expand(4, 4),
        torch.zeros(8, 8)[:, :4],
        torch.zeros(3, dtype=torch.cfloat).conj(),
    ],
    ids=["stepped", "expanded", "cut", "conjugated"],
)
def test_what_is_not_plain_bytes_is_refused(tmp_path: Path, tensor: Tensor) -> None:
    engine = disk_engine(tmp_path)
    with pytest.raises(SwapLayoutError):
        engine.out(tensor)
    assert engine.live_bytes() == 0


def test_dimensions_of_one_element_may_have_any_stride(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    tensor = torch.randn(4, 1, 8).as_strided((4, 1, 8), (8, 123, 1))
    assert read_back(engine, engine.out(tensor), torch.empty(4, 1, 8)).equal(tensor)


def test_part_of_a_storage_moves_alone(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    base = torch.arange(4096.0)
    ticket = engine.out(base[1000:2000])
    dest = torch.zeros(4096)
    read_back(engine, ticket, dest[8:1008])
    assert dest[8:1008].equal(base[1000:2000])
    assert dest[:8].eq(0).all()
    assert dest[1008:].eq(0).all()


# --- order -----------------------------------------------------------------------------------------------------------


def test_a_read_may_be_asked_for_before_the_write_is_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate = disk_engine(tmp_path), Gate(os.pwrite)
    monkeypatch.setattr(os, "pwrite", gate)
    tensor, dest = random_bytes(6 * MIB), torch.zeros(6 * MIB, dtype=torch.uint8)
    ticket = engine.out(tensor)
    engine.into(ticket, dest)
    assert gate.reached.wait(60)
    assert dest[4096:-4096].eq(0).all()  # not yet (the unaligned ends never leave memory)
    gate.open()
    engine.into_wait(ticket, dest)
    engine.out_wait(ticket)
    assert dest.equal(tensor)


def test_one_ticket_is_read_many_times_at_once(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    tensor = random_bytes(5 * MIB)
    ticket = engine.out(tensor)
    dests = [torch.zeros_like(tensor) for _ in range(3)]
    for dest in [*dests, dests[0]]:  # one of them twice: whoever waits gets the last
        engine.into(ticket, dest)
    for dest in reversed(dests):
        engine.into_wait(ticket, dest)
        assert dest.equal(tensor)


def test_memory_is_kept_until_it_is_written_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate = disk_engine(tmp_path), Gate(os.pwrite)
    monkeypatch.setattr(os, "pwrite", gate)
    tensor = random_bytes(5 * MIB)
    expected = tensor.clone()
    array = tensor.numpy()
    kept = weakref.ref(array)
    owned = torch.from_numpy(array)
    del tensor, array
    ticket = engine.out(owned)
    del owned
    gc.collect()
    assert kept() is not None
    gate.open()
    engine.out_wait(ticket)
    assert kept() is None
    assert read_back(engine, ticket, torch.zeros_like(expected)).equal(expected)


def test_destination_is_kept_until_it_is_filled_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate = disk_engine(tmp_path), Gate(os.preadv)
    ticket = engine.out(random_bytes(5 * MIB))
    array = np.zeros(5 * MIB, dtype=np.uint8)
    kept = weakref.ref(array)
    dest = torch.from_numpy(array)
    del array
    monkeypatch.setattr(os, "preadv", gate)
    engine.into(ticket, dest)
    del dest  # an exception passes by
    assert kept() is not None
    gate.open()
    other = torch.zeros(5 * MIB, dtype=torch.uint8)
    read_back(engine, ticket, other)
    engine.close()
    assert kept() is None


def test_reads_come_before_writes_and_what_is_waited_for_before_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = disk_engine(tmp_path, threads=1)
    journal: list[Any] = []
    first, other = engine.out(random_bytes(MIB)), engine.out(random_bytes(MIB))
    engine.out_wait(first)
    engine.out_wait(other)
    write, read = Gate(os.pwrite, journal, "write"), Gate(os.preadv, journal, "read")
    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "preadv", read)
    late = [engine.out(random_bytes(MIB)) for _ in range(3)]
    assert write.reached.wait(60)  # the thread is in the first of the three
    dests = [torch.zeros(MIB, dtype=torch.uint8) for _ in range(2)]
    for dest in dests:
        engine.into(first, dest)
    waiter = threading.Thread(target=engine.out_wait, args=(late[2],))
    waiter.start()
    while not store_of(engine).workers._urgent:
        time.sleep(0.001)
    write.open()
    read.open()
    waiter.join(60)
    settle(engine)
    assert journal == ["write", "write", "read", "read", "write"]


# --- tickets ---------------------------------------------------------------------------------------------------------


def test_a_ticket_is_a_tensor(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    tensor, dest = torch.randn(300, 300), torch.empty(300, 300)
    ticket = engine.out(tensor, "disk")
    assert (ticket.dtype, ticket.shape, ticket.device.type) == (torch.int64, (1,), "cpu")
    engine.out_wait(ticket)
    read_back(engine, ticket, dest)
    assert dest.equal(tensor)


def test_place_is_free_when_the_last_view_of_the_ticket_dies(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    ticket = engine.out(random_bytes(MIB))
    view = ticket.detach()[:1]
    engine.out_wait(ticket)
    del ticket
    assert engine.live_bytes() > 0
    read_back(engine, view, torch.zeros(MIB, dtype=torch.uint8))
    del view
    assert engine.live_bytes() == 0


def test_copy_of_a_dead_ticket_is_refused(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    copy = engine.out(random_bytes(100)).clone()
    for call in (engine.out_wait, lambda ticket: engine.into(ticket, torch.zeros(100, dtype=torch.uint8))):
        with pytest.raises(SwapTicketError, match="stands for nothing"):
            call(copy)


def test_waiting_for_what_was_not_asked_is_an_error(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    ticket, dest = engine.out(random_bytes(100)), torch.zeros(100, dtype=torch.uint8)
    with pytest.raises(SwapTicketError, match="nothing is being read"):
        engine.into_wait(ticket, dest)
    read_back(engine, ticket, dest)
    with pytest.raises(SwapTicketError, match="nothing is being read"):
        engine.into_wait(ticket, dest)


class Swapped(torch.autograd.Function):
    """x -> x², whose backward reads x from disk."""

    engine: Engine

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ticket = Swapped.engine.out(x)
        ctx.save_for_backward(ticket)
        Swapped.engine.out_wait(ticket)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (ticket,) = ctx.saved_tensors
        x = torch.empty_like(gradient)
        read_back(Swapped.engine, ticket, x)
        return 2 * x * gradient


def test_backward_finds_its_tensor_twice_and_frees_it_when_it_never_comes(tmp_path: Path) -> None:
    Swapped.engine = engine = disk_engine(tmp_path)
    x = torch.randn(1000, requires_grad=True)
    apply: Any = Swapped.apply
    y = apply(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad is not None and x.grad.equal(4 * x.detach())
    assert engine.live_bytes() == 0
    z = apply(x)
    assert engine.live_bytes() > 0
    del z  # the backward never comes
    assert engine.live_bytes() == 0
    del Swapped.engine


def test_ticket_dies_while_the_store_is_locked_or_under_garbage_collection(tmp_path: Path) -> None:
    engine = disk_engine(tmp_path)
    store, tickets = store_of(engine), [engine.out(random_bytes(MIB)) for _ in range(2)]
    for ticket in tickets:
        engine.out_wait(ticket)
    cycle = [tickets.pop()]
    cycle.append(cycle)  # type: ignore[arg-type]
    del cycle, ticket
    with store._lock, store.workers._lock:
        tickets.clear()
        gc.collect()
    assert engine.live_bytes() == 0


def test_dropped_ticket_takes_its_waiting_write_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate = disk_engine(tmp_path, threads=1), Gate(os.pwrite)
    monkeypatch.setattr(os, "pwrite", gate)
    first, second = engine.out(random_bytes(MIB)), engine.out(random_bytes(MIB))
    assert gate.reached.wait(60)
    del second
    gate.open()
    third = engine.out(random_bytes(MIB))
    engine.out_wait(first)
    engine.out_wait(third)
    assert len(gate.journal) == 2
