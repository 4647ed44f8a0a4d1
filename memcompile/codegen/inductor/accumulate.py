"""``memcompile::mm_add(acc, a, b) -> acc + a @ b``: a matrix product that is added to a tensor where that tensor lies.

    acc [M, N],  a [M, K],  b [K, N]  ->  [M, N],   all of one floating-point type

In graphs the op is functional, and it is lowered to ``addmm(acc, a, b, out=new)``, as plain Inductor lowers such a sum. Where
the wrapper lines say that ``acc`` dies with that call, ``new`` takes over its memory: no second tensor, and no copy.

    buf2 = empty(...)                                   buf2 = buf0
    addmm(buf0, buf1, arg, out=buf2)           ->       addmm(buf0, buf1, arg, out=buf2)
    del buf0                                            del buf0
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

torch.library.define(
    "memcompile::mm_add",
    "(Tensor acc, Tensor a, Tensor b) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)


@torch.library.impl("memcompile::mm_add", ("cpu", "cuda"))
def _mm_add(acc: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(acc, a, b)


def _like(acc: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if acc.dim() != 2 or acc.shape != (a.shape[0], b.shape[1]) or a.shape[1] != b.shape[0]:
        raise ValueError(f"mm_add: {tuple(acc.shape)} + {tuple(a.shape)} @ {tuple(b.shape)}")
    return torch.empty(acc.shape, dtype=acc.dtype, device=acc.device)


torch.library.register_fake("memcompile::mm_add", _like)
MM_ADD = torch.ops.memcompile.mm_add.default


@register_flop_formula(torch.ops.memcompile.mm_add)
def _flops(_acc: Any, a: tuple[int, int], b: tuple[int, int], **_kwargs: Any) -> int:
    """Floating-point operations, from shapes."""
    return 2 * a[0] * a[1] * b[1]


@functools.cache
def mm_add() -> torch._ops.OpOverload:
    """The op, with Inductor taught to lower it."""
    from torch._inductor.lowering import register_lowering

    register_lowering(MM_ADD, type_promotion_kind=None)(_lower)
    return MM_ADD


def _lower(acc: Any, a: Any, b: Any) -> Any:
    from torch._inductor.lowering import lowerings

    return lowerings[torch.ops.aten.addmm.default](acc, a, b)


def in_place(lines: Sequence[Any]) -> list[Any]:
    """Wrapper lines in which each ``mm_add`` writes over its ``acc`` when that dies there."""
    from torch._inductor.codegen.wrapper import FreeLine, ReuseLine, can_match_buffer_size

    found = list(lines)
    allocations = {line.node.get_name(): i for i, line in enumerate(lines) if type(line).__name__ == "AllocateLine"}
    for index, line in enumerate(lines):
        acc = accumulator(line.node) if type(line).__name__ == "ExternKernelOutLine" else None
        new = None if acc is None else allocations.get(line.node.get_name())
        free = None if acc is None else _free_line(lines, index, acc.get_name())
        if new is not None and free is not None and can_match_buffer_size(lines[free].node, line.node):
            wrapper, dying = lines[new].wrapper, lines[free].node
            found[new] = ReuseLine(wrapper, dying, line.node, delete_old=False)
            found[free] = FreeLine(wrapper, dying)
    return found


def accumulator(kernel: Any) -> Any:
    """The addend that a library kernel may write its sum over: of an ``mm_add``, with the strides of the sum and no factor of
    the product; or None."""
    origin = kernel.get_origin_node()
    if origin is None or origin.target is not MM_ADD or getattr(kernel, "python_kernel_name", "") != "extern_kernels.addmm":
        return None
    acc, *factors = kernel.inputs
    own, other = kernel.get_layout(), acc.get_layout()
    same = (list(own.size), list(own.stride), own.dtype) == (list(other.size), list(other.stride), other.dtype)
    apart = all(factor.get_name() != acc.get_name() for factor in factors)
    return acc if same and apart and other.offset == 0 else None


def _free_line(lines: Sequence[Any], index: int, name: str) -> int | None:
    """The line right behind a kernel that gives the buffer back for others to use; None when it lives on."""
    for i in range(index + 1, len(lines)):
        match type(lines[i]).__name__:
            case "FreeIfNotReusedLine":
                if lines[i].node.get_name() == name:
                    return i
            case "FreeLine" | "str":
                continue
            case _:
                return None
    return None
