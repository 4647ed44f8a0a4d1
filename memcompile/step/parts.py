"""The dense tensors that a tensor is made of: itself; indices and values of a sparse one; what a wrapper subclass holds.

Only those have storages, and so bytes. What keeps its memory elsewhere (oneDNN's opaque tensors) has no parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_BY_ROW = (torch.sparse_csr, torch.sparse_bsr)
_BY_COLUMN = (torch.sparse_csc, torch.sparse_bsc)


def parts_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The dense tensors behind ``tensor``, real or fake."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from parts_of(getattr(tensor, name))
    elif tensor.layout is torch.strided:
        yield tensor
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in _BY_ROW:
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in _BY_COLUMN:
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())


def storages_of(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """The storages behind ``tensor``, one for each of its parts."""
    return [part.untyped_storage() for part in parts_of(tensor)]


def storage_keys(tensor: torch.Tensor) -> list[int]:
    """What tells the storages behind ``tensor`` from others while they are alive."""
    return [storage._cdata for storage in storages_of(tensor)]


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind real tensors."""
    return sum({storage._cdata: storage.nbytes() for tensor in tensors for storage in storages_of(tensor)}.values())
