"""Bodies of tiles that run as they stand, one library call after the other: nothing is compiled.

On the CPU, tiles that lie in the caches gain little by fused loops once convolutions have their activation inside, and a stage
has many bodies: compiling each would take minutes. What a body allocates is known all the same: tensors die at their last use,
and pointwise operators write over an operand that dies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from memcompile.codegen.inductor.scratch import scratch_bytes
from memcompile.passes.tiles.packing import packed_bytes, packed_scratch_bytes
from memcompile.step.fxutil import base_of, is_view, tensors_of
from memcompile.streaming.program import RowBlock

aten = torch.ops.aten


def interpret(module: fx.GraphModule) -> RowBlock:
    """A block that calls ``module``, whose graph is changed to work in place. Nothing lies in the workspace."""
    _in_place(module.graph)
    module.graph.lint()
    module.recompile()
    peak = peak_bytes(module.graph)
    forward = module.forward

    def run(tensors: list[torch.Tensor]) -> None:
        with torch.no_grad():
            forward(*tensors)

    return RowBlock(lambda _workspace: run, 0, peak)


def _in_place(graph: fx.Graph) -> None:
    """Pointwise operators write over an operand of the same size that nobody reads any more."""
    last = _last_uses(graph)
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is aten.addcmul.default:
            _addcmul(node, last)
        elif torch.Tag.pointwise in node.target.tags and node.target.namespace == "aten":
            _write_over(node, last)


def _write_over(node: fx.Node, last: dict[fx.Node, fx.Node]) -> None:
    name = node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
    packet = getattr(aten, f"{name}_", None)
    overload = getattr(packet, node.target._overloadname, None) if packet is not None else None  # type: ignore[union-attr]
    if overload is None:
        return
    args = list(node.args)
    if name in ("add", "mul") and len(args) == 2 and not _dies(args[0], node, last) and _dies(args[1], node, last):
        args.reverse()
    if _dies(args[0], node, last):
        node.target, node.args = overload, tuple(args)


def _addcmul(node: fx.Node, last: dict[fx.Node, fx.Node]) -> None:
    """shift + image * scale, over the image."""
    if _dies(node.args[1], node, last):
        node.target = aten.addcmul.out
        node.kwargs = {**node.kwargs, "out": node.args[1]}


def _dies(operand: Any, node: fx.Node, last: dict[fx.Node, fx.Node]) -> bool:
    """Whether a tensor that the body made itself is read by ``node`` for the last time and has its shape and type."""
    if not isinstance(operand, fx.Node) or operand.op != "call_function" or base_of(operand) is not operand:
        return False
    given, made = operand.meta["val"], node.meta["val"]
    if not isinstance(given, torch.Tensor) or given.shape != made.shape or given.dtype is not made.dtype:
        return False
    dense = (
        given.numel() == 0 or sum((n - 1) * s for n, s in zip(given.shape, given.stride(), strict=True)) + 1 == given.numel()
    )
    return bool(dense and last[operand] is node)


def _last_uses(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For every tensor that is no view the last node that reads it, or a view of it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last.setdefault(base_of(node), node)
        for source in node.all_input_nodes:
            last[base_of(source)] = node
    return last


def peak_bytes(graph: fx.Graph) -> int:
    """The most bytes that the calls of a graph have allocated at once."""
    sizes: dict[fx.Node, int] = {}
    homes: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        written = _written(node)
        homes[node] = homes.get(written, written) if written is not None else node
        if written is None and not is_view(node):
            sizes[node] = packed_bytes(node) or sum(_bytes(tensor) for tensor in tensors_of(node))
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for source in (node, *node.all_input_nodes):
            base = base_of(source)
            last[homes.get(base, base)] = node
    alive = peak = 0
    ending: dict[fx.Node, list[fx.Node]] = {}
    for node, end in last.items():
        ending.setdefault(end, []).append(node)
    for node in graph.nodes:
        alive += sizes.get(node, 0)
        peak = max(peak, alive + _scratch(node))
        alive -= sum(sizes.get(dead, 0) for dead in ending.get(node, ()))
    return peak


def _scratch(node: fx.Node) -> int:
    """Bytes that a library kernel takes beside its result."""
    values = [source.meta["val"] for source in node.all_input_nodes]
    if node.op != "call_function" or not all(isinstance(value, torch.Tensor) for value in values):
        return 0
    of_packed = packed_scratch_bytes(node)
    return scratch_bytes(node, [value.stride() for value in values]) if of_packed is None else of_packed


def _written(node: fx.Node) -> fx.Node | None:
    """The operand whose memory an operator writes its result into."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            return base_of(value) if isinstance(value, fx.Node) else None
    return None


def _bytes(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape) * tensor.itemsize
