"""How fast weights are read: measured on the weights of a graph themselves, through their own store."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memcompile.logs import get_logger
from memcompile.machine.device import plain_mode
from memcompile.runtime.transfers.sources import memory_for
from memcompile.runtime.transfers.speed import DEPTH, PROBE_BYTES, mean_seconds
from memcompile.runtime.transfers.weight import Weight
from memcompile.solvers.transfers.link import Link

log = get_logger(__name__)

ASSUMED = Link.to_read("disk", 1e9, 2e-4)
"""Of a dry run that finds no measurement: a plain NVMe disk."""


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
    memory = [torch.empty(large[-1].size_bytes, dtype=torch.uint8, device=device) for _ in range(DEPTH)]
    dests = [memory[i % DEPTH][: weight.size_bytes].view(weight.dtype).view(weight.shape) for i, weight in enumerate(large)]
    small = min(weights, key=_size)
    dest = memory_for(small, device)
    latency_s = min(mean_seconds(lambda: _read([small], [dest]), device, 0.0) for _ in range(3))
    _read(large[:DEPTH], dests[:DEPTH])  # fresh memory is slow
    read_s = mean_seconds(lambda: _read(large, dests), device)
    return Link.to_read(weights[0].store.name, max(1.0, sum(map(_size, large)) / read_s), latency_s)


def _read(weights: Sequence[Weight], dests: Sequence[torch.Tensor]) -> None:
    """One after the other, ``DEPTH`` under way."""
    pairs = list(zip(weights, dests, strict=True))
    for index, (weight, dest) in enumerate(pairs):
        if index >= DEPTH:
            before, there = pairs[index - DEPTH]
            before.store.wait(before, there)
        weight.store.start(weight, dest)
    for weight, dest in pairs[-DEPTH:]:
        weight.store.wait(weight, dest)


def _size(weight: Weight) -> int:
    return weight.size_bytes
