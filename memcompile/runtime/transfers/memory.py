"""The bytes of a tensor, as one flat piece of memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memcompile.errors import SwapLayoutError

PAGE_BYTES = 4096
"""What files are read and written in, and more than any address has to be divisible by."""
Bytes = NDArray[np.uint8]


def whole_pages(length: int) -> int:
    """``length``, rounded up."""
    return -(-length // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """What a tensor looks like: bytes mean the same numbers only in a tensor that looks the same (or in plain bytes)."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    size_bytes: int


def layout_of(tensor: Tensor) -> TensorLayout:
    """The layout of a dense tensor. Raises `SwapLayoutError` for one whose elements do not fill one piece of memory."""
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        raise SwapLayoutError(f"a tensor with layout {tensor.layout}, conjugated or negated lazily, is not plain bytes")
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    if not _is_dense(shape, stride):
        raise SwapLayoutError(f"a tensor of shape {list(shape)} and strides {list(stride)} has gaps or overlaps in memory")
    return TensorLayout(shape, stride, tensor.dtype, tensor.numel() * tensor.element_size())


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


def check_destination(saved: TensorLayout, dest: Tensor) -> None:
    """Raises `SwapLayoutError` unless the bytes of ``saved`` are the same numbers in ``dest``."""
    found = layout_of(dest)
    if found.size_bytes != saved.size_bytes:
        raise SwapLayoutError(f"{saved.size_bytes} bytes were swapped out, the destination has {found.size_bytes}")
    if found.dtype == saved.dtype and found.shape == saved.shape and _steps(found) != _steps(saved):
        raise SwapLayoutError(f"strides {list(saved.stride)} were swapped out, the destination has {list(found.stride)}")


def _steps(layout: TensorLayout) -> list[int]:
    if 0 in layout.shape:
        return []
    return [step for step, size in zip(layout.stride, layout.shape, strict=True) if size != 1]


class Memory(Protocol):
    """The bytes of one tensor, which it keeps alive, as the I/O threads see them."""

    def lead_bytes(self, alignment_bytes: int) -> int | None:
        """Bytes before the first address that is divisible by ``alignment_bytes``; None: copy all of it."""

    def view(self, start: int, length: int, alignment_bytes: int) -> Bytes | None:
        """Bytes that a file may read and write in place; None where they have to be copied."""

    @staticmethod
    def staging(size_bytes: int) -> Bytes:
        """New memory to copy through, at a page. A thread makes it once for each class."""

    def load(self, start: int, staging: Bytes) -> None:
        """Copy from here into ``staging``."""

    def store(self, start: int, staging: Bytes) -> None:
        """Copy from ``staging`` to here."""

    def bytes_at(self, start: int, stop: int) -> bytes:
        """A copy of a few bytes."""


class HostMemory:
    """The memory of a dense CPU tensor."""

    def __init__(self, tensor: Tensor, size_bytes: int) -> None:
        self.tensor = tensor
        self.address = tensor.data_ptr()
        self.bytes: Bytes = np.asarray(_Interface(self.address, size_bytes)) if size_bytes else np.empty(0, np.uint8)

    def lead_bytes(self, alignment_bytes: int) -> int | None:
        """See `Memory`."""
        return -self.address % alignment_bytes

    def view(self, start: int, length: int, alignment_bytes: int) -> Bytes | None:
        """See `Memory`."""
        fits = (self.address + start) % alignment_bytes == 0 and length % PAGE_BYTES == 0
        return self.bytes[start : start + length] if fits else None

    @staticmethod
    def staging(size_bytes: int) -> Bytes:
        """See `Memory`."""
        return aligned_memory(size_bytes)

    def load(self, start: int, staging: Bytes) -> None:
        """See `Memory`."""
        np.copyto(staging, self.bytes[start : start + len(staging)])

    def store(self, start: int, staging: Bytes) -> None:
        """See `Memory`."""
        np.copyto(self.bytes[start : start + len(staging)], staging)

    def bytes_at(self, start: int, stop: int) -> bytes:
        """See `Memory`."""
        return self.bytes[start:stop].tobytes()


def memory_of(tensor: Tensor, size_bytes: int) -> Memory:
    """The bytes of a dense tensor."""
    if tensor.device.type == "cuda":
        from memcompile.runtime.transfers.cuda import CudaMemory  # not needed elsewhere

        return CudaMemory(tensor, size_bytes)
    return HostMemory(tensor, size_bytes)


def aligned_memory(size_bytes: int) -> Bytes:
    """New memory that starts at a page."""
    return np.frombuffer(mmap.mmap(-1, max(size_bytes, 1)), dtype=np.uint8)


class _Interface:
    """What numpy makes an array of from an address, without torch's dispatch and for every dtype."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "data": (address, False),
            "shape": (size_bytes,),
            "typestr": "|u1",
            "version": 3,
        }
