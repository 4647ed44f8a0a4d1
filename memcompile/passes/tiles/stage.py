"""A stage of a network, tile by tile: what one tile reads, runs, keeps and writes.

The operators of a tile are called through a ``Sink``: one only notes the calls, so that tiles that run the same share one
body; the other writes the graph of such a body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from memcompile.passes.tiles.network import Network
from memcompile.passes.tiles.operators import rule_of
from memcompile.passes.tiles.planes import Plane, Span, extents, hull, shape_of
from memcompile.passes.tiles.reductions import emit_parts
from memcompile.solvers.tiling.intervals import Tile as Cut
from memcompile.solvers.tiling.problem import Stage
from memcompile.solvers.tiling.stages import members, results

Rectangle = tuple[Span, Span]
aten = torch.ops.aten


class Sink(Protocol):
    """Takes the calls of one tile."""

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: fx.Node) -> Any:
        """An operator."""

    def constant(self, values: NDArray[Any], device: torch.device) -> Any:
        """A table of numbers."""

    def write(self, port: Port, value: Any) -> None:
        """``value`` goes to a port of kind "result", "keep" or "part"."""


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor that a tile takes: ``operand`` from outside; ``history``, rows of a result that earlier tiles wrote;
    ``kept``, rows that the tile before kept; ``result``, the pixels that it writes; ``keep``, rows for the next tile; ``part``,
    its part of a reduction (``index``: which). ``rectangle``: pixels of ``node``; None: all of it."""

    kind: str
    node: fx.Node
    rectangle: Rectangle | None
    index: int = 0


class Layout:
    """The operators of a stage, in order. ``results``: the nodes whose values it leaves."""

    def __init__(self, network: Network, stage: Stage) -> None:
        self.network, self.stage = network, stage
        self.members = members(network.problem, stage)
        self.place = {network.values[index]: index for index in self.members}
        self.results = [network.values[index] for index in results(network.problem, stage)]

    def run(self, cut: Cut, sink: Sink, port: Callable[[Port], Any]) -> list[Port]:
        """Run one tile on a sink; returns its ports. ``port(p)``: the value that stands for a port that is read."""
        probe = _Tile(self, cut, _Nothing(), {}, lambda _port: None)
        probe.run()
        return _Tile(self, cut, sink, probe.reached, port).run()


class _Nothing:
    """A sink for finding out what is read."""

    def call(self, *_args: Any) -> None:
        return None

    def constant(self, *_args: Any) -> None:
        return None

    def write(self, *_args: Any) -> None:
        return None


class _Tile:
    """One tile. ``reached``: the hull of the pixels that it reads of every tensor from outside, and of earlier rows."""

    def __init__(
        self, layout: Layout, cut: Cut, sink: Sink, reached: Mapping[fx.Node, Rectangle], port: Callable[[Port], Any]
    ) -> None:
        self.layout, self.cut, self.sink, self.port = layout, cut, sink, port
        self.network, self.planes = layout.network, layout.network.planes
        self.known = reached
        self.reached: dict[fx.Node, Rectangle] = {}
        self.values: dict[fx.Node, tuple[Any, Rectangle | None]] = {}
        self.outside: dict[fx.Node, tuple[Any, Rectangle | None]] = {}
        self.scope: dict[fx.Node, Any] = {}
        self.spans: dict[fx.Node, Rectangle] = {}
        self.pieces: list[tuple[Any, Rectangle]] = []
        self.node: fx.Node | None = None
        self.ports: list[Port] = []

    def run(self) -> list[Port]:
        """All operators; what is kept for later tiles is written as soon as it is there."""
        for index in self.layout.members:
            self._make(index)
            if index in self.cut.kept_after:
                self._keep(index)
        return self.ports

    def _write(self, port: Port, value: Any) -> None:
        self.node = port.node
        self.ports.append(port)
        self.sink.write(port, value)

    def _make(self, index: int) -> None:
        operator, node = self.network.problem.operators[index], self.network.values[index]
        self.scope, self.pieces = {}, []
        if operator.kind == "reduction":
            if index in self.cut.made:
                self._reduce(index, node)
            return
        before = self.cut.kept_before.get(index)
        made = self.cut.made.get(index)
        columns = made.columns if made is not None else (0, operator.width)
        kept = None
        if before is not None:
            rectangle = _spans(before, columns)
            kept = self._given(Port("kept", node, rectangle))
            if made is None and index in self.cut.kept_after:  # it is written over before all have read it
                self.node = node
                kept = self.call(aten.clone.default, kept)
            self.values[node] = kept, rectangle
        if made is None:
            if node in self.layout.results:  # earlier tiles have written what is read
                history = self.known.get(node)
                self.values[node] = None if history is None else self._given(Port("history", node, history)), history
            return
        rectangle = _spans(*made)
        value = self._compute(index, node, rectangle)
        if node in self.layout.results:
            self._write(Port("result", node, rectangle), value)
        history = self.known.get(node)
        if node in self.layout.results and history is not None and history[0][0] < rectangle[0][0]:
            before_rows = (history[0][0], rectangle[0][0])
            kept = self._given(Port("history", node, (before_rows, rectangle[1])))
            value = self._joined(node, [kept, value])
            rectangle = ((before_rows[0], rectangle[0][1]), rectangle[1])
        elif kept is not None and before is not None:
            self.pieces = [(kept, _spans(before, rectangle[1])), (value, rectangle)]
            value = self._joined(node, [kept, value])
            rectangle = ((before.start, rectangle[0][1]), rectangle[1])
        self.values[node] = value, rectangle

    def _joined(self, node: fx.Node, values: list[Any]) -> Any:
        self.node = node
        return self.call(aten.cat.default, values, self.planes[node].rows)

    def _keep(self, index: int) -> None:
        """Rows for later tiles, from what was kept before or from what is new where they lie in one of them."""
        node, (begin, end) = self.network.values[index], self.cut.kept_after[index]
        for value, rectangle in (*self.pieces, self.values[node]):
            assert rectangle is not None
            (first, last), columns = rectangle
            if first <= begin and end <= last:
                self.node = node
                if (begin, end) != (first, last):
                    value = self.call(aten.slice.Tensor, value, self.planes[node].rows, begin - first, end - first)
                self._write(Port("keep", node, ((begin, end), columns)), value)
                return

    def _compute(self, index: int, node: fx.Node, rectangle: Rectangle) -> Any:
        """The value of an operator on a rectangle: of the nodes that lead to it what is needed, in order."""
        inner = self.network.inner[index]
        self.spans = {node: rectangle}
        for part in reversed(inner):
            if part in self.spans:
                self._pull(part, set(inner))
        for part in inner:
            if part in self.spans:
                self.node = part
                self.scope[part] = rule_of(part).emit(part, self)
        return self.scope[node]

    def _pull(self, node: fx.Node, inner: set[fx.Node]) -> None:
        """Widen what is needed of a node's operands among ``inner``."""
        spans = self.spans[node]
        for source, reads in self.network.reads[node].items():
            if source not in inner or source not in self.network.reads:  # what has no pixels comes from outside
                continue
            plane = self.planes.get(source, Plane(None, None))
            size = extents(shape_of(source), plane)
            rows, columns = (hull(reads[axis], spans[axis], size[axis]) for axis in (0, 1))
            old = self.spans.get(source)
            self.spans[source] = (rows, columns) if old is None else (_around(rows, old[0]), _around(columns, old[1]))

    def _reduce(self, index: int, node: fx.Node) -> None:
        """The tile's part of a reduction: over its share of the source."""
        share = self.cut.share[self.network.problem.operators[index].reads[0].source]
        rectangle = _spans(*share)
        inner = self.network.inner[index]
        self.spans = dict.fromkeys(inner, rectangle)
        for part in inner[:-1]:
            if part not in self.network.reads:
                continue
            self.node = part
            self.spans.update(dict.fromkeys((s for s in part.all_input_nodes if s in self.planes), rectangle))
            self.scope[part] = rule_of(part).emit(part, self)
        self.node = node
        source = node.args[0]
        assert isinstance(source, fx.Node)
        self.spans.setdefault(source, rectangle)
        for number, value in enumerate(emit_parts(node, self)):
            self._write(Port("part", node, None, number), value)

    def span(self, node: fx.Node) -> Rectangle:
        """Rows and columns of ``node`` that are made."""
        return self.spans[node]

    def read(self, node: fx.Node, rows: Span, columns: Span) -> Any:
        """Just those pixels of a tensor."""
        plane = self.planes.get(node)
        if node in self.scope:
            value, have = self.scope[node], self.spans[node]
        elif plane is None:
            return self.whole(node)
        elif node in self.layout.place:
            self._reach(node, (rows, columns))
            value, held = self.values[node]
            have = held or (rows, columns)
        else:
            value, have = self._outside(node, (rows, columns))
        if plane is None or plane.is_merged:
            return value
        for axis, want, own in ((plane.rows, rows, have[0]), (plane.columns, columns, have[1])):
            if axis is not None and want != own:
                value = self.call(aten.slice.Tensor, value, axis, want[0] - own[0], want[1] - own[0])
        return value

    def _reach(self, node: fx.Node, wanted: Rectangle) -> None:
        old = self.reached.get(node)
        self.reached[node] = wanted if old is None else (_around(wanted[0], old[0]), _around(wanted[1], old[1]))

    def _outside(self, node: fx.Node, wanted: Rectangle) -> tuple[Any, Rectangle]:
        self._reach(node, wanted)
        rectangle = self.known.get(node, wanted)
        if node not in self.outside:
            self.outside[node] = self._given(Port("operand", node, rectangle)), rectangle
        return self.outside[node][0], rectangle

    def whole(self, node: fx.Node) -> Any:
        """All of a tensor."""
        if node in self.scope:
            return self.scope[node]
        if node not in self.outside:
            self.outside[node] = self._given(Port("operand", node, None)), None
        return self.outside[node][0]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """An operator called on such values."""
        assert self.node is not None
        return self.sink.call(target, args, kwargs, self.node)

    def constant(self, values: NDArray[Any], like: fx.Node) -> Any:
        """A small table of numbers."""
        return self.sink.constant(np.ascontiguousarray(values), like.meta["val"].device)

    def _given(self, port: Port) -> Any:
        self.ports.append(port)
        return self.port(port)


def _spans(rows: Sequence[int], columns: Sequence[int]) -> Rectangle:
    return (rows[0], rows[1]), (columns[0], columns[1])


def _around(one: Span, other: Span) -> Span:
    return min(one[0], other[0]), max(one[1], other[1])
