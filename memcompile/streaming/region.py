"""A set of nodes that runs block by block: what it reads, what it returns, and the graph of one block."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from memcompile.machine.device import prefers_onednn
from memcompile.step.fxutil import is_view, tensors_of
from memcompile.streaming.linear import LINEAR
from memcompile.streaming.rules import (
    Demands,
    NotRowLocalError,
    RowAxes,
    Shape,
    block_shape,
    carried,
    contracted,
    demanded,
    resized,
    shape_of,
)

RowsOf = Mapping[fx.Node, RowAxes]


@dataclass(frozen=True, slots=True)
class RowRegion:
    """``nodes``, in order, run on blocks of ``total`` rows. ``rows``: of those that have some; the others are sums over rows.

    ``operands``: what is read from outside, and its rows (None: taken whole). ``results``: what is used outside.
    """

    nodes: tuple[fx.Node, ...]
    total: int
    rows: RowsOf
    operands: tuple[tuple[fx.Node, RowAxes | None], ...]
    results: tuple[fx.Node, ...]


def spread(anchor: fx.Node, rows: RowAxes, total: int) -> tuple[dict[fx.Node, RowAxes], set[fx.Node]]:
    """All that has the same rows as ``anchor`` and is connected to it: where its rows lie, and which nodes are row-local."""
    known, inside = {anchor: rows}, set()
    stack = [anchor]
    while stack:
        node = stack.pop()
        found: dict[fx.Node, RowAxes] = {}
        try:
            demands = demanded(node, known[node])
            if all(known.get(operand, wanted) == wanted for operand, wanted in demands.items()):
                inside.add(node)
                found = {operand: wanted for operand, wanted in demands.items() if wanted is not None}
        except NotRowLocalError:
            pass
        for user in node.users:
            if user not in known and user not in found and user.op == "call_function":
                try:
                    found[user] = carried(user, node, known[node], total)
                except NotRowLocalError:
                    continue
        new = {other: place for other, place in found.items() if other not in known}
        known.update(new)
        stack += new
    return known, inside


def enclose(nodes: Iterable[fx.Node], rows: RowsOf, total: int, dropped: Collection[fx.Node] = ()) -> RowRegion:
    """The region of these nodes, in their order. ``dropped``: users outside that do not count.

    Raises NotRowLocalError when a tuple that a node yields is used outside.
    """
    ordered = tuple(nodes)
    inside = set(ordered)
    operands: dict[fx.Node, RowAxes | None] = {}
    for node in ordered:
        for operand, wanted in demands_of(node, rows, inside).items():
            if operand in inside:
                continue
            if operands.setdefault(operand, wanted) != wanted:
                raise NotRowLocalError(f"{operand.name} is read in two ways")
    results = tuple(n for n in ordered if any(user not in inside and user not in dropped for user in n.users))
    for node in results:
        if not isinstance(node.meta["val"], torch.Tensor):
            raise NotRowLocalError(f"{node.name} yields a tuple that is used elsewhere")
    return RowRegion(ordered, total, {n: r for n, r in rows.items() if n in inside}, tuple(operands.items()), results)


def demands_of(node: fx.Node, rows: RowsOf, inside: Collection[fx.Node]) -> Demands:
    """Rows of what a node of a region reads."""
    if node in rows:
        return demanded(node, rows[node])
    source = next(s for s in node.all_input_nodes if s in inside and s in rows)
    return contracted(node, source, rows[source])


def merged(shape: Shape, rows: RowAxes, count: int) -> Shape:
    """Shape of a block of ``count`` rows with the axes of the rows as one."""
    return (*shape[: rows.first], count * rows.each, *shape[rows.last + 1 :])


def flat_body(region: RowRegion) -> fx.GraphModule:
    """The graph of all rows with the axes of rows as one, for a kernel that takes ``[rows, columns]``; returns the results.

    Raises NotRowLocalError for what is no product or pointwise operator on such tensors.
    """
    graph = fx.Graph()
    block = _Block(graph, FakeTensorMode())
    copies: dict[fx.Node, fx.Node] = {}
    for index, (operand, rows) in enumerate(region.operands):
        value = _tensor(operand)
        shape, stride = tuple(value.shape), tuple(value.stride())
        if rows is not None:
            shape, stride = _flat_shape(operand, rows, region.total), (*stride[: rows.first], *stride[rows.last :])
        copies[operand] = block.placeholder(f"operand{index}", shape, stride, value)
    for node in region.nodes:
        if node not in region.rows:
            raise NotRowLocalError(f"{node.name} is a sum over rows")
        wanted = _flat_shape(node, region.rows[node], region.total)
        if is_view(node) and tuple(_tensor(copies[node.all_input_nodes[0]]).shape) == wanted:
            copies[node] = copies[node.all_input_nodes[0]]
            continue
        arguments, keywords = fx.map_arg((node.args, dict(node.kwargs)), lambda n: copies[n])
        copies[node] = block.call(node.target, arguments, keywords, node)
        if tuple(_tensor(copies[node]).shape) != wanted:
            raise NotRowLocalError(f"{node.name} is no matrix of rows and columns")
    graph.output(tuple(copies[result] for result in region.results))
    graph.eliminate_dead_code()
    return fx.GraphModule(torch.nn.Module(), graph)


def _flat_shape(node: fx.Node, rows: RowAxes, total: int) -> Shape:
    shape = merged(shape_of(node), rows, total)
    if rows.first or rows.each != 1 or len(shape) != 2:
        raise NotRowLocalError(f"{node.name} is no matrix of rows and columns")
    return shape


def body(region: RowRegion, count: int) -> fx.GraphModule:
    """The graph of one block of ``count`` rows, with the shapes of that block.

    Inputs: the operands (axes of rows merged to one), then one tensor per result, which the graph writes: a block of rows, or
    a sum that it adds to. Returns nothing.
    """
    graph = fx.Graph()
    mode = FakeTensorMode()
    copies: dict[fx.Node, fx.Node] = {}
    block = _Block(graph, mode)
    for operand, rows in region.operands:
        value = _tensor(operand)
        if rows is None:
            copies[operand] = block.placeholder(operand.name, tuple(value.shape), tuple(value.stride()), value)
            continue
        stride = (*value.stride()[: rows.first], *value.stride()[rows.last :])
        part = block.placeholder(operand.name, merged(tuple(value.shape), rows, count), stride, value)
        shape = block_shape(value.shape, rows, count)
        copies[operand] = part if rows.first == rows.last else block.call(torch.ops.aten.view.default, (part, list(shape)))
    outputs = []
    for result in region.results:
        value, rows = _tensor(result), region.rows.get(result)
        shape = tuple(value.shape) if rows is None else merged(tuple(value.shape), rows, count)
        outputs.append(block.placeholder(f"{result.name}_out", shape, contiguous_strides(shape), value))
    for node in region.nodes:
        rows = region.rows.get(node)
        args, kwargs = (node.args, node.kwargs) if rows is None else resized(node, rows, count)
        arguments, keywords = fx.map_arg((args, dict(kwargs)), lambda n: copies[n])
        product = block.product(node, arguments) if rows is not None else None
        copies[node] = product or block.call(node.target, arguments, keywords, node)
        if rows is not None and tensors_of(node):
            expected = block_shape(shape_of(node), rows, count)
            if tuple(tensors_of(copies[node])[0].shape) != expected:
                raise NotRowLocalError(f"{node.name} does not follow its rows")
    for result, output in zip(region.results, outputs, strict=True):
        made, rows = copies[result], region.rows.get(result)
        if rows is None:
            made = block.call(torch.ops.aten.add.Tensor, (output, made))
        elif rows.first < rows.last:
            made = block.call(torch.ops.aten.reshape.default, (made, list(output.meta["val"].shape)))
        block.call(torch.ops.aten.copy_.default, (output, made))
    graph.output(())
    graph.eliminate_dead_code()
    return fx.GraphModule(torch.nn.Module(), graph)


class _Block:
    """Builds a graph and the shapes of its nodes."""

    def __init__(self, graph: fx.Graph, mode: FakeTensorMode) -> None:
        self.graph, self.mode = graph, mode

    def placeholder(self, name: str, shape: Shape, stride: Shape, like: torch.Tensor) -> fx.Node:
        node = self.graph.placeholder(name)
        with self.mode:
            node.meta["val"] = torch.empty_strided(shape, stride, dtype=like.dtype, device=like.device)
        return node

    def product(self, node: fx.Node, arguments: tuple[Any, ...]) -> Any:
        """A product in single precision on the CPU as it is fastest there; None for all others.

        A vector is added in the loop that reads the product, not as a copy to add to. (In half precision it would be rounded
        once more.) On AMD's processors, where MKL takes a slower path, oneDNN multiplies.
        """
        if node.target is torch.ops.aten.mm.default:
            bias, left, right = None, *arguments
        elif node.target is torch.ops.aten.addmm.default and not node.kwargs and _tensor(arguments[0]).dim() == 1:
            bias, left, right = arguments
        else:
            return None
        value = _tensor(left)
        if value.device.type != "cpu" or value.dtype is not torch.float32:
            return None
        if prefers_onednn():
            weight = self.call(torch.ops.aten.permute.default, (right, [1, 0]))
            return self.call(LINEAR, (left, weight, bias), None, node)
        product = self.call(torch.ops.aten.mm.default, (left, right), None, node)
        return product if bias is None else self.call(torch.ops.aten.add.Tensor, (product, bias), None, node)

    def call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, like: fx.Node | None = None
    ) -> Any:
        node = self.graph.call_function(target, args, kwargs or {})
        values, keywords = fx.map_arg((args, kwargs or {}), lambda n: n.meta["val"])
        with self.mode:
            try:
                node.meta["val"] = values[0][values[1]] if target is getitem else target(*values, **keywords)
            except RuntimeError as error:
                raise NotRowLocalError(f"{node.name} does not run on a block: {error}") from None
        if like is not None and "stack_trace" in like.meta:
            node.meta["stack_trace"] = like.meta["stack_trace"]
        return node


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of dense images [batch, channels, rows, columns] with channels innermost."""
    _, channels, rows, columns = shape
    return rows * columns * channels, 1, columns * channels, channels


def contiguous_strides(shape: Shape) -> Shape:
    """Strides of a dense tensor in row-major order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _tensor(node: fx.Node) -> torch.Tensor:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or not all(isinstance(n, int) for n in (*value.shape, *value.stride())):
        raise NotRowLocalError(f"{node.name} has no fixed shape")
    return value
