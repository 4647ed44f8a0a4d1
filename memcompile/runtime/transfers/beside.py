"""What transfers cost the computation beside them: they need processor time and memory bandwidth. Measured once, cached."""

from __future__ import annotations

import statistics
import time

import torch

from memcompile.logs import get_logger
from memcompile.machine import cache
from memcompile.machine.device import plain_mode
from memcompile.runtime.transfers.engine import Engine
from memcompile.runtime.transfers.speed import measure_tier, tier_key
from memcompile.runtime.transfers.tiers import DiskTier, Tier

log = get_logger(__name__)

PROBE_BYTES = 64 * 1024**2
ROUNDS = 5
SIZE = 512
"""Of the matrices that are multiplied meanwhile: large enough for all threads, small enough to stop soon."""
LONGER = 1.5
"""The computation lasts that many times as long as the transfers beside it are expected to."""


def busy_s_per_byte(tier: Tier, *, refresh: bool = False) -> float:
    """Seconds that computation on all threads of the CPU loses for each byte that moves to or from ``tier`` beside it.

    0 for pinned memory: a GPU's copy engines leave its processors alone. Measured in about a second, then cached.
    """
    if not isinstance(tier, DiskTier):
        return 0.0
    key = {**tier_key(tier), "threads": torch.get_num_threads()}
    found = cache.get("beside", key, float, lambda: _measure(tier), refresh=refresh, valid=lambda s: s >= 0)
    log.info("transfers to %s take %.3f s of computation per GiB", tier, found * 2**30)
    return found


def _measure(tier: DiskTier) -> float:
    """The median over rounds of what a fixed amount of computation takes longer while two tensors move out, then back."""
    model = measure_tier(tier)
    size_bytes = max(4096, min(PROBE_BYTES, tier.capacity_bytes // 4))
    engine = Engine((tier,))
    try:
        with plain_mode(torch.device("cpu")):
            sources = [torch.ones(size_bytes, dtype=torch.uint8) for _ in range(2)]
            dests = [torch.empty_like(source) for source in sources]
            matrix = torch.ones(SIZE, SIZE)
            one_s = _seconds(matrix, 20) / 20
            slowest = min(model.write_bytes_per_s, model.read_bytes_per_s)
            products = int(LONGER * len(sources) * size_bytes / slowest / one_s) + 1
            lost = []
            for _ in range(ROUNDS):
                tickets = [engine.out(source) for source in sources]
                out_s = _seconds(matrix, products)
                for ticket in tickets:
                    engine.out_wait(ticket)
                for ticket, dest in zip(tickets, dests, strict=True):
                    engine.into(ticket, dest)
                in_s = _seconds(matrix, products)
                for ticket, dest in zip(tickets, dests, strict=True):
                    engine.into_wait(ticket, dest)
                lost.append(out_s + in_s - 2 * _seconds(matrix, products))
    finally:
        engine.close()
    return max(0.0, statistics.median(lost)) / (4 * size_bytes)


def _seconds(matrix: torch.Tensor, products: int) -> float:
    start = time.perf_counter()
    for _ in range(products):
        matrix @ matrix
    return time.perf_counter() - start
