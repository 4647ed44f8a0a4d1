"""What the arena needs of PyTorch's storages: the C functions that Inductor's own code calls, and two counters.

Each of them exists in PyTorch 2.11 to 2.15 (``seams.py`` looks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

Ints = tuple[int, ...]


def view_of(base: Tensor, size: Ints, stride: Ints, offset: int) -> Tensor:
    """A new tensor on ``base``'s storage, ``offset`` elements after its start. No autograd, no dispatch: half a microsecond."""
    view = torch._C._dynamo.guards._reinterpret_tensor(base, size, stride, offset)  # type: ignore[attr-defined]
    return cast("Tensor", view)


def allocator(device: torch.device) -> Callable[[Ints, Ints, torch.dtype], Tensor]:
    """The function that Inductor's code calls for a new buffer on ``device``: from size, strides and type."""
    return cast(
        "Callable[[Ints, Ints, torch.dtype], Tensor]", getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}")
    )


def users(storage: torch.UntypedStorage) -> int:
    """How many tensors (and Python storages) share ``storage``."""
    return int(torch._C._storage_Use_Count(storage._cdata))


def keeps_graph() -> bool:
    """Whether the backward under way leaves the graph for another one (``retain_graph``): saved tensors must survive it."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())
