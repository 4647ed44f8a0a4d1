"""Memory that PyTorch's own CPU kernels take while they run, beside their results.

Measured (``runtime/workspace.py``) where the call was measured before or may be made now. Else the sizes follow from the
kernels' source (``aten/src/ATen/native/cpu/FlashAttentionKernel.cpp``) and, for convolutions of oneDNN, from the allocations
that the profiler sees for most of their kernels. Small for large models; with many threads and long sequences it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from memcompile.runtime.workspace import as_lazy, workspace_bytes
from memcompile.step.fxutil import hint

_BLAS = frozenset({"mm", "addmm", "mm_add", "bmm", "baddbmm"})
"""They take nothing from PyTorch's allocator in single and double precision."""
_KV_BLOCK = 512
_FORWARD_BYTES, _BACKWARD_BYTES = 12_336, 12_992
"""Fixed scratchpads of a oneDNN convolution, beside its weights in blocked layout."""


def scratch_bytes(node: fx.Node, strides: Sequence[Sequence[int]] = ()) -> int:
    """Bytes alive only while the library kernel of ``node`` runs; 0 where none are known.

    ``strides``: of its tensors as lowered, in order, where they are known; otherwise those of the graph.
    """
    values = [a.meta["val"] for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]
    if not values or values[0].device.type != "cpu" or not isinstance(node.target, torch._ops.OpOverload):
        return 0
    blas = node.target._opname in _BLAS and values[0].dtype in (torch.float32, torch.float64)
    measured = workspace_bytes(node.target, *_call(node, strides)) if strides and not blas else None
    return _derived(node, strides) if measured is None else measured


def _call(node: fx.Node, strides: Sequence[Sequence[int]]) -> Any:
    """Arguments and keyword arguments of a call as lowered, sizes at their hints."""
    left = iter(strides)

    def concrete(argument: Any) -> Any:
        value = argument.meta.get("val") if isinstance(argument, fx.Node) else argument
        if isinstance(value, torch.Tensor):
            stride = next(left, None)
            return _strided(value, stride if stride is not None and len(stride) == value.dim() else value.stride())
        return hint(value) if isinstance(value, torch.SymInt) else value

    return pytree.tree_map(concrete, (tuple(node.args), dict(node.kwargs)))


def _derived(node: fx.Node, strides: Sequence[Sequence[int]]) -> int:
    """The size as it follows from the source; 0 where that is not known."""
    values = [a.meta["val"] for a in node.args if isinstance(a, fx.Node) and isinstance(a.meta.get("val"), torch.Tensor)]
    assert isinstance(node.target, torch._ops.OpOverload)
    match node.target._schema.name.removeprefix("aten::"):
        case "_scaled_dot_product_flash_attention_for_cpu":
            return _attention(values[0], values[1])
        case "_scaled_dot_product_flash_attention_for_cpu_backward":
            gradient = values[0]
            copied = 0 if gradient.transpose(1, 2).is_contiguous() else _bytes(gradient)
            return copied + _attention_backward(values[1], values[2])
        case "convolution" if _without_onednn(values[0], values[1], node.args[3:]):
            return 0
        case "convolution_backward" if _without_onednn(values[1], values[2], node.args[4:]):
            return 0
        case "convolution":
            values = _laid_out(values, strides)
            blocked = -(-hint(values[1].shape[0]) // 16) * 16  # output channels come in blocks of 16
            copied = _copied(values[:1], values[0], values[1])
            return copied + _bytes(values[1]) // hint(values[1].shape[0]) * blocked + _FORWARD_BYTES
        case "convolution_backward":
            values = _laid_out(values, strides)
            copied = _copied(values[:2], values[1], values[2])
            return copied + _bytes(values[2]) + max(_bytes(values[2]), _BACKWARD_BYTES)
    return 0


def _without_onednn(source: torch.Tensor, weight: torch.Tensor, settings: Sequence[Any]) -> bool:
    """Whether PyTorch multiplies matrices instead: a thread on filters of a pixel (``aten/src/ATen/native/Convolution.cpp``).

    ``settings``: stride, padding, dilation, whether it is transposed.
    """
    stride, _, dilation, transposed, *_ = settings
    pointwise = not transposed and all(hint(n) == 1 for n in (*weight.shape[2:], *stride, *dilation))
    return pointwise and torch.get_num_threads() == 1 and source.dtype == torch.float32 and hint(source.shape[0]) < 16


def _laid_out(values: list[torch.Tensor], strides: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The tensors with other strides."""
    known = list(zip(values, strides, strict=False))
    if any(v.dim() != len(s) for v, s in known):
        return values
    made = [_strided(v, s) for v, s in known]
    return made + values[len(made) :]


def _strided(tensor: torch.Tensor, stride: Sequence[Any]) -> torch.Tensor:
    """A tensor without memory of the same sizes, with these strides."""
    size, strides = [hint(n) for n in tensor.shape], [hint(n) for n in stride]
    return as_lazy(torch.empty_strided(size, strides, dtype=tensor.dtype, device="meta"), tensor)


def _copied(operands: list[torch.Tensor], source: torch.Tensor, weight: torch.Tensor) -> int:
    """Bytes of the operands that a convolution in channels-last order copies first: those that are not dense in that order
    (``aten/src/ATen/native/Convolution.cpp``). The gradient of one part of a concatenation is such a one."""
    if source.dim() != 4 or not (_channels_last(source) or _channels_last(weight)):
        return 0
    return sum(_bytes(t) for t in operands if not t.is_contiguous(memory_format=torch.channels_last))


def _channels_last(image: torch.Tensor) -> bool:
    """Whether the strides are in channels-last order, with or without gaps."""
    batch, channels, rows, columns = map(hint, image.stride())
    return batch >= rows >= columns > channels


def _attention(query: torch.Tensor, key: torch.Tensor) -> int:
    rows, columns, width, threads, element = _blocks(query, key)
    reduced = 0 if query.itemsize >= element else threads * rows * columns * query.itemsize
    return threads * (rows * columns + 2 * rows + rows * width) * element + reduced


def _attention_backward(query: torch.Tensor, key: torch.Tensor) -> int:
    rows, columns, _, threads, element = _blocks(query, key)
    return threads * 2 * rows * columns * min(element, query.itemsize) + rows * element


def _blocks(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int, int, int, int]:
    """(rows and columns of a block of scores, width of a head, threads, bytes of an accumulated element)."""
    length, width = hint(query.shape[2]), hint(query.shape[3])
    rows = 256 if length >= 768 else 64 if length >= 192 else 32
    element = 8 if query.dtype == torch.float64 else 4
    return min(rows, length), min(_KV_BLOCK, hint(key.shape[2])), width, torch.get_num_threads(), element


def _bytes(tensor: torch.Tensor) -> int:
    count = tensor.itemsize
    for length in tensor.shape:
        count *= hint(length)
    return count
