"""Scratch memory of library kernels on the CPU: measured once for each call that differs, then read from a cache file.

oneDNN picks a kernel by processor, threads and shape, and each takes its own scratch: no formula says how much. So a call that
is about to be compiled is made once on zeros, under the profiler. A dry run makes no calls: it knows what was measured before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils import _pytree

from memcompile.logs import get_logger
from memcompile.machine import cache
from memcompile.machine.device import cache_key, plain_mode
from memcompile.runtime.measure import highest_sum, record_allocations

log = get_logger(__name__)

_CPU = torch.device("cpu")
_measuring: ContextVar[bool] = ContextVar("measuring", default=False)


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """While active, calls that are not known yet are made."""
    token = _measuring.set(True)
    try:
        yield
    finally:
        _measuring.reset(token)


def workspace_bytes(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """What a call takes while it runs, beside its results, in bytes; None for what is not known and cannot be measured now:
    integer tensors, random or mutating ops, an op that refuses zeros, a profiler that runs already.

    ``args``, ``kwargs``: tensors of the shapes, strides and types of the call, on any device, and all else as it is.
    """
    call = _signature(target, args, kwargs)
    key = {**cache_key(_CPU), "call": call}
    found = cache.known("workspace", key, int, valid=lambda size: size >= 0)
    if found is None and _measuring.get() and _measurable(target, (args, kwargs)):
        taken = _measure(target, args, kwargs)
        if taken is not None:
            log.info("%s takes %s bytes of scratch", call, taken)
            return cache.get("workspace", key, int, lambda: taken)
    return found


def _signature(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    def written(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            lazy = ("*" if argument.is_conj() else "") + ("-" if argument.is_neg() else "")
            return f"{lazy}{str(argument.dtype).removeprefix('torch.')}{list(argument.shape)}/{list(argument.stride())}"
        return argument

    named = [*(("", a) for a in args), *((f"{name}=", a) for name, a in sorted(kwargs.items()))]
    return f"{target}({', '.join(f'{name}{_pytree.tree_map(written, a)}' for name, a in named)})"


def _measurable(target: OpOverload, arguments: Any) -> bool:
    tensors = [a for a in _pytree.tree_leaves(arguments) if isinstance(a, torch.Tensor)]
    plain = not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return plain and bool(tensors) and all(t.is_floating_point() or t.is_complex() for t in tensors)


def _measure(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        return None
    try:
        with plain_mode(_CPU):
            made, named = _pytree.tree_map_only(torch.Tensor, _zeros, (args, dict(kwargs)))
            entry = {t.untyped_storage().data_ptr() for t in _pytree.tree_leaves((made, named)) if isinstance(t, torch.Tensor)}
            target(*made, **named)  # oneDNN makes the kernel
            results: list[Any] = []
            events = record_allocations(lambda: results.append(target(*made, **named)))
            storages = [t.untyped_storage() for t in _pytree.tree_leaves(results) if isinstance(t, torch.Tensor)]
            kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
            return max(0, highest_sum(events, {}) - sum(size for at, size in kept.items() if at not in entry))
    except RuntimeError as error:  # MemoryError of the CPU allocator among them
        log.info("the scratch of %s cannot be measured: %s", target, error)
        return None


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return as_lazy(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).zero_(), tensor)


def as_lazy(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``tensor`` as a view that whoever reads it conjugates or negates, which takes memory, where ``other`` is one."""
    tensor = tensor.conj() if other.is_conj() else tensor
    return torch._neg_view(tensor) if other.is_neg() else tensor
