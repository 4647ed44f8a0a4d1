"""What a library kernel gives back that makes its results itself: new memory, a view of what it reads, or what holds that.

An operator's schema says which results are views. What it does not say (a tensor that is returned as it came, results that
share a storage, a sparse tensor made of others) shows in the fake tensors of the kernel's FX node: their storages are those of
what it reads. Fake tensors alone do not do: where a pass replaced an operand, they are those of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from memcompile.step.fxutil import hint
from memcompile.step.parts import parts_of, storage_keys

_INDEX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Result:
    """``base``: the buffer whose storage the result shares, "" where it has its own. ``holds``: buffers that live as long as
    it. ``size_bytes``: what it takes itself, None for what its layout says."""

    base: str = ""
    holds: tuple[str, ...] = ()
    size_bytes: int | None = None


class Results:
    """The results of one kernel, an ``ExternKernelAlloc`` of Inductor's."""

    def __init__(self, kernel: Any) -> None:
        self.aliased = tuple(kernel.get_inputs_that_alias_output())
        self.call = _call_of(kernel)
        self.names = {} if self.call is None else _names(self.call, kernel)
        self.owner = {key: name for node, name in self.names.items() for key in storage_keys(node.meta["val"])}

    def result(self, name: str, path: Sequence[Any]) -> Result | None:
        """The one that lies at ``path`` (of indices) in what the kernel returns, as the buffer ``name``; results of one
        storage share it. None where that is no tensor."""
        if self.call is None:
            return Result(base=self.aliased[0] if self.aliased else "")
        value = self.call.value
        for index in path:
            value = value[index]
        if not isinstance(value, torch.Tensor):
            return None
        viewed = self.call.viewed(path[0] if path else 0)
        owners = [self.owner.setdefault(key, name) for key in storage_keys(value)]
        others = tuple(dict.fromkeys(owner for owner in owners if owner != name))
        if value.layout is torch.strided:
            return Result(base=(self.names.get(viewed) if viewed is not None else None) or (others[0] if others else ""))
        own = [part for part, owner in zip(parts_of(value), owners, strict=True) if owner == name]
        known = sum(map(_bytes, own)) if others or self.call.is_view else _most_bytes(value)
        return Result(holds=_held(self.call, self.names), size_bytes=known)

    def unused_bytes(self, taken: Iterable[Sequence[Any]]) -> int:
        """Bytes of the results that nobody takes. ``taken``: the paths of the others."""
        if self.call is None:
            return 0
        known, unused = set(map(tuple, taken)), 0
        for path, value in _leaves(self.call.value):
            if path not in known and not any(key in self.owner for key in storage_keys(value)):
                self.owner.update(dict.fromkeys(storage_keys(value), ""))
                unused += sum(map(_bytes, parts_of(value)))
        return unused


def held_inputs(kernel: Any) -> tuple[str, ...]:
    """Buffers that the sparse results of a kernel are made of: nothing may write over them while these live."""
    call = _call_of(kernel)
    return () if call is None else _held(call, _names(call, kernel))


def _held(call: _Call, names: dict[fx.Node, str]) -> tuple[str, ...]:
    """What sparse results are made of: the operands that they share storages with; all, where they share none of a part."""
    sparse = [value for _, value in _leaves(call.value) if value.layout is not torch.strided]
    parts = {key for value in sparse for key in storage_keys(value)}
    found = {name: set(storage_keys(node.meta["val"])) & parts for node, name in names.items()}
    complete = parts <= set().union(*found.values())
    return tuple(name for name, keys in found.items() if sparse and (keys or not complete))


@dataclass(frozen=True, slots=True)
class _Call:
    """A call in the FX graph: the operator, its arguments, and the fake value that it yields."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any

    @property
    def is_view(self) -> bool:
        """Whether the schema says that a result shares memory with an operand."""
        return any(result.alias_info is not None for result in self._schema("returns"))

    def viewed(self, index: Any) -> fx.Node | None:
        """The operand that the result number ``index`` is a view of by the schema."""
        returns = self._schema("returns")
        info = returns[index if len(returns) > 1 else 0].alias_info if returns else None
        of = set() if info is None else info.before_set
        for position, argument in enumerate(self._schema("arguments") if of else ()):
            given = self.args[position] if position < len(self.args) else self.kwargs.get(argument.name)
            nodes = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, fx.Node)]
            if nodes and argument.alias_info is not None and argument.alias_info.before_set & of:
                return nodes[0]
        return None

    def _schema(self, what: str) -> Any:
        return getattr(self.target._schema, what) if isinstance(self.target, torch._ops.OpOverload) else ()


def _call_of(kernel: Any) -> _Call | None:
    called = getattr(kernel, "op_overload", None)
    nodes = [node for node in (kernel.get_origin_node(), *kernel.get_origins()) if isinstance(node, fx.Node)]
    for node in nodes if called is not None else ():
        if node.target is called:
            return _Call(called, node.args, node.kwargs, _returned(called, node.meta.get("val")))
        if node.target is torch.ops.higher_order.with_effects and node.args[1] is called:
            _, *values = node.meta["val"]
            return _Call(called, node.args[2:], node.kwargs, values[0] if len(values) == 1 else tuple(values))
    return None


def _returned(called: Any, value: Any) -> Any:
    """What an operator returns, of what its node yields. One that writes to its operands was functional before: behind its own
    results, None where it has none, its node has the copies that it would have written to."""
    if not called._schema.is_mutable or not isinstance(value, tuple):
        return value
    results = len(called._schema.returns)
    return value[:results] if results > 1 else value[0]


def _names(call: _Call, kernel: Any) -> dict[fx.Node, str]:
    """The tensors that a kernel reads, as nodes -> the buffers that they are; empty where it reads others."""
    leaves = pytree.tree_leaves((call.args, call.kwargs))
    nodes = [leaf for leaf in leaves if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), torch.Tensor)]
    if len(nodes) != len(kernel.inputs):
        return {}
    return {node: source.get_name() for node, source in zip(nodes, kernel.inputs, strict=True)}


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    """The tensors in a value with where they lie."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))


def _bytes(tensor: torch.Tensor) -> int:
    return hint(tensor.numel()) * tensor.itemsize


def _most_bytes(tensor: torch.Tensor) -> int:
    """Of a sparse tensor whose number of elements only the step knows: all of them, each with its indices."""
    return hint(tensor.numel()) * (tensor.itemsize + _INDEX_BYTES * tensor.dim())
