"""The lowering of transfers: how Inductor runs the operators of ``runtime/transfers/operators.py``.

Memory that is taken again is allocated by the lowered code, like every other buffer of it: exact peaks and the arena include
moves. Private API in use: ``register_lowering``, ``empty_strided`` and ``FallbackKernel`` of Inductor.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from memcompile.runtime.transfers.sources import moved_of, source_of

_TRANSFERS = ("swap_out", "swap_out_wait_", "swap_in_", "swap_in_wait_")
"""As lowered code calls them."""
_WAITS = ("swap_out_wait", "swap_in_wait")
"""As graphs call those whose lowering returns an operand."""


@functools.cache
def register_swap() -> None:
    """Teach Inductor the four operators. The layout that the lowered forward gives a storage is that of its copy."""
    from torch._inductor.ir import FallbackKernel, TensorBox
    from torch._inductor.lowering import empty_strided, register_lowering

    ops = torch.ops.memcompile

    @register_lowering(ops.swap_out.default, type_promotion_kind=None)
    def swap_out(x: Any, key: str) -> Any:
        x.realize()
        x.freeze_layout()
        moved_of(key).stride = tuple(map(int, x.get_stride()))
        return TensorBox.create(FallbackKernel.create(ops.swap_out.default, x, key))

    @register_lowering(ops.swap_out_wait.default, type_promotion_kind=None)
    def swap_out_wait(x: Any, ticket: Any, key: str) -> Any:
        FallbackKernel.create(ops.swap_out_wait_.default, x, ticket, key)
        return ticket

    @register_lowering(ops.swap_in.default, type_promotion_kind=None)
    def swap_in(ticket: Any, key: str) -> Any:
        source = source_of(key)
        y = empty_strided(source.shape, source.stride, dtype=source.dtype, device=source.device or ticket.get_device())
        FallbackKernel.create(ops.swap_in_.default, ticket, y, key)
        return y

    @register_lowering(ops.swap_in_wait.default, type_promotion_kind=None)
    def swap_in_wait(y: Any, ticket: Any, key: str) -> Any:
        FallbackKernel.create(ops.swap_in_wait_.default, y, ticket, key)
        return y


def is_move(kernel: Any) -> bool:
    """Whether an IR node of Inductor only starts a transfer or waits for one."""
    called = getattr(kernel, "op_overload", None)
    return called is not None and called._opname in _TRANSFERS and called.namespace == "memcompile"


def returns_operand(node: fx.Node) -> bool:
    """Whether the lowering of a node returns one of its operands: for Inductor, the operand then comes from this node."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "memcompile" and target._opname in _WAITS
