"""The bytes of a tensor on a GPU: copied through pinned memory, on a stream beside the one that computes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memcompile.runtime.transfers.memory import PAGE_BYTES, Bytes


@functools.cache
def side_stream(device: torch.device, direction: str) -> torch.cuda.Stream:
    """The one stream of a device for copies "out" or "in"."""
    del direction  # part of the key alone
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def current_event(device: torch.device) -> torch.cuda.Event:
    """Passed when all that was launched on the current stream so far is done."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def start_copy(dest: Tensor, source: Tensor, device: torch.device, direction: str, *after: Any) -> Any:
    """Copy beside the stream that computes, after what it has been given and ``after``; the event of its end."""
    stream = side_stream(device, direction)
    for event in (current_event(device), *after):
        stream.wait_event(event)
    return _copied(dest, source, stream)


def _copied(dest: Tensor, source: Tensor, stream: torch.cuda.Stream) -> Any:
    with torch.cuda.stream(stream), torch.no_grad():
        dest.copy_(source, non_blocking=True)
        return stream.record_event()


def flat_bytes(tensor: Tensor, size_bytes: int) -> Tensor:
    """The memory of a dense tensor as uint8 elements."""
    with torch.no_grad(), torch.inference_mode(mode=False):
        flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        return flat.set_(tensor.untyped_storage(), tensor.storage_offset() * tensor.element_size(), (size_bytes,), (1,))


class CudaMemory:
    """See `memcompile.runtime.transfers.memory.Memory`. Made on the thread that computes, used on the threads that move."""

    def __init__(self, tensor: Tensor, size_bytes: int) -> None:
        self.bytes = flat_bytes(tensor, size_bytes)
        self.device = tensor.device
        self.computed = current_event(self.device)

    def lead_bytes(self, alignment_bytes: int) -> int | None:  # noqa: ARG002
        """All of it is copied."""
        return None

    def view(self, start: int, length: int, alignment_bytes: int) -> Bytes | None:  # noqa: ARG002
        """A file cannot read or write it."""
        return None

    @staticmethod
    def staging(size_bytes: int) -> Bytes:
        """Pinned memory that starts at a page."""
        pinned: Bytes = torch.empty(size_bytes + PAGE_BYTES, dtype=torch.uint8, pin_memory=True).numpy()
        lead = -pinned.ctypes.data % PAGE_BYTES
        return pinned[lead : lead + size_bytes]

    def load(self, start: int, staging: Bytes) -> None:
        """See `Memory`. Returns when the copy is there."""
        self._copy(torch.from_numpy(staging), self.bytes[start : start + len(staging)], "out")

    def store(self, start: int, staging: Bytes) -> None:
        """See `Memory`. Returns when the copy is there."""
        self._copy(self.bytes[start : start + len(staging)], torch.from_numpy(staging), "in")

    def bytes_at(self, start: int, stop: int) -> bytes:
        """See `Memory`."""
        return np.asarray(self.bytes[start:stop].cpu()).tobytes()

    def _copy(self, dest: Tensor, source: Tensor, direction: str) -> None:
        stream = side_stream(self.device, direction)
        stream.wait_event(self.computed)
        with torch.cuda.device(self.device):
            _copied(dest, source, stream).synchronize()
