"""A block on its own, with names that say what things are: equal blocks then have equal kernels."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from memcompile.codegen.inverted_residual.block import Convolution, InvertedResidual
from memcompile.step.fxutil import op_name


def named(block: InvertedResidual) -> InvertedResidual:
    """A copy of a block in a graph of its own. Its operands are in the order of the block's."""
    parts = {"expand": block.expand, "depthwise": block.depthwise, "project": block.project}
    names: dict[fx.Node, str] = {block.input: "x"}
    for name, part in parts.items():
        if part is not None:
            names |= {part.node: name, part.weight: f"{name}_weight"}
            names |= {part.bias: f"{name}_bias"} if part.bias is not None else {}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(block.operands):
        copies[node] = _with_meta(graph.placeholder(names.get(node, f"vector{i}")), node)
    for node in computed(block):
        arguments, keywords = fx.map_arg((node.args, dict(node.kwargs)), copies.__getitem__)
        name = names.get(node, op_name(node))
        copies[node] = _with_meta(graph.create_node(node.op, node.target, arguments, keywords, name=name), node)
    graph.output((copies[block.result],))

    def convolution(part: Convolution) -> Convolution:
        bias = None if part.bias is None else copies[part.bias]
        return replace(part, node=copies[part.node], input=copies[part.input], weight=copies[part.weight], bias=bias)

    return InvertedResidual(
        None if block.expand is None else convolution(block.expand),
        convolution(block.depthwise),
        convolution(block.project),
        copies[block.input],
        copies[block.result],
        tuple(copies[node] for node in block.nodes),
        tuple(copies[node] for node in block.parameters),
    )


def computed(block: InvertedResidual) -> list[fx.Node]:
    """The block's nodes and what they compute from parameters alone, in the order of the graph."""
    found, stack = {*block.nodes}, [*block.nodes]
    while stack:
        for node in stack.pop().all_input_nodes:
            if node not in found and node not in block.operands:
                found.add(node)
                stack.append(node)
    return [node for node in block.input.graph.nodes if node in found]


def _with_meta(copy: fx.Node, node: fx.Node) -> fx.Node:
    copy.meta.update({key: node.meta[key] for key in ("val", "stack_trace") if key in node.meta})
    return copy
