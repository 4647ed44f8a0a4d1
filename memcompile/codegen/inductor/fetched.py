"""The lowering of fetches: how Inductor runs ``memcompile::fetch_start`` and ``memcompile::fetch_wait``.

Memory for a weight is allocated by the lowered code, like every other buffer of it: exact peaks and the arena include it.
Private API in use: ``register_lowering``, ``empty_strided`` and ``FallbackKernel`` of Inductor.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from memcompile.runtime.transfers.weight import weight_of


@functools.cache
def register_fetch() -> None:
    """Teach Inductor the two operators."""
    from torch._inductor.ir import FallbackKernel
    from torch._inductor.lowering import empty_strided, register_lowering

    ops = torch.ops.memcompile

    @register_lowering(ops.fetch_start.default, type_promotion_kind=None)
    def fetch_start(ticket: Any, key: str) -> Any:
        weight = weight_of(key)
        stride = torch.empty(weight.shape, device="meta").stride()
        y = empty_strided(weight.shape, stride, dtype=weight.dtype, device=ticket.get_device())
        FallbackKernel.create(ops.fetch_start_.default, ticket, y, key)
        return y

    @register_lowering(ops.fetch_wait.default, type_promotion_kind=None)
    def fetch_wait(y: Any, key: str) -> Any:
        FallbackKernel.create(ops.fetch_wait_.default, y, key)
        return y
