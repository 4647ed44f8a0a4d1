"""Values that a graph computes from no input: tables of indices, weights of an interpolation."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

MOST = 1 << 16
"""Elements of a tensor that is still evaluated."""


def is_constant(node: fx.Node) -> bool:
    """Whether a node depends on no input."""
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if current.op != "call_function" or (isinstance(current.target, torch._ops.OpOverload) and _draws(current.target)):
            return False
        new = [source for source in current.all_input_nodes if source not in seen]
        seen.update(new)
        stack += new
    return True


def value_of(node: object) -> NDArray[Any] | None:
    """The value of a constant node; None when it depends on an input or is large."""
    if not isinstance(node, fx.Node) or not is_constant(node):
        return None
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.numel() > MOST:
        return None
    with unset_fake_temporarily():
        found: NDArray[Any] = _evaluate(node, {}).numpy()
        return found


def _evaluate(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    for source in node.all_input_nodes:
        if source not in known:
            known[source] = _evaluate(source, known)
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: known[n])
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _draws(target: torch._ops.OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags
