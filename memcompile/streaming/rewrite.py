"""Regions -> nodes: a region's nodes make way for one ``memcompile::stream_rows``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from memcompile.step.fxutil import base_of, outputs_of
from memcompile.streaming.program import Program, Runnable, empty
from memcompile.streaming.region import RowRegion, merged
from memcompile.streaming.rules import NotRowLocalError, RowAxes, shape_of


@dataclass(frozen=True, slots=True)
class Streamed:
    """One region as it runs. ``saved_bytes``: what is no longer alive at its highest moment, before workspace."""

    node: str
    source: str
    program: Program
    saved_bytes: int


def replace(region: RowRegion, program: Program) -> fx.Node:
    """Put the program in the place of the region's nodes; returns its node.

    Raises NotRowLocalError, and changes nothing, when the region reads what depends on its own results.
    """
    graph, inside = region.nodes[-1].graph, set(region.nodes)
    late = waiting(region.nodes, [operand for operand, _ in region.operands])
    with graph.inserting_before(region.nodes[-1].next):
        operands = [_flat(graph, node, rows, region.total) for node, rows in region.operands]
        streamed = part = call_program(program, operands, region.nodes[-1], region.results[0])
        for index, result in enumerate(region.results):
            part = result_of(streamed, index)
            shape = shape_of(result)
            if tuple(part.meta["val"].shape) != shape:
                part = _view(graph, part, shape)
            result.replace_all_uses_with(part, delete_user_cb=lambda user: user not in inside)
    for node in late:
        part.append(node)
        part = node
    for node in reversed(region.nodes):
        graph.erase_node(node)
    return streamed


def stand_in(program: Program, operands: Sequence[fx.Node], last: fx.Node, nodes: Sequence[fx.Node]) -> fx.Node:
    """Put the program in the place of ``nodes``, of which only ``last`` is read by others, as its one result; its node."""
    with last.graph.inserting_before(last.next):
        node = call_program(program, operands, last, last)
        result = result_of(node, 0)
    last.replace_all_uses_with(result)
    for old in reversed(nodes):
        last.graph.erase_node(old)
    return node


def call_program(program: Runnable, operands: Sequence[fx.Node], line: fx.Node, value: fx.Node) -> fx.Node:
    """A node that runs a program, where the graph inserts. ``line``: the node whose source line it has; ``value``: one that
    yields a tensor, as its results do (`result_of`)."""
    node = line.graph.call_function(torch.ops.memcompile.stream_rows.default, (program.key, list(operands)))
    with value.meta["val"].fake_mode:
        values = [empty(port, program.device) for port in program.results]
    node.meta = {**{k: v for k, v in line.meta.items() if k == "stack_trace"}, "val": values}
    return node


def result_of(node: fx.Node, index: int) -> fx.Node:
    """One result of a node that runs a program."""
    part = node.graph.call_function(getitem, (node, index))
    part.meta = {**node.meta, "val": node.meta["val"][index]}
    return part


def waiting(nodes: Sequence[fx.Node], operands: Iterable[fx.Node]) -> list[fx.Node]:
    """What stands among nodes that become one and depends on them: it has to wait for all. ``operands``: what they read.

    Raises NotRowLocalError when they read something of that.
    """
    inside, late = set(nodes), []
    waits: set[fx.Node] = set()
    node = nodes[0]
    while node is not nodes[-1]:
        if node not in inside and any(source in inside or source in waits for source in node.all_input_nodes):
            waits.add(node)
            late.append(node)
        node = node.next
    for operand in operands:
        if operand in waits:
            raise NotRowLocalError(f"{operand.name}, which it reads, depends on what it makes")
    return late


def overwritable(region: RowRegion) -> tuple[int | None, ...]:
    """Per result the operand that it may be written over: one of the same rows, shape and type that nobody reads any more.

    For graphs without a backward.
    """
    inside = set(region.nodes)
    held = {base_of(out) for out in outputs_of(region.nodes[-1].graph) if isinstance(out, fx.Node)}
    bases = [base_of(operand) for operand, _ in region.operands]
    order = {node: i for i, node in enumerate(region.nodes[-1].graph.nodes)}
    last = order[region.nodes[-1]]
    free = {}
    for index, (operand, rows) in enumerate(region.operands):
        base = bases[index]
        dead = all(user in inside or order[user] <= last for user in _readers(base))
        if rows is not None and base.op == "call_function" and base not in held and bases.count(base) == 1 and dead:
            free[index] = _signature(operand, rows, region.total)
    chosen: list[int | None] = []
    for result in region.results:
        rows = region.rows.get(result)
        wanted = None if rows is None else _signature(result, rows, region.total)
        match = next((index for index, signature in free.items() if signature == wanted), None)
        if match is not None:
            del free[match]
        chosen.append(match)
    return tuple(chosen)


def _readers(base: fx.Node) -> set[fx.Node]:
    """All that reads a storage, through views as well."""
    readers: set[fx.Node] = set()
    stack = [base]
    while stack:
        for user in stack.pop().users:
            readers.add(user)
            if base_of(user) is base:
                stack.append(user)
    return readers


def _signature(node: fx.Node, rows: RowAxes, total: int) -> tuple[Any, ...] | None:
    value: Tensor = node.meta["val"]
    if not value.is_contiguous() or value.storage_offset():
        return None
    return merged(tuple(value.shape), rows, total), value.dtype, rows.first, rows.each


def _flat(graph: fx.Graph, node: fx.Node, rows: RowAxes | None, total: int) -> fx.Node:
    """The operand with the axes of its rows as one."""
    if rows is None or rows.first == rows.last:
        return node
    return _view(graph, node, merged(shape_of(node), rows, total))


def _view(graph: fx.Graph, node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
    view = graph.call_function(torch.ops.aten.view.default, (node, list(shape)))
    value = node.meta["val"]
    with value.fake_mode:
        try:
            view.meta = {**{k: v for k, v in node.meta.items() if k == "stack_trace"}, "val": value.view(shape)}
        except RuntimeError:
            raise NotRowLocalError(f"the rows of {node.name} do not lie one after the other") from None
    return view
