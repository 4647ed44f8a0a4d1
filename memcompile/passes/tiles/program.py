"""A stage as one node of a graph: the program that runs its tiles, one body for all tiles that run the same.

It takes the place of row programs in ``memcompile::stream_rows`` (``streaming/program.py``). Rows that a tile keeps for the
next one lie in front of the workspace; a body copies them together with its new rows before it writes over them.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from memcompile.passes.tiles.bodies import Body, Hoisted
from memcompile.passes.tiles.interpreted import peak_bytes
from memcompile.passes.tiles.network import Network
from memcompile.passes.tiles.packing import packed_bytes
from memcompile.passes.tiles.planes import Plane, shape_of
from memcompile.passes.tiles.reductions import parts_of
from memcompile.passes.tiles.stage import Layout, Port, Rectangle
from memcompile.solvers.tiling.intervals import tiles
from memcompile.solvers.tiling.problem import Stage
from memcompile.step.cost import flops_of
from memcompile.step.fxutil import is_view
from memcompile.streaming.program import ProgramBuffer, RowBlock
from memcompile.streaming.region import channels_last, contiguous_strides

ALIGNMENT = 64
aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class View:
    """The part of a tensor that one tile takes: ``where`` it comes from, which of them, and (axis, begin, length) cuts."""

    where: str
    index: int
    cuts: tuple[tuple[int, int, int], ...] = ()

    def of(self, tensors: dict[str, Sequence[Tensor]]) -> Tensor:
        """That part."""
        tensor = tensors[self.where][self.index]
        for axis, begin, length in self.cuts:
            tensor = tensor.narrow(axis, begin, length)
        return tensor


@dataclass(frozen=True, slots=True)
class Line:
    """Rows that tiles keep for the next one: as many as ever are, at ``offset`` of the workspace."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def size_bytes(self) -> int:
        """Up to where the next one may begin."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT

    def of(self, workspace: Tensor) -> Tensor:
        """The rows, in a workspace."""
        count = math.prod(self.shape) * self.dtype.itemsize
        return workspace[self.offset : self.offset + count].view(self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True, eq=False)
class TileProgram:
    """``tiles``: for each the key of its body and the views that it takes, in the order of the body's inputs. ``prologue``:
    from all operands to what follows from parameters alone, for all tiles."""

    key: str
    operands: tuple[ProgramBuffer, ...]
    results: tuple[ProgramBuffer, ...]
    device: torch.device
    flops: int
    bodies: dict[str, fx.GraphModule]
    tiles: tuple[tuple[str, tuple[View, ...]], ...]
    lines: tuple[Line, ...]
    prologue: fx.GraphModule
    blocks: dict[str, RowBlock] = field(default_factory=dict)

    @property
    def in_place(self) -> tuple[None, ...]:
        """No result is written over an operand."""
        return (None,) * len(self.results)

    @property
    def lines_bytes(self) -> int:
        """Bytes of the rows that are kept."""
        return sum(line.size_bytes for line in self.lines)

    @property
    def workspace_bytes(self) -> int:
        """Bytes that every tile runs in, and of the rows that are kept."""
        return self.lines_bytes + max((block.workspace_bytes for block in self.blocks.values()), default=0)

    @property
    def scratch_bytes(self) -> int:
        """Bytes that the library calls inside allocate."""
        kept = [node for node in self.prologue.graph.output_node().all_input_nodes if not is_view(node)]
        hoisted: int = sum(packed_bytes(node) or node.meta["val"].numel() * node.meta["val"].itemsize for node in kept)
        inside = max((block.scratch_bytes for block in self.blocks.values()), default=0)
        return max(peak_bytes(self.prologue.graph), hoisted + inside)

    def compile(self, compiler: Callable[[fx.GraphModule], RowBlock], *, dry: bool = False) -> None:
        """Lower the bodies, once. ``dry``: they need not run."""
        for name, graph in self.bodies.items():
            if name not in self.blocks or not (dry or self.blocks[name].prepare):
                self.blocks[name] = compiler(graph)

    def run(self, operands: Sequence[Tensor], results: Sequence[Tensor], workspace: Tensor) -> None:
        """Write ``results``, tile by tile."""
        lines = [line.of(workspace) for line in self.lines]
        given: dict[str, Sequence[Tensor]] = {
            "operand": operands,
            "result": results,
            "line": lines,
            "hoisted": self.prologue(*operands),
        }
        inner = workspace[self.lines_bytes :]
        runs = {name: block.prepare(inner) for name, block in self.blocks.items() if block.prepare}
        for name, views in self.tiles:
            runs[name]([view.of(given) for view in views])


Strides = Callable[[fx.Node], tuple[int, ...]]


def program_of(network: Network, stage: Stage, strides: Strides) -> tuple[TileProgram, list[fx.Node]]:
    """The program of a tiled stage, and its operands. ``strides``: of operands, and of results other than reductions.

    Raises NotLocalError.
    """
    return _Assembly(Layout(network, stage), strides).program(tiles(network.problem, stage))


class _Recorder:
    """A sink that notes the calls of a tile: tiles with the same notes run the same body."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def write(self, port: Port, value: int) -> None:
        self.notes.append((port.kind, port.node.name, port.index, value))

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _like: fx.Node) -> int:
        self.notes.append((str(target), repr(args), repr(kwargs)))
        return len(self.notes)

    def constant(self, values: NDArray[Any], _device: torch.device) -> int:
        self.notes.append((values.shape, values.tobytes()))
        return len(self.notes)


class _Assembly:
    """Puts a program together."""

    def __init__(self, layout: Layout, strides: Strides) -> None:
        self.layout, self.strides = layout, strides
        self.operands: dict[fx.Node, int] = {}
        self.lines: dict[fx.Node, int] = {}
        self.rows: dict[fx.Node, int] = {}
        self.outputs: list[tuple[fx.Node, int]] = []
        self.parts: Counter[tuple[fx.Node, int]] = Counter()
        for node in layout.results:
            count = len(parts_of(node)) if self._is_part(node) else 1
            self.outputs += [(node, number) for number in range(count)]

    def _is_part(self, node: fx.Node) -> bool:
        return self.layout.network.problem.operators[self.layout.place[node]].kind == "reduction"

    def program(self, cuts: Sequence[Any]) -> tuple[TileProgram, list[fx.Node]]:
        """See `program_of`."""
        for cut in cuts:
            for index, span in cut.kept_after.items():
                node = self.layout.network.values[index]
                self.lines.setdefault(node, len(self.lines))
                self.rows[node] = max(self.rows.get(node, 0), span[1] - span[0])
        bodies: dict[str, fx.GraphModule] = {}
        cut_views: list[tuple[str, list[View]]] = []
        for cut in cuts:
            if not cut.made:
                continue
            key, ports = self._record(cut)
            if key not in bodies:
                bodies[key] = self._body(cut, ports)
            cut_views.append((key, [self._view(port) for port in ports]))
        hoisted = Hoisted(list(self.operands))
        if self._device().type == "cpu":
            for body in bodies.values():
                hoisted.take(body)
        made = tuple(
            (key, (*views, *(View("hoisted", index) for index in hoisted.of(bodies[key])))) for key, views in cut_views
        )
        lines, results = self._line_buffers(), tuple(self._result(*output) for output in self.outputs)
        values = {node: node.meta["val"] for node in self.operands}
        operands = tuple(ProgramBuffer(tuple(value.shape), self.strides(node), value.dtype) for node, value in values.items())
        device = self._device()
        flops = sum(flops_of(part) for index in self.layout.members for part in self.layout.network.inner[index])
        text = repr((operands, results, lines, made, [body.code for body in bodies.values()], list(bodies)))
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        program = TileProgram(key, operands, results, device, flops, bodies, made, lines, hoisted.module())
        return program, list(self.operands)

    def _device(self) -> torch.device:
        image: Tensor = self.layout.network.values[0].meta["val"]
        return image.device

    def _record(self, cut: Any) -> tuple[str, list[Port]]:
        """What names the body of a tile, and its ports: what is read, then what is written."""
        recorder = _Recorder()
        ports = self.layout.run(cut, recorder, lambda port: (port.kind, port.node.name, _size(port)))
        notes = [*recorder.notes, *((port.kind, port.node.name, _size(port), port.index) for port in ports)]
        key = hashlib.sha256(repr(notes).encode()).hexdigest()[:12]
        return key, sorted(ports, key=lambda port: port.kind in ("result", "keep", "part"))

    def _view(self, port: Port) -> View:
        """A tile's part of a tensor."""
        node = port.node
        if port.kind == "operand":
            index = self.operands.setdefault(node, len(self.operands))
            return View("operand", index, self._cuts(node, port.rectangle))
        if port.kind == "part":
            output = node, port.index
            self.parts[output] += 1  # a tile without a share of the pixels leaves no part
            return View("result", self.outputs.index(output), ((0, self.parts[output] - 1, 1),))
        if port.kind in ("result", "history"):
            return View("result", self.outputs.index((node, 0)), self._cuts(node, port.rectangle))
        assert port.rectangle is not None
        (begin, end), plane = port.rectangle[0], self.layout.network.planes[node]
        assert plane.rows is not None
        return View("line", self.lines[node], ((plane.rows, 0, end - begin),))

    def _cuts(self, node: fx.Node, rectangle: Rectangle | None) -> tuple[tuple[int, int, int], ...]:
        plane = self.layout.network.planes.get(node, Plane(None, None))
        if rectangle is None or plane.is_merged:
            return ()
        return tuple(
            (axis, span[0], span[1] - span[0])
            for axis, span in zip((plane.rows, plane.columns), rectangle, strict=True)
            if axis is not None and (span[0] or span[1] != shape_of(node)[axis])
        )

    def _result(self, node: fx.Node, number: int) -> ProgramBuffer:
        if self._is_part(node):
            shape, dtype = parts_of(node)[number]
            whole = (self.parts[node, number], *shape)
            return ProgramBuffer(whole, contiguous_strides(whole), dtype)
        value = node.meta["val"]
        return ProgramBuffer(tuple(value.shape), self.strides(node), value.dtype)

    def _line_buffers(self) -> tuple[Line, ...]:
        found, offset = [], 0
        for node in self.lines:
            line = Line(
                self._line_shape(node),
                _line_strides(self._line_shape(node), self.layout.network.planes[node]),
                node.meta["val"].dtype,
                offset,
            )
            found.append(line)
            offset += line.size_bytes
        return tuple(found)

    def _line_shape(self, node: fx.Node) -> tuple[int, ...]:
        shape, plane = list(shape_of(node)), self.layout.network.planes[node]
        assert plane.rows is not None
        shape[plane.rows] = self.rows[node]
        return tuple(shape)

    def _body(self, cut: Any, ports: Sequence[Port]) -> fx.GraphModule:
        """The graph of one tile: inputs are its ports, the written ones behind; returns nothing."""
        body = Body()
        nodes = {
            (port.kind, port.node, port.index): body.placeholder(self._shape(port), self._stride(port), port) for port in ports
        }
        body.targets = nodes
        self.layout.run(cut, body, lambda port: nodes[port.kind, port.node, port.index])
        return body.finished()

    def _shape(self, port: Port) -> tuple[int, ...]:
        if port.kind == "part":
            return (1, *parts_of(port.node)[port.index][0])
        shape = list(shape_of(port.node))
        plane = self.layout.network.planes.get(port.node, Plane(None, None))
        if port.rectangle is not None and not plane.is_merged:
            for axis, (begin, end) in zip((plane.rows, plane.columns), port.rectangle, strict=True):
                if axis is not None:
                    shape[axis] = end - begin
        return tuple(shape)

    def _stride(self, port: Port) -> tuple[int, ...]:
        if port.kind == "part":
            return contiguous_strides(self._shape(port))
        if port.kind in ("kept", "keep"):
            return _line_strides(self._line_shape(port.node), self.layout.network.planes[port.node])
        return self.strides(port.node)


def _size(port: Port) -> tuple[int, ...] | None:
    return None if port.rectangle is None else tuple(end - begin for begin, end in port.rectangle)


def _line_strides(shape: tuple[int, ...], plane: Plane) -> tuple[int, ...]:
    """Images channels last, as convolutions take them; others dense."""
    return channels_last(shape) if plane == Plane(2, 3) else contiguous_strides(shape)
