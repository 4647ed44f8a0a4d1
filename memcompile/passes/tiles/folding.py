"""Convolutions with what follows them: batch normalisation in weight and bias, the activation inside.

After Inductor's decompositions a normalisation is a chain of products and sums with one number per channel. All that follows
from parameters alone is computed once for all tiles (``hoist``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from memcompile.passes.tiles.activations import Fused, fused
from memcompile.passes.tiles.packing import convolved, is_large, repacked
from memcompile.passes.tiles.products import is_heavy, product

aten = torch.ops.aten
_POINTWISE = torch.ops.mkldnn._convolution_pointwise.default

Call = Callable[..., fx.Node]
Steps = list[tuple[Any, fx.Node]]


def constants_of(graph: fx.Graph, parameters: Iterable[fx.Node]) -> set[fx.Node]:
    """``parameters`` and all that is computed from them alone, but for what every tile makes itself."""
    found = set(parameters)
    for node in graph.nodes:
        if node.op != "call_function" or node.target is repacked or not node.all_input_nodes:
            continue
        if set(node.all_input_nodes) <= found:
            found.add(node)
    return found


def fold(graph: fx.Graph, parameters: Iterable[fx.Node], call: Call) -> None:
    """Rewrite the convolutions of a body. ``parameters``: inputs that are the same for all tiles."""
    constants = constants_of(graph, parameters)
    for node in list(graph.nodes):
        if node.target is aten.convolution.default and not node.args[6] and _is_plain(node):
            _fold(graph, node, constants, call)
    graph.eliminate_dead_code()
    _assemble(graph, call)


def _assemble(graph: fx.Graph, call: Call) -> None:
    """Rows that were kept, new rows and padding are copied together once, channels last."""
    for node in list(graph.nodes):
        parts, pads, fill = [node], [0, 0, 0, 0], 0.0
        if node.target is aten.constant_pad_nd.default:
            source, given = node.args[:2]
            parts, pads, fill = [source], [*given, *[0] * (4 - len(given))], node.args[2] if len(node.args) > 2 else 0.0
        if len(pads) != 4 or min(pads) < 0:
            continue
        if parts[0].target is aten.cat.default and parts[0].args[1:] == (2,) and (parts == [node] or len(parts[0].users) == 1):
            parts = parts[0].args[0]
        if parts == [node] or any(part.meta["val"].dim() != 4 or not part.meta["val"].numel() for part in parts):
            continue
        with graph.inserting_before(node):
            node.replace_all_uses_with(call(assembled, (parts, pads, fill), {}, node))
    graph.eliminate_dead_code()


def assembled(parts: list[Tensor], pads: list[int], fill: float) -> Tensor:
    """Images one below the other, with ``pads`` (left, right, above, below) of ``fill`` around; dense, channels last."""
    left, right, above, below = pads
    batch, channels, _, columns = parts[0].shape
    rows = sum(part.shape[2] for part in parts)
    shape = (batch, channels, above + rows + below, left + columns + right)
    whole = torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device, memory_format=torch.channels_last)
    for axis, (before, behind) in ((2, (above, below)), (3, (left, right))):
        for begin, length in ((0, before), (shape[axis] - behind, behind)):
            if length:
                whole.narrow(axis, begin, length).fill_(fill)
    for part in parts:
        whole[:, :, above : above + part.shape[2], left : left + columns].copy_(part)
        above += part.shape[2]
    return whole


def _is_plain(node: fx.Node) -> bool:
    value = node.meta["val"]
    return bool(value.device.type == "cpu" and value.dtype is torch.float32 and value.dim() == 4)


def _fold(graph: fx.Graph, node: fx.Node, constants: set[fx.Node], call: Call) -> None:
    source, weight, bias = node.args[:3]
    assert isinstance(weight, fx.Node) and isinstance(source, fx.Node)
    steps, last = _affine(node, constants)
    scaled = [operand for target, operand in steps if target is aten.mul.Tensor]
    heavy = bool(scaled) and is_large(node, weight)
    with graph.inserting_before(node):
        if not heavy:
            shift = _shift(bias, steps, call, node)
            if scaled:
                weight = call(aten.mul.Tensor, (weight, _column(_product(scaled, call), 4, call)), {}, node)
                constants.add(weight)
            bias = shift
        activation, end = _activation(node if heavy else last)
        if heavy and is_heavy(node):
            value, activation, end = product(node, call), Fused("none"), node
        else:
            value = _convolved(node, _dense(source, call), weight, bias, activation, constants, call)
        if heavy:
            factor = _column(_product(scaled, call), 3, call)
            value = call(aten.addcmul.default, (_column(_shift(None, steps, call, node), 3, call), value, factor), {}, last)
            end = last
    end.replace_all_uses_with(value)


def _convolved(
    node: fx.Node, source: fx.Node, weight: fx.Node, bias: Any, kind: Fused, constants: set[fx.Node], call: Call
) -> fx.Node:
    if weight in constants:
        return convolved(node, source, weight, bias, kind, call)
    arguments = (source, weight, bias, *(node.args[position] for position in (4, 3, 5, 8)))
    return call(_POINTWISE, (*arguments, kind.name, list(kind.scalars), kind.algorithm), {}, node)


def _affine(node: fx.Node, constants: set[fx.Node]) -> tuple[Steps, fx.Node]:
    """Products and sums with one number per channel that follow, and the last of them."""
    steps: Steps = []
    channels = node.meta["val"].shape[1]
    while len(node.users) == 1:
        (user,) = node.users
        if user.target not in (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor) or user.kwargs or len(user.args) != 2:
            break
        left, right = user.args
        if left is not node and user.target is not aten.sub.Tensor:
            left, right = right, left
        if left is not node or not isinstance(right, fx.Node) or right not in constants:
            break
        if tuple(right.meta["val"].shape) not in ((channels, 1, 1), (1, channels, 1, 1)):
            break
        steps.append((user.target, right))
        node = user
    return steps, node


def _activation(node: fx.Node) -> tuple[Fused, fx.Node]:
    """The activation that alone reads a node, and its node; none: the node itself."""
    users = list(node.users)
    found = fused(users[0]) if len(users) == 1 else None
    return (Fused("none"), node) if found is None else (found, users[0])


def _product(factors: list[fx.Node], call: Call) -> fx.Node:
    product, *others = [call(aten.reshape.default, (factor, [-1]), {}, factor) for factor in factors]
    for other in others:
        product = call(aten.mul.Tensor, (product, other), {}, other)
    return product


def _column(vector: fx.Node, rank: int, call: Call) -> fx.Node:
    """One number per channel against images (rank 3), or against weights, whose first axis are the channels (rank 4)."""
    shape = [-1] + [1] * (rank - 1)
    return call(aten.reshape.default, (vector, shape), {}, vector)


def _shift(bias: Any, steps: Steps, call: Call, like: fx.Node) -> Any:
    """What a bias becomes by the steps."""
    for target, operand in steps:
        flat = call(aten.reshape.default, (operand, [-1]), {}, like)
        if bias is not None:
            bias = call(target, (bias, flat), {}, like)
        elif target is aten.add.Tensor:
            bias = flat
        elif target is aten.sub.Tensor:
            bias = call(aten.neg.default, (flat,), {}, like)
    return bias


def _dense(source: fx.Node, call: Call) -> fx.Node:
    """Images as a convolution takes them: dense, channels last."""
    if source.target in (aten.constant_pad_nd.default, aten.cat.default, aten.addcmul.default):
        return source  # copied anyway, or as dense as the image that it is made of
    if source.meta["val"].is_contiguous(memory_format=torch.channels_last):
        return source
    return call(assembled, ([source], [0, 0, 0, 0], 0.0), {}, source)


def hoist(graph: fx.Graph, parameters: Iterable[fx.Node]) -> list[fx.Node]:
    """Nodes that follow from parameters alone and are read by others: one value for all tiles."""
    constants = constants_of(graph, parameters)
    return [
        node
        for node in graph.nodes
        if node.op == "call_function" and node in constants and any(user not in constants for user in node.users)
    ]
