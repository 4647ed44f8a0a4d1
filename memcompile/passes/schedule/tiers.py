"""The user's tiers as the planner and the compiled code take them: measured links and an engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memcompile.codegen.inductor.swapped import register_swap
from memcompile.errors import InvalidOptionError
from memcompile.machine.device import device_model
from memcompile.passes.schedule.swap import Tiers
from memcompile.runtime.transfers.beside import busy_s_per_byte
from memcompile.runtime.transfers.engine import Engine
from memcompile.runtime.transfers.speed import measure_tier
from memcompile.runtime.transfers.tiers import Tier
from memcompile.solvers.transfers.link import Link


def usable(tiers: Sequence[Tier], device: torch.device) -> list[Tier]:
    """The tiers that ``device`` can use. Raises `InvalidOptionError` where a CPU model may move to pinned host memory alone."""
    found = [tier for tier in tiers if tier.name != "host" or device.type == "cuda"]
    if tiers and not found:
        raise InvalidOptionError(
            "swap", {tier.name: tier.to_option() for tier in tiers}, "{'disk': '/scratch'}", hint="a CPU's memory is the host's"
        )
    return found


def measured(tiers: Sequence[Tier], device: torch.device, *, dry: bool, recompute: bool = True) -> Tiers:
    """Links of usable tiers, measured once a machine, and what moves; nothing moves in a ``dry`` run. Raises what measuring
    raises. ``recompute``: see `Tiers`."""
    if not tiers:
        return Tiers()
    register_swap()
    links = []
    for tier in tiers:
        found = measure_tier(tier)
        rates = found.write_bytes_per_s, found.read_bytes_per_s, found.latency_s
        links.append(Link(tier.name, *rates, tier.capacity_bytes, busy_s_per_byte(tier)))
    mover = None if dry else Engine(tiers)
    return Tiers(tuple(links), mover, device_model(device).fresh_memory_s_per_byte, recompute)
