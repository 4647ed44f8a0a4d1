"""What follows the convolutions of a block: pointwise nodes of pixels, and the vectors of channels that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from memcompile.codegen.cpp.pointwise import expression, number
from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.flatten import flatten
from memcompile.codegen.kernel.chain import Chain
from memcompile.codegen.kernel.pointwise import constant_of, dtype_of, refused, shape_of


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What follows one convolution. ``sums``: the node that stands for its sums, ``result``: what comes out; ``pointwise``: the
    nodes in between, in order. ``bias``: added first. ``channels``: of the result. ``input``: stands for the block's input."""

    name: str
    sums: fx.Node
    bias: fx.Node | None
    pointwise: tuple[fx.Node, ...]
    result: fx.Node
    channels: int
    input: fx.Node | None

    @property
    def vectors(self) -> tuple[fx.Node, ...]:
        """Vectors and scalars that pixels read, constants aside: computed once a call."""
        reads = [n for node in self.pointwise for n in node.all_input_nodes]
        own = {self.sums, self.input, *self.pointwise}
        found = [n for n in ([self.bias] if self.bias is not None else []) + reads if n not in own]
        return tuple(node for node in dict.fromkeys(found) if constant_of(node) is None)

    def lines(self, vector: Callable[[fx.Node], str], pixel: str) -> Iterator[str]:
        """Statements that compute ``result`` from ``sum``. ``vector``: what a vector is read by; ``pixel``: the input's."""
        names = {self.sums: "sum"}
        if self.bias is not None:
            yield f"sum += {vector(self.bias)};"
        if self.input is not None:
            names[self.input] = pixel

        def read(node: fx.Node) -> str:
            if node in names:
                return names[node]
            constant = constant_of(node)
            return vector(node) if constant is None else number(constant)

        for node in self.pointwise:
            yield f"const auto {node.name}_ = {expression(node, read)};"
            names[node] = f"{node.name}_"

    @property
    def value(self) -> str:
        """The name of what the statements compute."""
        return "sum" if self.result is self.sums else f"{self.result.name}_"


Stages = tuple[Epilogue | None, Epilogue, Epilogue]
"""Of ``expand``, ``depthwise`` and ``project``."""


def stages_of(block: InvertedResidual) -> Stages:
    """What follows ``expand``, ``depthwise`` and ``project`` of a named block. Raises `KernelRefusedError`."""
    bodies = flatten(block)
    for chain in (bodies.before, bodies.after):
        for node in chain.graph.nodes:
            if node.op != "output" and dtype_of(node) not in (torch.float32, torch.bool) and constant_of(node) is None:
                raise refused(block.depthwise.node, f"{node.name} is {dtype_of(node)}; C++ kernels are for float32")
    _, wide, narrow = block.channels
    expand = None
    if block.expand is not None:
        (product,) = bodies.before.products.values()
        expand = _stage("expand", bodies.before, product.node, product.bias, bodies.before.outputs[0], wide)
    (product,) = bodies.after.products.values()
    depthwise = _stage("depthwise", bodies.after, bodies.sums, None, product.left, wide)
    found = expand, depthwise, _stage("project", bodies.after, product.node, product.bias, bodies.after.outputs[0], narrow)
    for stage in filter(None, found):  # what has no formula is refused here, not when it is written
        list(stage.lines(str, "input"))
        list(vector_lines(stage, str, str))
    return found


def _stage(name: str, chain: Chain, sums: fx.Node, bias: fx.Node | None, result: fx.Node, channels: int) -> Epilogue:
    needed, stack = {result}, [result]
    while stack:
        node = stack.pop()
        if node is sums:
            continue
        new = [n for n in node.all_input_nodes if n in chain.row_nodes and n not in needed]
        needed.update(new)
        stack += new
    inputs = [node for node in needed if node.op == "placeholder" and node is not sums]
    order = [n for n in chain.graph.nodes if n in needed and n is not sums and n.op != "placeholder"]
    return Epilogue(name, sums, bias, tuple(order), result, channels, inputs[0] if inputs else None)


def vector_lines(stage: Epilogue, read: Callable[[fx.Node], str], write: Callable[[fx.Node], str]) -> Iterator[str]:
    """Statements that compute the vectors of a stage for channel ``c``. ``read``: an operand's value; ``write``: where to."""
    wanted = stage.vectors
    needed, stack = set(wanted), list(wanted)
    while stack:
        new = [n for n in stack.pop().all_input_nodes if n not in needed]
        needed.update(new)
        stack += new
    names: dict[fx.Node, str] = {}

    def value(node: fx.Node) -> str:
        constant = constant_of(node)
        return number(constant) if constant is not None else names[node]

    for node in (n for n in stage.sums.graph.nodes if n in needed):
        if constant_of(node) is not None:
            continue
        if len(shape_of(node)) > 1:
            raise refused(node, f"{node.name} is no vector")
        names[node] = f"{node.name}_"
        yield f"const float {node.name}_ = {read(node) if node.op == 'placeholder' else expression(node, value)};"
    for node in wanted:
        yield f"{write(node)} = {names[node]};"
