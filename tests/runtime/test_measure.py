"""The measured peak against allocations made by hand: every expected number is arithmetic on element counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from memcompile.errors import UnsupportedDeviceError
from memcompile.runtime.measure import entry_storages, highest_sum, measure_peak, record_allocations
from memcompile.runtime.watch import AllocationEvent

MIB = 1 << 20
CPU = torch.device("cpu")


def mib(count: float) -> torch.Tensor:
    """A fresh, untouched block of `count` MiB."""
    return torch.empty(int(count * MIB), dtype=torch.uint8)


class Empty(nn.Module):
    """No parameters: everything measured is the step's own."""


def transient(step: Callable[[], object]) -> int:
    return measure_peak(step, model=Empty(), inputs=()).transient_bytes


def test_sequence_of_allocations_and_frees_is_exact() -> None:
    def step() -> None:
        first, second = mib(3), mib(5)
        del first
        third = mib(2)  # 5 + 2 alive: below the 8 before
        del second, third

    assert transient(step) == 8 * MIB


def test_the_peak_is_not_the_sum_and_not_the_end() -> None:
    def step() -> None:
        for size in (1, 7, 4):
            block = mib(size)
            del block

    assert transient(step) == 7 * MIB


def test_a_result_that_outlives_the_step_counts() -> None:
    assert transient(lambda: [mib(2), mib(2)]) == 4 * MIB


def test_resize_counts_the_new_block() -> None:
    def step() -> None:
        block = mib(1)
        block.resize_(6 * MIB)

    assert 6 * MIB <= transient(step) <= 7 * MIB


def test_entry_storages_count_once() -> None:
    model = nn.Module()
    model.first = nn.Parameter(torch.zeros(1024, 256))
    model.tied = model.first
    model.register_buffer("row", model.first.detach()[3])  # a view keeps the whole storage alive, once
    batch = {"pair": [torch.zeros(256), torch.zeros(128)], "flag": True}
    assert sum(entry_storages(model, batch, CPU).values()) == (1024 * 256 + 256 + 128) * 4


def test_gradients_alive_at_entry_count() -> None:
    model = nn.Linear(256, 256, bias=False)
    batch = torch.ones(1, 256)
    before = measure_peak(lambda: None, model=model, inputs=batch)
    model(batch).sum().backward()
    after = measure_peak(lambda: None, model=model, inputs=batch)
    assert (before.peak_bytes, after.peak_bytes) == ((65536 + 256) * 4, (2 * 65536 + 256) * 4)


def test_entry_storage_freed_during_the_step_is_subtracted() -> None:
    """A gradient set to None makes room: the level falls below entry, and the peak is where it rises again."""
    model: Any = nn.Module()
    model.weight = nn.Parameter(torch.zeros(MIB))  # 4 MiB

    def step() -> None:
        model.weight.grad = None
        block = mib(3)
        del block
        model.weight.grad = torch.empty_like(model.weight)

    result = measure_peak(step, model=model, inputs=())
    assert result.entry_bytes == 8 * MIB
    assert result.transient_bytes == 0
    assert result.peak_bytes == 8 * MIB


def test_release_of_what_was_never_counted_is_ignored() -> None:
    """An older result dropped inside the step is no entry storage: its bytes were not added, so they are not taken off."""
    kept: list[torch.Tensor] = []

    def step() -> None:
        kept[:] = []
        block = mib(3)
        kept.append(mib(5))
        del block

    assert transient(step) == 8 * MIB


def test_running_sum_follows_addresses() -> None:
    events = [
        AllocationEvent(0, 0xA, 10),
        AllocationEvent(1, 0xE, -50),  # an entry storage
        AllocationEvent(2, 0xF, -99),  # unknown
        AllocationEvent(3, 0xB, 45),  # level: 10 - 50 + 45
        AllocationEvent(4, 0xA, -10),
        AllocationEvent(5, 0xA, 20),  # the address is used again
    ]
    assert highest_sum(events, {0xE: 50}) == 15
    assert highest_sum(events, {}) == 65
    assert highest_sum([AllocationEvent(0, 0xE, -50)], {0xE: 50}) == 0


def test_events_are_ordered_and_other_peoples_threads_are_not_the_step() -> None:
    def step() -> None:
        block = mib(1)
        other = threading.Thread(target=lambda: mib(9))
        other.start()
        other.join()
        del block
        mib(2)

    events = record_allocations(step)
    assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)
    assert highest_sum(events, {}) == 2 * MIB


def test_backward_is_inside_the_measurement_to_the_byte() -> None:
    """sum(exp(x * x)), 4 MiB a tensor: the peak is in backward, where both products of x * x wait to be added."""
    x: Any = torch.ones(MIB, requires_grad=True)

    def step() -> None:
        x.grad = None
        (x * x).exp().sum().backward()

    result = measure_peak(step, model=Empty(), inputs=x)
    assert result.entry_bytes == 2 * 4 * MIB  # x, and the gradient of the step before, which the step drops
    assert result.peak_bytes == 4 * 4 * MIB + 8  # x, exp's gradient, two products; the loss and its gradient


def test_compiled_step_is_measured_after_it_is_compiled() -> None:
    model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.GELU(), nn.Linear(512, 512, bias=False))
    batch = torch.randn(1024, 512)
    compiled: Any = torch.compile(model)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        compiled(batch).sum().backward()

    first = measure_peak(step, model=compiled, inputs=batch)
    again = measure_peak(step, model=compiled, inputs=batch, warmup=0)
    block, weight = 1024 * 512 * 4, 512 * 512 * 4
    assert first == again
    assert first.entry_bytes == block + 4 * weight  # batch, weights, and the gradients of the step before
    assert first.peak_bytes >= 3 * block + 2 * weight  # batch, the saved input of GELU, and one more block
    assert first.peak_bytes <= 5 * block + 4 * weight


def test_unsupported_device_names_the_supported_ones() -> None:
    with pytest.raises(UnsupportedDeviceError, match="meta"):
        measure_peak(lambda: None, model=nn.Linear(2, 2, device="meta"), inputs=())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_peak_is_the_allocators() -> None:
    model = nn.Linear(1024, 1024, bias=False, device="cuda")

    def step() -> torch.Tensor:
        return torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")

    result = measure_peak(step, model=model, inputs=())
    assert result.transient_bytes == 8 * MIB
    assert result.entry_bytes >= 4 * MIB
