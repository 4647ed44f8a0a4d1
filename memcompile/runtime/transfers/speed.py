"""What a tier can do: measured once, through the engine itself with its checksums, then read from a cache file.

Measured is what a step sees from the second on: places in the file are written again and again. The first write to a place is
slower (a third of the speed on ext4 with O_DIRECT), and disks differ from place to place by a factor of two.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memcompile.errors import SwapError
from memcompile.logs import get_logger
from memcompile.machine import cache
from memcompile.machine.device import device_name, plain_mode
from memcompile.runtime.transfers.engine import Engine
from memcompile.runtime.transfers.tiers import DiskTier, HostTier, Tier

log = get_logger(__name__)

SCHEMA_VERSION = 1
PROBE_BYTES = 64 * 1024**2
DEPTH = 2
"""Tensors under way at once. Of weights, those up to ``PROBE_BYTES`` are read where there are any."""
LIMIT_S = 0.3
"""Seconds that each direction is measured for, at least one round."""


@dataclass(frozen=True, slots=True)
class TierModel:
    """A tier in numbers: what large tensors move at in each direction, and how long the smallest takes."""

    name: str
    write_bytes_per_s: float
    read_bytes_per_s: float
    latency_s: float


def measure_tier(tier: Tier, *, refresh: bool = False) -> TierModel:
    """The numbers of ``tier``, from the cache file unless ``refresh``; measured in about a second otherwise.

    Raises `TierUnavailableError`, and `TierFullError` where there is no room to measure. A tier smaller than the probe is
    measured with less.
    """
    return cache.get("tier", tier_key(tier), TierModel, lambda: _measure(tier), refresh=refresh, valid=_plausible)


def _plausible(model: TierModel) -> bool:
    return min(model.write_bytes_per_s, model.read_bytes_per_s, model.latency_s) > 0


def tier_key(tier: Tier) -> dict[str, Any]:
    """What the numbers depend on: the file system and the processor, or the GPU and its machine."""
    key = {"schema": SCHEMA_VERSION, "device": tier.name, "cpu": device_name(torch.device("cpu"))}
    if isinstance(tier, DiskTier):
        return {**key, "file_system": _file_system(tier.directory)}
    return {**key, "gpu": device_name(torch.device("cuda"))}


def _file_system(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Mount point, type and source of the file system, or what there is."""
    number = directory.stat().st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    try:
        for line in mounts.read_text().splitlines():
            fields = line.split()
            if fields[2] == wanted:
                after = fields[fields.index("-") + 1 :]
                return [fields[4], *after[:2]]
    except OSError:
        pass
    return [wanted]


def _measure(tier: Tier) -> TierModel:
    device = torch.device("cuda" if isinstance(tier, HostTier) else "cpu")
    size_bytes = max(min(PROBE_BYTES, tier.capacity_bytes // (2 * DEPTH)), 1)
    engine = Engine((tier,))
    try:
        with plain_mode(device):
            random = torch.Generator().manual_seed(0)
            words = torch.randint(-(2**62), 2**62, (DEPTH, -(-size_bytes // 8)), generator=random)
            probe = words.view(torch.uint8)[:, :size_bytes].to(device)
            sources = list(probe.unbind())
            dests = [torch.empty_like(source) for source in sources]
            _write(engine, sources)  # the first time is slow
            write_s = mean_seconds(lambda: _write(engine, sources), device)
            tickets = _write(engine, sources)
            _read(engine, tickets, dests)
            read_s = mean_seconds(lambda: _read(engine, tickets, dests), device)
            if not all(torch.equal(*pair) for pair in zip(sources, dests, strict=True)):
                raise SwapError(f"{tier} returns other bytes than were written, and no checksum saw it")
            latency_s = mean_seconds(lambda: _read(engine, _write(engine, [sources[0][:1]]), [dests[0][:1]]), device, 0.1) / 2
    finally:
        engine.close()
    moved = DEPTH * size_bytes
    model = TierModel(tier.name, moved / write_s, moved / read_s, latency_s)
    log.info("measured %s: %s", tier, model)
    return model


def _write(engine: Engine, sources: list[torch.Tensor]) -> list[torch.Tensor]:
    tickets = [engine.out(source, engine.tiers[0].name) for source in sources]
    for ticket in tickets:
        engine.out_wait(ticket)
    return tickets


def _read(engine: Engine, tickets: list[torch.Tensor], dests: list[torch.Tensor]) -> None:
    for ticket, dest in zip(tickets, dests, strict=True):
        engine.into(ticket, dest)
    for ticket, dest in zip(tickets, dests, strict=True):
        engine.into_wait(ticket, dest)


def mean_seconds(run: Callable[[], object], device: torch.device, limit_s: float = LIMIT_S) -> float:
    """Seconds of one run, on average over ``limit_s``."""
    runs, start = 0, time.perf_counter()
    while time.perf_counter() - start < limit_s or not runs:
        run()
        runs += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / runs
