"""Finds inverted residuals in the graph of an inference step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx

from memcompile.codegen.inverted_residual.block import Convolution, InvertedResidual, convolution_of
from memcompile.codegen.inverted_residual.flatten import is_inner, is_norm, leaves_of, normalized
from memcompile.codegen.kernel.pointwise import constant_of, operator_of, refused, shape_of
from memcompile.errors import KernelRefusedError


@dataclass(frozen=True, slots=True)
class FoundBlocks:
    """The blocks of a graph, in its order, and the depthwise convolutions that are in none, with the reason."""

    blocks: tuple[InvertedResidual, ...]
    refused: tuple[KernelRefusedError, ...]


def inverted_residuals(graph: fx.Graph, *, dense: bool = False) -> FoundBlocks:
    """All inverted residuals of a graph of ATen operators whose nodes carry fake tensors; no two share a node.

    ``dense``: any convolution of all channels may expand, a network's stem for one; otherwise those of 1 x 1 alone.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    blocks: list[InvertedResidual] = []
    errors: list[KernelRefusedError] = []
    for node in graph.nodes:
        depthwise = convolution_of(node) if _is_static(node) else None
        if depthwise is None or not depthwise.is_depthwise:
            continue
        taken = {inner for block in blocks for inner in block.nodes}
        try:
            blocks.append(_around(depthwise, order, taken, dense))
        except KernelRefusedError as error:
            errors.append(error)
    return FoundBlocks(tuple(blocks), tuple(errors))


def _is_static(node: fx.Node) -> bool:
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    return all(isinstance(v, torch.Tensor) and all(isinstance(length, int) for length in v.shape) for v in values)


def _around(convolution: Convolution, order: dict[fx.Node, int], taken: set[fx.Node], dense: bool) -> InvertedResidual:
    """The block of a depthwise convolution. What another block has ``taken``, its projection for one, does not expand."""
    depthwise, pads = _with_pads(convolution)
    between, sources = _back(depthwise.input)
    expand = convolution_of(sources[0]) if len(sources) == 1 and sources[0] not in taken else None
    if expand is not None and dense and expand.groups == 1:
        expand, more = _with_pads(expand)
        between |= {*more}
    if expand is None or not (expand.is_product or (dense and expand.groups == 1)):
        between, expand, image = set(), None, depthwise.input
    else:
        between, image = between | {expand.node}, expand.input
    project, passed = _project(depthwise)
    inside = {*between, *pads, depthwise.node, *passed, project.node}
    result, tail = _result(project, image, order)
    inside |= tail
    nodes = tuple(sorted(inside, key=order.__getitem__))
    for node in nodes:
        if node is not result and any(user not in inside for user in node.users):
            raise refused(depthwise.node, f"{node.name} is read outside of the block")
    convolutions = [c for c in (expand, depthwise, project) if c is not None]
    own = [n for c in convolutions for n in (c.weight, c.bias) if n is not None]
    leaves = [
        leaf for root in (depthwise.input, project.input, result) for leaf in leaves_of(root, {image, *_nodes(convolutions)})
    ]
    parameters = sorted(dict.fromkeys([*own, *leaves]), key=order.__getitem__)
    if len(own) != len(set(own)) or image in parameters:
        raise refused(depthwise.node, "two of its convolutions share a parameter")
    if math.prod(shape_of(image)[2:]) * shape_of(image)[0] == 1:
        raise refused(depthwise.node, "there is one pixel only")
    return InvertedResidual(expand, depthwise, project, image, result, nodes, tuple(parameters))


def _with_pads(depthwise: Convolution) -> tuple[Convolution, list[fx.Node]]:
    """The convolution with the zeros around its input as its own padding (how many lie below and to the right follows from the
    size of the result), and the node that pads."""
    node = depthwise.input
    if operator_of(node) != "aten::constant_pad_nd":
        return depthwise, []
    source, pads, *value = cast("tuple[Any, ...]", node.args)
    if len(pads) > 4 or any(value) or min(pads, default=0) < 0:
        return depthwise, []
    left, top = [*pads, 0, 0, 0][0:3:2]
    padding = depthwise.padding[0] + top, depthwise.padding[1] + left
    return replace(depthwise, input=source, padding=padding), [node]


def _nodes(convolutions: Iterable[Convolution]) -> Iterator[fx.Node]:
    return (convolution.node for convolution in convolutions)


def _back(root: fx.Node) -> tuple[set[fx.Node], list[fx.Node]]:
    """The pointwise nodes of images that ``root`` is computed by, and the nodes that they start from."""
    inside: set[fx.Node] = set()
    sources: dict[fx.Node, None] = {}
    stack = [root]
    while stack:
        node = stack.pop()
        if node in inside or node in sources:
            continue
        images = _images_of(node)
        if images is None:
            sources[node] = None
        else:
            inside.add(node)
            inside |= {norm} if (norm := normalized(node)) is not None else set()
            stack += images
    return inside, list(sources)


def _images_of(node: fx.Node) -> list[fx.Node] | None:
    """The images that a pointwise node of images reads; None for all other nodes."""
    if (norm := normalized(node)) is not None:
        return [norm.args[0]]  # type: ignore[list-item]
    if not is_inner(node) or constant_of(node) is not None:
        return None
    shape = shape_of(node) if isinstance(node.meta.get("val"), torch.Tensor) else ()
    if len(shape) != 4 or not all(isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes):
        return None
    images = [n for n in node.all_input_nodes if shape_of(n) == shape]
    others = [n for n in node.all_input_nodes if shape_of(n) != shape]
    return images if images and all(_is_vector(n, shape[1]) for n in others) else None


def _is_vector(node: fx.Node, channels: int) -> bool:
    """Whether an operand has one value a channel, or one for all."""
    shape = shape_of(node)
    return math.prod(shape) == 1 or (len(shape) in (3, 4) and shape[-3:] == (channels, 1, 1) and math.prod(shape) == channels)


def _project(depthwise: Convolution) -> tuple[Convolution, set[fx.Node]]:
    """The 1 x 1 convolution that follows, and the pointwise nodes in between."""
    waiting, seen = list(depthwise.node.users), {depthwise.node}
    found: list[Convolution] = []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        convolution = convolution_of(node)
        if convolution is not None:
            found.append(convolution)
        elif is_norm(node) or _images_of(node) is not None:
            waiting += node.users
        elif node.op != "output":
            raise refused(depthwise.node, f"{node.name} reads what follows it, and is not pointwise")
    if len(found) != 1 or not found[0].is_product:
        raise refused(depthwise.node, "no 1 x 1 convolution follows it")
    inside, sources = _back(found[0].input)
    if others := [n.name for n in sources if n is not depthwise.node]:
        raise refused(depthwise.node, f"{others[0]} takes part in what follows it")
    return found[0], inside


def _result(project: Convolution, image: fx.Node, order: dict[fx.Node, int]) -> tuple[fx.Node, set[fx.Node]]:
    """The last node after ``project`` that is pointwise in it and the input, and read alone; and those on the way to it."""
    shape, tail = shape_of(project.node), {project.node}
    waiting = list(project.node.users)
    while waiting:
        node = min(waiting, key=order.__getitem__)
        waiting.remove(node)
        if is_norm(node):
            waiting += [user for user in node.users if user not in waiting]
            continue
        images = _images_of(node)
        known = {*tail, image} if shape_of(image) == shape else tail
        if images is not None and all(n in known for n in images) and node not in tail:
            tail |= {node} | ({norm} if (norm := normalized(node)) is not None else set())
            waiting += [user for user in node.users if user not in waiting]
    for last in sorted(tail, key=order.__getitem__, reverse=True):
        needed = _needed(last, tail)
        if not isinstance(last.meta["val"], tuple) and all(set(n.users) <= needed for n in needed if n is not last):
            return last, needed - {project.node}
    raise AssertionError("the convolution itself always is")


def _needed(last: fx.Node, among: set[fx.Node]) -> set[fx.Node]:
    found, stack = {last}, [last]
    while stack:
        for node in stack.pop().all_input_nodes:
            if node in among and node not in found:
                found.add(node)
                stack.append(node)
    return found
