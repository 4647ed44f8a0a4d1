"""The bytes of a tensor, as one flat piece of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memcompile.errors import SwapLayoutError
from memcompile.runtime.swap.checksum import Bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """What a tensor looks like: bytes mean the same numbers only in a tensor that looks the same (or in plain bytes)."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    size_bytes: int


def layout_of(tensor: Tensor) -> Layout:
    """The layout of a dense tensor. Raises `SwapLayoutError` for one whose elements do not fill one piece of memory."""
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        raise SwapLayoutError(f"a tensor with layout {tensor.layout}, conjugated or negated lazily, is not plain bytes")
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    if not _is_dense(shape, stride):
        raise SwapLayoutError(f"a tensor of shape {list(shape)} and strides {list(stride)} has gaps or overlaps in memory")
    return Layout(shape, stride, tensor.dtype, tensor.numel() * tensor.element_size())


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements fill ``[0, numel)``, each place once: contiguous after some permutation of the dimensions."""
    if 0 in shape:
        return True
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size != 1):
        if step != expected:
            return False
        expected *= size
    return True


def check_destination(saved: Layout, dest: Tensor) -> None:
    """Raises `SwapLayoutError` unless the bytes of ``saved`` are the same numbers in ``dest``."""
    found = layout_of(dest)
    if found.size_bytes != saved.size_bytes:
        raise SwapLayoutError(f"{saved.size_bytes} bytes were swapped out, the destination has {found.size_bytes}")
    if found.dtype == saved.dtype and found.shape == saved.shape and _steps(found) != _steps(saved):
        raise SwapLayoutError(f"strides {list(saved.stride)} were swapped out, the destination has {list(found.stride)}")


def _steps(layout: Layout) -> list[int]:
    if 0 in layout.shape:
        return []
    return [step for step, size in zip(layout.stride, layout.shape, strict=True) if size != 1]


class HostMemory:
    """The memory of a dense CPU tensor; keeps the tensor alive."""

    def __init__(self, tensor: Tensor, size_bytes: int) -> None:
        self.tensor = tensor
        self.address = tensor.data_ptr()
        self.bytes: Bytes = np.asarray(_Interface(self.address, size_bytes)) if size_bytes else np.empty(0, np.uint8)

    def piece(self, start: int, length: int) -> Bytes:
        """A view of some of it."""
        return self.bytes[start : start + length]

    def load(self, start: int, staging: Bytes) -> None:
        """Copy from here into ``staging``."""
        np.copyto(staging, self.piece(start, len(staging)))

    def store(self, start: int, staging: Bytes) -> None:
        """Copy from ``staging`` to here."""
        np.copyto(self.piece(start, len(staging)), staging)


class _Interface:
    """What numpy makes an array of from an address, without torch's dispatch and for every dtype."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "data": (address, False),
            "shape": (size_bytes,),
            "typestr": "|u1",
            "version": 3,
        }
