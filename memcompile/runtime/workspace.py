"""Scratch memory of library kernels on the CPU: measured once for each call that differs, then read from a cache file.

oneDNN picks a kernel by processor, threads and shape, and each takes its own scratch: no formula says how much. So a call that
is about to be compiled is made once on zeros, under the profiler. A dry run makes no calls: it knows what was measured before.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils import _pytree

from memcompile.device import cache_key, cache_path, plain_mode, write_atomically
from memcompile.logs import get_logger
from memcompile.runtime.measure import highest_sum, record_allocations

log = get_logger(__name__)

_CPU = torch.device("cpu")
_measuring: ContextVar[bool] = ContextVar("measuring", default=False)


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """While active, calls that are not known yet are made; afterwards what they took is written to the cache."""
    token = _measuring.set(True)
    try:
        yield
    finally:
        _measuring.reset(token)
        WORKSPACES.store()


class Workspaces:
    """What each call takes while it runs, beside its results. Use the one instance, ``WORKSPACES``."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, int]] = {}
        self._unsaved: set[Path] = set()

    def bytes_of(self, target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
        """Bytes; None for what is not known and cannot be measured now: integer tensors, random or mutating ops, an op that
        refuses zeros, a profiler that runs already.

        ``args``, ``kwargs``: tensors of the shapes, strides and types of the call, on any device, and all else as it is.
        """
        path = cache_path(cache_key(_CPU), "workspaces")
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = _load(path)
        call = _signature(target, args, kwargs)
        if call not in known and _measuring.get() and _measurable(target, (args, kwargs)):
            taken = _measure(target, args, kwargs)
            if taken is not None:
                log.info("%s takes %s bytes of scratch", call, taken)
                known[call] = taken
                self._unsaved.add(path)
        return known.get(call)

    def store(self) -> None:
        """Write what is new; other processes may have added to the file."""
        for path in self._unsaved:
            self._known[path] = {**_load(path), **self._known[path]}
            write_atomically(path, {"key": cache_key(_CPU), "bytes": self._known[path]})
        self._unsaved.clear()

    def forget(self) -> None:
        """Read the cache files again when they are needed."""
        self._known.clear()
        self._unsaved.clear()


WORKSPACES = Workspaces()


def _load(path: Path) -> dict[str, int]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {str(call): int(taken) for call, taken in data["bytes"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is no usable cache of workspaces (%s): measuring again", path, error)
        return {}


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
