"""Convolutions of single pixels with large weights as matrix products.

oneDNN copies a convolution's weight into a blocked layout before each call: in the late layers of a network, where images are
small, that copy is most of the memory. A matrix product reads the weight as it lies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def is_heavy(node: fx.Node) -> bool:
    """Whether a node is a convolution of single pixels on the CPU whose weight is larger than the images it reads and makes."""
    if node.target is not aten.convolution.default:
        return False
    source, weight, _, stride, padding, _, transposed, _, groups = node.args
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    value, shape = node.meta["val"], weight.meta["val"].shape
    plain = stride == [1, 1] and padding == [0, 0] and not transposed and groups == 1 and tuple(shape[2:]) == (1, 1)
    cpu = value.device.type == "cpu" and value.dtype is torch.float32 and value.dim() == 4
    return bool(plain and cpu and shape.numel() > value.numel() + source.meta["val"].numel())


def product(node: fx.Node, call: Any) -> fx.Node:
    """Its value as a product; ``call(target, args, kwargs, like)`` adds a node with its value."""
    source, weight, bias = node.args[:3]
    batch, channels, rows, columns = node.meta["val"].shape
    width = weight.meta["val"].shape[1]  # type: ignore[union-attr]
    last = call(aten.permute.default, (source, [0, 2, 3, 1]), {}, node)
    flat = call(aten.reshape.default, (last, [batch * rows * columns, width]), {}, node)
    matrix = call(aten.permute.default, (call(aten.view.default, (weight, [channels, width]), {}, node), [1, 0]), {}, node)
    if isinstance(bias, fx.Node):
        made = call(aten.addmm.default, (bias, flat, matrix), {}, node)
    else:
        made = call(aten.mm.default, (flat, matrix), {}, node)
    image = call(aten.view.default, (made, [batch, rows, columns, channels]), {}, node)
    return call(aten.permute.default, (image, [0, 3, 1, 2]), {}, node)  # type: ignore[no-any-return]


def as_products(graph: fx.Graph, call: Any) -> None:
    """Rewrite all such convolutions of a graph."""
    for node in list(graph.nodes):
        if is_heavy(node):
            with graph.inserting_before(node):
                node.replace_all_uses_with(product(node, call))
            graph.erase_node(node)
