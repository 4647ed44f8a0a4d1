"""How fast weights are read: measured on the weights of a graph themselves, through their own store."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from memcompile.logs import get_logger
from memcompile.machine.device import plain_mode
from memcompile.runtime.transfers.sources import memory_for
from memcompile.runtime.transfers.weight import Weight
from memcompile.solvers.transfers.link import Link

log = get_logger(__name__)

ASSUMED = Link.to_read("disk", 1e9, 2e-4)
"""Of a dry run that finds no measurement: a plain NVMe disk."""
PROBE_BYTES = 64 * 1024**2
"""The largest weight that is read to measure, where there are smaller ones."""
DEPTH = 2
"""Reads under way at once."""
LIMIT_S = 0.3


def measured_link(weights: Sequence[Weight], device: torch.device) -> Link:
    """The numbers of the store of ``weights``: measured once in about half a second, by reading some of them."""
    store = weights[0].store
    if store.link is None:
        with plain_mode(device):
            store.link = _measure(weights, device)
        log.info("weights are read with %.2f GB/s from %s", store.link.read_bytes_per_s / 1e9, store.name)
    return store.link


def known_link(weights: Sequence[Weight]) -> Link | None:
    """The numbers, where they were measured before."""
    return weights[0].store.link


def _measure(weights: Sequence[Weight], device: torch.device) -> Link:
    fitting = [weight for weight in weights if weight.size_bytes <= PROBE_BYTES] or [min(weights, key=_size)]
    large = sorted(fitting, key=_size)[-4 * DEPTH :]
    large = [weight for weight in large if weight.size_bytes >= large[-1].size_bytes // 2]
    memory = [memory_for(weight, device) for weight in large[:DEPTH]]
    small = min(weights, key=_size)
    latency_s = min(_seconds([small], [memory_for(small, device)], device) for _ in range(3))
    alike = [memory[i % DEPTH] if i < DEPTH or _same(weight, large[i % DEPTH]) else None for i, weight in enumerate(large)]
    passed, moved = 0.0, 0
    _seconds(large[:1], memory[:1], device)  # fresh memory is slow
    while passed < LIMIT_S:
        dests = [memory_for(w, device) if dest is None else dest for w, dest in zip(large, alike, strict=True)]
        passed += _seconds(large, dests, device)
        moved += sum(map(_size, large))
    return Link.to_read(weights[0].store.name, max(1.0, moved / passed), latency_s)


def _same(weight: Weight, other: Weight) -> bool:
    return (weight.shape, weight.dtype) == (other.shape, other.dtype)


def _seconds(weights: Sequence[Weight], dests: Sequence[torch.Tensor], device: torch.device) -> float:
    """To read them one after the other, ``DEPTH`` under way."""
    start = time.perf_counter()
    for index, (weight, dest) in enumerate(zip(weights, dests, strict=True)):
        if index >= DEPTH:
            weights[index - DEPTH].store.wait(weights[index - DEPTH], dests[index - DEPTH])
        weight.store.start(weight, dest)
    for weight, dest in list(zip(weights, dests, strict=True))[-DEPTH:]:
        weight.store.wait(weight, dest)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _size(weight: Weight) -> int:
    return weight.size_bytes
