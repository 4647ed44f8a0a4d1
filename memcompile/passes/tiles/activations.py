"""Activation functions that were taken apart, put together again: one library call in place of four."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
Match = tuple[Any, tuple[Any, ...], fx.Node]
"""The operator, its arguments behind the tensor, and the node whose value it is."""


@dataclass(frozen=True, slots=True)
class Fused:
    """How oneDNN names an activation behind a convolution."""

    name: str
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


def restore(graph: fx.Graph, call: Callable[..., fx.Node]) -> None:
    """Replace the patterns of a graph by library calls. ``call(target, args, kwargs, like)`` adds a node with its value."""
    for node in list(graph.nodes):
        if node.target is torch.ops.prims._low_memory_max_pool_with_offsets.default:
            node.target = aten.max_pool2d_with_indices.default  # its offsets are not read
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        for pattern in (_hardswish, _silu, _leaky_relu, _hardtanh, _gelu):
            found = pattern(node)
            if found is not None:
                target, arguments, end = found
                with graph.inserting_before(end.next):
                    end.replace_all_uses_with(call(target, (node, *arguments), {}, end))
                break
    graph.eliminate_dead_code()


def fused(node: fx.Node) -> Fused | None:
    """What oneDNN does behind a convolution in place of a node; None: nothing of that kind."""
    rest = node.args[1:]
    match node.target:
        case aten.relu.default:
            return Fused("relu")
        case aten.hardtanh.default:
            return Fused("hardtanh", (float(rest[0]), float(rest[1])))  # type: ignore[arg-type]
        case aten.clamp_min.default if rest == (0,):
            return Fused("relu")
        case aten.hardswish.default:
            return Fused("hardswish")
        case aten.silu.default:
            return Fused("swish")
        case aten.sigmoid.default:
            return Fused("sigmoid")
        case aten.tanh.default:
            return Fused("tanh")
        case aten.leaky_relu.default:
            return Fused("leaky_relu", (float(rest[0]),))  # type: ignore[arg-type]
        case aten.gelu.default:
            return Fused("gelu", (), "none")
    return None


def only(node: fx.Node, target: Any, *arguments: Any) -> fx.Node | None:
    """The one reader of a node, when it is a call of ``target`` with those arguments behind the node."""
    users = list(node.users)
    if len(users) != 1 or users[0].target is not target or users[0].args[0] is not node or users[0].kwargs:
        return None
    return users[0] if not arguments or users[0].args[1:] == arguments else None


def _reader(node: fx.Node, target: Any, *arguments: Any) -> fx.Node | None:
    """A reader of a node that is a call of ``target`` with those arguments behind the node, among others."""
    for user in node.users:
        if user.target is target and user.args[0] is node and user.args[1:] == arguments and not user.kwargs:
            return user
    return None


def _hardtanh(node: fx.Node) -> Match | None:
    low = only(node, aten.clamp_min.default)
    high = None if low is None else only(low, aten.clamp_max.default)
    return None if low is None or high is None else (aten.hardtanh.default, (low.args[1], high.args[1]), high)


def _hardswish(node: fx.Node) -> Match | None:
    """x * clamp(x + 3, 0, 6) / 6."""
    if len(node.users) != 2:
        return None
    moved = _reader(node, aten.add.Tensor, 3)
    low = None if moved is None else only(moved, aten.clamp_min.default, 0)
    high = None if low is None else only(low, aten.clamp_max.default, 6)
    product = None if high is None else _reader(node, aten.mul.Tensor, high)
    end = None if product is None else only(product, aten.div.Tensor, 6)
    return None if end is None else (aten.hardswish.default, (), end)


def _silu(node: fx.Node) -> Match | None:
    """x / (1 + exp(-x))."""
    if len(node.users) != 2:
        return None
    negative = _reader(node, aten.neg.default)
    power = None if negative is None else only(negative, aten.exp.default)
    below = None if power is None else only(power, aten.add.Tensor, 1)
    end = None if below is None else _reader(node, aten.div.Tensor, below)
    return None if end is None else (aten.silu.default, (), end)


def _leaky_relu(node: fx.Node) -> Match | None:
    """where(x > 0, x, x * slope)."""
    if len(node.users) != 3:
        return None
    above = _reader(node, aten.gt.Scalar, 0)
    for product in node.users:
        slope = product.args[1] if product.target is aten.mul.Tensor and product.args[0] is node else None
        if above is not None and isinstance(slope, float | int):
            users = list(above.users)
            if len(users) == 1 and users[0].target is aten.where.self and users[0].args == (above, node, product):
                return aten.leaky_relu.default, (slope,), users[0]
    return None


def _gelu(node: fx.Node) -> Match | None:
    """x / 2 * (1 + erf(x / sqrt(2)))."""
    if len(node.users) != 2:
        return None
    half = _reader(node, aten.mul.Tensor, 0.5)
    scaled = _reader(node, aten.mul.Tensor, math.sqrt(0.5))
    error = None if scaled is None else only(scaled, aten.erf.default)
    moved = None if error is None else only(error, aten.add.Tensor, 1)
    end = None if half is None or moved is None else only(half, aten.mul.Tensor, moved)
    return None if end is None else (aten.gelu.default, (), end)
