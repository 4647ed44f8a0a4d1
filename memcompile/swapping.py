"""The user's tiers as the planner and the compiled code take them: measured links, and an engine once something moves."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from memcompile.codegen.swapped import register_swap
from memcompile.device import device_model
from memcompile.errors import InvalidOptionError
from memcompile.passes.swap import Tiers
from memcompile.runtime.swap.beside import busy_s_per_byte
from memcompile.runtime.swap.engine import Engine
from memcompile.runtime.swap.speed import measure_tier
from memcompile.runtime.swap.tiers import Tier
from memcompile.solvers.moves import Link


class LazyEngine:
    """An engine that opens its tiers as the first storage leaves: plans without moves leave no trace on a disk.

    ``waited_s``: seconds that steps have waited for transfers so far (on a GPU: the host).
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self.tiers = tiers
        self.waited_s = 0.0
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The tiers, open."""
        if self._engine is None:
            self._engine = Engine(self.tiers)
        return self._engine

    def out(self, tensor: Tensor, tier: str) -> Tensor:
        """See `Engine.out`."""
        return self.engine.out(tensor, tier)

    def out_wait(self, ticket: Tensor) -> None:
        """See `Engine.out_wait`."""
        start = time.perf_counter()
        self.engine.out_wait(ticket)
        self.waited_s += time.perf_counter() - start

    def into(self, ticket: Tensor, dest: Tensor) -> None:
        """See `Engine.into`."""
        self.engine.into(ticket, dest)

    def into_wait(self, ticket: Tensor, dest: Tensor) -> None:
        """See `Engine.into_wait`."""
        start = time.perf_counter()
        self.engine.into_wait(ticket, dest)
        self.waited_s += time.perf_counter() - start


def tiers_of(tiers: Sequence[Tier], device: torch.device, *, dry: bool) -> Tiers:
    """Links of the tiers that ``device`` can use, measured once, and what moves; nothing moves in a ``dry`` run.

    Raises `InvalidOptionError` where pinned host memory is all that a CPU model may move to, and what measuring raises.
    """
    usable = [tier for tier in tiers if tier.name != "host" or device.type == "cuda"]
    if tiers and not usable:
        raise InvalidOptionError(
            "swap", {tier.name: tier.to_option() for tier in tiers}, "{'disk': '/scratch'}", hint="a CPU's memory is the host's"
        )
    if not usable:
        return Tiers()
    register_swap()
    fresh_s = device_model(device).fresh_memory_s_per_byte
    links = []
    for tier in usable:
        found = measure_tier(tier)
        rates = found.write_bytes_per_s, found.read_bytes_per_s, found.latency_s
        busy_s = busy_s_per_byte(tier) + fresh_s / 2  # what comes back is written to fresh memory: half of what moves
        links.append(Link(tier.name, *rates, tier.capacity_bytes, busy_s))
    return Tiers(tuple(links), None if dry else LazyEngine(usable), fresh_s)
