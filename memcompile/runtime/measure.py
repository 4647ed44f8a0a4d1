"""The measured peak of a step: what the promise of a budget is held against.

The definition is the budget's own. On CUDA it is the allocator's `max_memory_allocated` over the step. The CPU allocator
keeps no statistics, so there it is

    bytes of the distinct storages alive at entry that the step's graphs read (parameters, buffers, batch, gradients)
    and of the arenas that were kept from earlier steps
    + the highest running sum of the profiler's allocation events while the step runs.

The running sum follows addresses instead of adding signed sizes: the release of an allocation made during the step lowers
it, so does the release of an entry storage (a gradient set to None), and the release of anything else (an older loss) is
ignored, because those bytes were never added.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_leaves

from memcompile.errors import UnsupportedDeviceError
from memcompile.runtime.arena import BLOCKS
from memcompile.runtime.transfers.held import resident_tensors
from memcompile.runtime.watch import AllocationEvent, allocations
from memcompile.step.parts import storages_of

Step = Callable[[], object]


@dataclass(frozen=True)
class Measurement:
    """The measured peak of one step.

    `peak_bytes` = `entry_bytes` + `transient_bytes`: what was alive when the step was entered, and the most that the step
    held on top of it at any moment.
    """

    peak_bytes: int
    entry_bytes: int
    transient_bytes: int
    device: torch.device


def measure_peak(step: Step, *, model: torch.nn.Module, inputs: object, warmup: int = 1) -> Measurement:
    """Run `step`, forward and backward, and measure the most bytes that were allocated at once on the model's device.

    `step` runs `warmup` + 2 times: the first calls compile, the one before last allocates under the profiler (the profiler
    only reports the release of blocks that it saw being made, and a step often releases its predecessor's gradients), and
    the last is measured. `inputs` is any pytree that holds the batch's tensors.

    Raises `UnsupportedDeviceError` on a device that is neither CPU nor CUDA.
    """
    device = device_of(model, inputs)
    for _ in range(warmup):
        step()
    if device.type == "cuda":
        return _measure_cuda(step, device)
    if device.type == "cpu":
        return _measure_cpu(step, model, inputs)
    raise UnsupportedDeviceError(device.type)


def device_of(model: torch.nn.Module, inputs: object) -> torch.device:
    """The device that the step runs on: that of the first parameter, buffer or input."""
    return next((tensor.device for tensor in _entry_tensors(model, inputs)), torch.device("cpu"))


def entry_storages(model: torch.nn.Module, inputs: object, device: torch.device) -> dict[int, int]:
    """Address -> bytes of each distinct storage on `device` among parameters, buffers, inputs and their gradients.

    Tied weights and views share a storage and count once; a view counts with the whole storage that it keeps alive.
    """
    sizes: dict[int, int] = {}
    for tensor in _entry_tensors(model, inputs):
        if tensor.device == device:
            sizes |= {storage.data_ptr(): storage.nbytes() for storage in storages_of(tensor)}
    return sizes


def highest_sum(events: Iterable[AllocationEvent], entry: Mapping[int, int]) -> int:
    """Most bytes above the entry level at any moment of `events`, which are in order of time; never below zero.

    `entry` maps the addresses of the storages counted at entry to their bytes: their release lowers the level below zero.
    """
    counted = dict(entry)
    level_bytes = highest_bytes = 0
    for event in events:
        if event.size_bytes > 0:
            counted[event.address] = event.size_bytes
            level_bytes += event.size_bytes
            highest_bytes = max(highest_bytes, level_bytes)
        else:
            level_bytes -= counted.pop(event.address, 0)
    return highest_bytes


def record_allocations(step: Step) -> list[AllocationEvent]:
    """Run `step` under the profiler and return the CPU allocator's events on its threads, in order of time."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler otherwise prints its start and stop to stderr
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
        step()
    results = profile.kineto_results
    if results is None:
        raise RuntimeError("the profiler returned no events: another profiler is running around the measurement")
    return allocations(results.experimental_event_tree())


def _measure_cpu(step: Step, model: torch.nn.Module, inputs: object) -> Measurement:
    record_allocations(step)
    gc.collect()
    device = torch.device("cpu")
    entry = entry_storages(model, inputs, device)
    entry_bytes = sum(entry.values()) + BLOCKS.reserved_bytes(device)
    transient_bytes = highest_sum(record_allocations(step), entry)
    return Measurement(entry_bytes + transient_bytes, entry_bytes, transient_bytes, device)


def _measure_cuda(step: Step, device: torch.device) -> Measurement:
    step()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    entry_bytes = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak_bytes = torch.cuda.max_memory_allocated(device)
    return Measurement(peak_bytes, entry_bytes, peak_bytes - entry_bytes, device)


def _entry_tensors(model: torch.nn.Module, inputs: object) -> Iterator[torch.Tensor]:
    """Parameters, buffers, offloaded weights that stay in memory, and inputs, each followed by its gradient."""
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    for tensor in [*model.parameters(), *model.buffers(), *resident_tensors(model), *leaves]:
        yield tensor
        if tensor.is_leaf and tensor.grad is not None:
            yield tensor.grad
