"""An inverted residual as two bodies on [pixels, channels], which the writer of chains knows how to write.

    before:  x [pixels, C] -> product -> pointwise            the expanded tensor at one tap of each pixel
    after:   sums over the taps -> pointwise -> product -> pointwise -> the result

Batch normalization becomes one product and one sum with vectors. What lies between two products is held in fp32: casts between
floating point dtypes are dropped, but for the operands of products and the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, cast

import torch
from torch import fx

from memcompile.codegen.inverted_residual.affine import OPERATORS, Affine
from memcompile.codegen.inverted_residual.block import Convolution, InvertedResidual
from memcompile.codegen.kernel.chain import Chain, read_chain
from memcompile.codegen.kernel.pointwise import constant_of, dtype_of, is_cast, is_pointwise, operator_of, refused, shape_of

ATEN = torch.ops.aten
NORMS = {"aten::_native_batch_norm_legit_no_training": None, "aten::native_batch_norm": 5, "aten::cudnn_batch_norm": 5}
"""Batch normalizations, and which argument says that the statistics are those of the batch (None: they never are)."""
VIEWS = frozenset(
    f"aten::{name}"
    for name in ("unsqueeze", "squeeze", "view", "_unsafe_view", "reshape", "expand", "alias", "detach", "clone")
)


@dataclass(frozen=True, slots=True)
class Bodies:
    """The two bodies. ``sums``: the placeholder of ``after`` that stands for the sums over the taps."""

    before: Chain
    after: Chain
    sums: fx.Node


def is_norm(node: fx.Node) -> bool:
    """Whether the node is a batch normalization with constant statistics. It yields a tuple."""
    name = operator_of(node)
    trains = NORMS.get(name)
    return name in NORMS and (trains is None or not node.args[trains])


def normalized(node: fx.Node) -> fx.Node | None:
    """The batch normalization that a node is the result of."""
    if node.target is not getitem or node.args[1] != 0:
        return None
    source: Any = node.args[0]
    return source if is_norm(source) else None


def passes_on(node: fx.Node) -> bool:
    """Whether the node yields the elements of its operand: a view, a copy, a pad of no width."""
    if operator_of(node) == "aten::constant_pad_nd":
        return not any(cast("list[int]", node.args[1]))
    return operator_of(node) in VIEWS


def is_inner(node: fx.Node) -> bool:
    """Whether a body can compute the node."""
    if is_norm(node) or normalized(node) is not None or constant_of(node) is not None:
        return True
    return is_pointwise(node) or is_cast(node) or passes_on(node)


def leaves_of(root: fx.Node, known: set[fx.Node]) -> list[fx.Node]:
    """What ``root`` is computed from, beside ``known``, and what no body computes."""
    found: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set(known)
    stack = [root]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_inner(node):
            stack += node.all_input_nodes
        else:
            found[node] = None
    return list(found)


def flatten(block: InvertedResidual) -> Bodies:
    """The bodies of a block. Raises `KernelRefusedError`, naming the node, for what has no formula."""
    before = _Body(block)
    before.read([block.input])
    if block.expand is not None:
        before.read([*_parameters(block.expand), *leaves_of(block.depthwise.input, {block.input, block.expand.node})])
        before.define(block.expand, before.copies[block.input])
    after = _Body(block)
    sums = after.sums()
    known = {block.depthwise.node, block.project.node, block.input}
    leaves = [leaf for root in (block.project.input, block.result) for leaf in leaves_of(root, known)]
    bias = [] if block.depthwise.bias is None else [block.depthwise.bias]
    images = [block.input] if block.adds_input else []
    after.read([*images, *bias, *_parameters(block.project), *leaves])
    after.copies[block.depthwise.node] = after.add(sums, after.copies[bias[0]], block.depthwise.node) if bias else sums
    after.define(block.project, after.value(block.project.input))
    return Bodies(before.chain(block.depthwise.input), after.chain(block.result), sums)


def _parameters(convolution: Convolution) -> list[fx.Node]:
    return [convolution.weight, *([] if convolution.bias is None else [convolution.bias])]


class _Body:
    """Builds a body from what the nodes of a graph stand for in it (``copies``). ``images``: those with pixels."""

    def __init__(self, block: InvertedResidual) -> None:
        self.block = block
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.images: set[fx.Node] = set()
        self.affine: dict[fx.Node, Affine] = {}

    def chain(self, result: fx.Node) -> Chain:
        """The finished body, read as a chain."""
        self.graph.output((self._cast(self.value(result), dtype_of(result), result),))
        self.graph.eliminate_dead_code()
        rows = [node in self.images for node in self.graph.nodes if node.op == "placeholder"]
        return read_chain(fx.GraphModule(torch.nn.Module(), self.graph), rows)

    def read(self, nodes: Sequence[fx.Node]) -> None:
        """Placeholders for what the block reads: images with their channels last, matrices, vectors, scalars."""
        for node in nodes:
            if node not in self.copies:
                self.copies[node] = self._placeholder(node, *self._flat(node))
        if self.block.input in self.copies:
            self.images.add(self.copies[self.block.input])

    def sums(self) -> fx.Node:
        """The placeholder for the sums over the taps."""
        columns = self.block.channels[1]
        node = self._placeholder(self.block.depthwise.node, (self.block.pixels, columns), (columns, 1))
        self.images.add(node)
        return node

    def _placeholder(self, node: fx.Node, shape: Sequence[int], strides: Sequence[int]) -> fx.Node:
        copy = self.graph.placeholder(node.name)
        copy.meta["val"] = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype_of(node), device="meta")
        return copy

    def _flat(self, node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if node is self.block.input:
            columns = shape_of(node)[1]
            return (self.block.pixels, columns), (columns, 1)
        shape, strides = shape_of(node), node.meta["val"].stride()
        if any(node is c.weight for c in (self.block.expand, self.block.project) if c is not None):
            return (shape[1], shape[0]), (strides[1], strides[0])
        kept = [(length, stride) for length, stride in zip(shape, strides, strict=True) if length != 1]
        return tuple(length for length, _ in kept), tuple(stride for _, stride in kept)

    def define(self, convolution: Convolution, left: fx.Node) -> None:
        """A 1 x 1 convolution is a product."""
        weight, node = self.copies[convolution.weight], convolution.node
        operands = (self._cast(left, dtype_of(weight), node), weight)
        if convolution.bias is None:
            self.copies[node] = self.call(ATEN.mm.default, operands, node)
        else:
            self.copies[node] = self.call(ATEN.addmm.default, (self.copies[convolution.bias], *operands), node)

    def value(self, node: fx.Node) -> fx.Node:
        """What a node of the graph is in the body."""
        if node not in self.copies:
            self.copies[node] = self._translated(node)
        return self.copies[node]

    def _translated(self, node: fx.Node) -> fx.Node:
        if (norm := normalized(node)) is not None:
            return self._normalized(norm)
        if (constant := constant_of(node)) is not None:
            return self.call(ATEN.full.default, ([], constant), node, dtype=dtype_of(node), device="meta")
        if passes_on(node):
            return self.value(node.all_input_nodes[0])
        if is_cast(node):
            return self._cast(self.value(node.all_input_nodes[0]), dtype_of(node), node, rounds=False)
        arguments = fx.map_arg(node.args, self.value)
        if operator_of(node) in OPERATORS and len(arguments) == 2 and not node.kwargs:
            left, right = arguments
            if (left in self.images) != (right in self.images):
                return self._affine(operator_of(node), left, right, node)
        return self.call(node.target, arguments, node, **fx.map_arg(node.kwargs, self.value))

    def _affine(self, name: str, left: Any, right: Any, like: fx.Node) -> fx.Node:
        """An operator of an image and a vector, together with those before it."""

        def call(target: Any, arguments: tuple[Any, ...]) -> fx.Node:
            return self.call(target, arguments, like)

        image, other = (left, right) if left in self.images else (right, left)
        number = other if isinstance(other, fx.Node) else float(other)
        affine = self.affine.get(image, Affine(image)).then(name, number, image is right, call)
        node = affine.node(call)
        self.affine[node] = affine
        return node

    def add(self, image: fx.Node, vector: fx.Node, like: fx.Node) -> fx.Node:
        """The sum of an image and a vector."""
        return self._affine("aten::add", image, vector, like)

    def _normalized(self, norm: fx.Node) -> fx.Node:
        given, scale, shift, mean, variance = (self.value(a) if isinstance(a, fx.Node) else a for a in norm.args[:5])
        eps = norm.args[-1]
        factor = self.call(ATEN.rsqrt.default, (self.call(ATEN.add.Tensor, (variance, eps), norm),), norm)
        result = self._affine("aten::mul", self._affine("aten::sub", given, mean, norm), factor, norm)
        result = result if scale is None else self._affine("aten::mul", result, scale, norm)
        return result if shift is None else self._affine("aten::add", result, shift, norm)

    def _cast(self, source: fx.Node, dtype: torch.dtype, like: fx.Node, rounds: bool = True) -> fx.Node:
        """``rounds``: False drops casts between floating point dtypes."""
        floats = dtype.is_floating_point and dtype_of(source).is_floating_point
        if dtype_of(source) == dtype or (floats and not rounds):
            return source
        return self.call(torch.ops.prims.convert_element_type.default, (source, dtype), like)

    def call(self, target: Any, arguments: tuple[Any, ...], like: fx.Node, **keywords: Any) -> fx.Node:
        """A new node. Raises `KernelRefusedError` when it yields no image, vector or scalar."""
        node = self.graph.create_node("call_function", target, arguments, keywords, name=like.name)
        values, options = fx.map_arg((arguments, keywords), lambda n: n.meta["val"])
        node.meta["val"] = value = target(*values, **options)
        if any(n in self.images for n in node.all_input_nodes):
            self.images.add(node)
        if not isinstance(value, torch.Tensor) or value.dim() > (2 if node in self.images else 1):
            raise refused(like, f"{target} does not yield an image or a vector here")
        if "stack_trace" in like.meta:
            node.meta["stack_trace"] = like.meta["stack_trace"]
        return node
