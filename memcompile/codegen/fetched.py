"""The lowering of fetches: how Inductor runs ``memcompile::fetch_start`` and ``memcompile::fetch_wait``.

Memory for a weight is allocated by the lowered code, like every other buffer of it: exact peaks and the arena include it.
Private API in use: ``register_lowering``, ``empty_strided`` and ``FallbackKernel`` of Inductor.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


@functools.cache
def register_fetch() -> None:
    """Teach Inductor the two operators."""
    from torch._inductor.ir import FallbackKernel
    from torch._inductor.lowering import empty_strided, register_lowering
    from torch._inductor.virtualized import V

    ops = torch.ops.memcompile

    @register_lowering(ops.fetch_start.default, type_promotion_kind=None)
    def fetch_start(ticket: Any, key: str) -> Any:
        value = V.graph.current_node.meta["val"]
        y = empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.device)
        FallbackKernel.create(ops.fetch_start_.default, ticket, y, key)
        return y

    @register_lowering(ops.fetch_wait.default, type_promotion_kind=None)
    def fetch_wait(y: Any, key: str) -> Any:
        FallbackKernel.create(ops.fetch_wait_.default, y, key)
        return y
