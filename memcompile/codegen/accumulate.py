"""``memcompile::mm_add(acc, a, b) -> acc + a @ b``: a matrix product that is added to a tensor where that tensor lies.

    acc [M, N],  a [M, K],  b [K, N]  ->  [M, N],   all of one floating-point type

In graphs the op is functional. Lowered, it writes over ``acc`` when nobody reads that any more, and takes no memory of its own.
Plain Inductor makes ``addmm(acc, a, b, out=new)`` of the same sum: a second tensor of that size, and a copy.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import mm_flop, register_flop_formula

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
torch.library.define("memcompile::mm_add", "(Tensor acc, Tensor a, Tensor b) -> Tensor", tags=_TAGS)
torch.library.define("memcompile::mm_add_", "(Tensor(a!) acc, Tensor a, Tensor b) -> ()", tags=_TAGS)


@torch.library.impl("memcompile::mm_add", ("cpu", "cuda"))
def _mm_add(acc: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(acc, a, b)


@torch.library.impl("memcompile::mm_add_", ("cpu", "cuda"))
def _mm_add_(acc: Tensor, a: Tensor, b: Tensor) -> None:
    torch.addmm(acc, a, b, out=acc)


def _like(acc: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if acc.dim() != 2 or acc.shape != (a.shape[0], b.shape[1]) or a.shape[1] != b.shape[0]:
        raise ValueError(f"mm_add: {tuple(acc.shape)} + {tuple(a.shape)} @ {tuple(b.shape)}")
    return torch.empty_like(acc)


def _nothing(_acc: Tensor, _a: Tensor, _b: Tensor) -> None:
    return None


torch.library.register_fake("memcompile::mm_add", _like)
torch.library.register_fake("memcompile::mm_add_", _nothing)


@register_flop_formula(torch.ops.memcompile.mm_add)
def _flops(_acc: Any, a: Any, b: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    return int(mm_flop(a, b, out_shape=out_shape))


@functools.cache
def mm_add() -> torch._ops.OpOverload:
    """The op, with Inductor taught to lower it."""
    from torch._inductor.lowering import register_lowering

    register_lowering(torch.ops.memcompile.mm_add.default, type_promotion_kind=None)(_lower)
    return torch.ops.memcompile.mm_add.default


def _lower(acc: Any, a: Any, b: Any) -> Any:
    """In place when ``acc`` is a buffer of the graph that dies here; otherwise as plain Inductor does."""
    from torch._inductor.ir import FallbackKernel
    from torch._inductor.lowering import lowerings
    from torch._inductor.virtualized import V

    acc.realize()
    if not _dies_here(acc, V.graph):
        return lowerings[torch.ops.aten.addmm.default](acc, a, b)
    FallbackKernel.create(torch.ops.memcompile.mm_add_.default, acc, a, b)
    return acc


def _dies_here(acc: Any, graph: Any) -> bool:
    """Whether the memory of ``acc`` belongs to the graph, and no value that is still to be read is a view of it."""
    name = acc.get_name()
    if name in graph.graph_inputs or name in graph.constants or graph.try_get_buffer(name) is None:
        return False
    current: fx.Node = graph.current_node
    shared = (node for node, value in graph.env.items() if _name(value) == name)
    return not any(user > current for node in shared for user in node.users)


def _name(value: Any) -> str | None:
    """The buffer that a lowered value is, or is a view of; None for what is not stored."""
    from torch._inductor.ir import IRNode

    return value.maybe_get_name() if isinstance(value, IRNode) else None
