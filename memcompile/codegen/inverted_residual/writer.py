"""Writes the kernel of an inverted residual.

A depthwise convolution reads its neighbours' pixels, and Triton has no way to read a tile in registers or shared memory at an
offset. What there is, on 24 -> 144 -> 24 channels in fp16, 64 columns a program, 4 or 8 warps, compiled for sm_80 / sm_90 (no
time was measured):

    expand once for each tap                     128 / 112 registers, 9 expansions a pixel, nothing is exchanged
    the same, 2 pixels below each other          205 / 127 registers, 6 expansions a pixel        <- taken where it fits
    the same, 4 pixels below each other          255 / 183 registers, 4.5 expansions a pixel, spills on sm_80 from 40 channels
    tl.gather in the expanded tile with halo     126 / 120 registers, 2 expansions, 72 warp shuffles an element
    tl.gather along 16 columns, for each line    196 / 158 registers, 3.4 expansions, 9 warp shuffles an element
    shifts by tl.split and tl.join               230 registers, 240 barriers a chunk (sm_80)
    products with 0/1 matrices                   9 x 128 multiply-adds an element, and one inf or nan reaches all of the tile
    scratch in global memory                     pixels x chunk a program; loads that feed a product may move past the stores

A warp shuffle takes as long as four multiply-adds, and an expansion in tensor cores as long as C / 8 to C / 16 of them. So the
expansion is computed again, and pixels below each other share theirs: G lines of a result read (G - 1) * stride + k lines.
The expand's FLOPs grow by k * ((G - 1) * stride + k) / G; ``cost`` says where that is worth it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.flatten import Bodies
from memcompile.codegen.kernel.chain import Chain
from memcompile.codegen.kernel.pointwise import constant_of, dtype_of, shape_of
from memcompile.codegen.kernel.source import Source
from memcompile.codegen.triton.layout import Function, Pointer, divisor, write_columns
from memcompile.codegen.triton.tile import ROWS, Axis, TileWriter, blocks

NEAR = Axis("near", ROWS.width, "inside")
"""The pixels of the input at one tap of the program's pixels."""
MIN_CHUNK = 16
LOOP_COLUMNS = 128
"""Columns of the input that one iteration of a loop over taps reads, of all its lines."""
METHOD = """
One program takes BM columns of pixels of the result, over all images, and loops over chunks of BH expanded channels. It expands
a chunk at the pixels that a tap reads, once for each of them. What lies outside of the image is zeroed after the activation, as
act(bias) need not be zero. Sums are in fp32, and nothing is rounded between two products.
"""


def write_inverted_kernel(block: InvertedResidual, bodies: Bodies, lines: int, source: Source, name: str) -> Function:
    """Write the kernel function ``name``: its grid is one program for BM columns of ``lines`` pixels of the result."""
    used = {node.name for chain in (bodies.before, bodies.after) for node in chain.placeholders if node is not bodies.sums}
    used.add(block.depthwise.weight.name)
    pointers = [Pointer(f"{node.name}_ptr", dtype_of(node)) for node in block.operands if node.name in used]
    function = Function(name, (*pointers, Pointer("out_ptr", dtype_of(block.result))), ("BM", "BH"))
    with function.open(source):
        _Writer(block, bodies, lines, source, function).write()
    return function


def loop_lines(block: InvertedResidual, lines: int) -> int:
    """How many lines of the input an iteration of a loop over taps reads: more would be in flight than registers hold."""
    if lines == 1:
        return 1
    count = len(block.lines_read(lines))
    loops = math.ceil(count / max(1, LOOP_COLUMNS // padded(block.channels[0])))
    return math.ceil(count / loops)


def padded(columns: int) -> int:
    """The columns of the blocks that hold a number of them."""
    return sum(width for _, width in blocks(columns))


def chunk_divides(columns: int) -> bool:
    """Whether chunks are chosen to divide the expanded channels: then they need no mask."""
    return divisor(columns) >= MIN_CHUNK


class _Writer:
    def __init__(self, block: InvertedResidual, bodies: Bodies, lines: int, source: Source, function: Function) -> None:
        self.block, self.bodies, self.lines, self.source = block, bodies, lines, source
        self.near = TileWriter(bodies.before, source, function.arguments, NEAR)
        self.tiles = TileWriter(bodies.after, source, function.arguments)
        (self.project,) = bodies.after.products.values()
        self.axes: dict[int, list[Axis]] = {}

    def write(self) -> None:
        """The body of the function."""
        self._pixels()
        narrow = [product.inner for product in self.bodies.before.products.values()]
        for columns in dict.fromkeys([*narrow, self.block.channels[2]]):
            self.axes[columns] = self.tiles.define_blocks(columns)
        totals = [
            (line, axis, self._named(self.tiles.label(self.project.node, axis), line))
            for line in range(self.lines)
            for axis in self.axes[self.block.channels[2]]
        ]
        for _, axis, total in totals:
            self.source.add(f"{total} = tl.full((BM, {axis.width}), 0.0, tl.float32)")
        self._hoist(self.tiles)
        columns, exact = self.block.channels[1], chunk_divides(self.block.channels[1])
        if exact:
            self.source.add(f"tl.static_assert({columns} % BH == 0)")
        with self.tiles.scope(f"for start in range(0, {columns}, BH):"):
            cols = write_columns(self.source, columns, "BH", masked=not exact)
            sums = self._sum_taps(cols)
            self._hoist(self.tiles, cols)
            for axis in self.axes[self.block.channels[2]]:
                self.tiles.weight(self.project, cols, axis)
            for line, group in itertools.groupby(totals, key=lambda total: total[0]):
                with self.tiles.apart():
                    self.tiles.bind(self.bodies.sums, cols, sums[line], torch.float32)
                    for _, axis, total in group:
                        self.source.add(f"{total} = {self.tiles.dot(self.project, cols, axis, total)}")
        for line, group in itertools.groupby(totals, key=lambda total: total[0]):
            self._rows(line)
            with self.tiles.apart():
                for _, axis, total in group:
                    self._finish(axis, total)

    def _named(self, name: str, line: int) -> str:
        return self.tiles.name(name if self.lines == 1 else f"{name}_line{line}")

    def _pixels(self) -> None:
        """The program's pixels (the first of each column), and where the first tap of each lies."""
        height, width = self.block.result_size
        groups, depthwise = -(-height // self.lines), self.block.depthwise
        self.source.add(
            "pixels = tl.program_id(0) * BM + tl.arange(0, BM)",
            "valid = pixels < n_rows",
            f"first = pixels // {width} % {groups}{_times(self.lines)}",
            f"down = first{_times(depthwise.stride[0])}{_minus(depthwise.padding[0])}",
            f"across = pixels % {width}{_times(depthwise.stride[1])}{_minus(depthwise.padding[1])}",
            f"image = pixels // {groups * width}",
        )

    def _rows(self, line: int) -> None:
        """Where the results of one line lie."""
        height, width = self.block.result_size
        if self.lines == 1:
            self.source.add("rows = pixels.to(tl.int64)", "row_mask = valid")
            return
        self.source.add(
            f"line = first{_plus(line)}",
            f"rows = ((image * {height} + line) * {width} + pixels % {width}).to(tl.int64)",
            f"row_mask = valid & (line < {height})",
        )

    def _finish(self, axis: Axis, total: str) -> None:
        """Add the bias of the projection, and what follows it; store."""
        if self.project.bias is not None:
            bias = self.tiles.cast(self.tiles.read(self.project.bias, axis), torch.float32)
            self.source.add(f"{total} = {total} + {bias}")
        self.tiles.bind(self.project.node, axis, total, torch.float32)
        self.tiles.store("out_ptr", self.bodies.after.outputs[0], axis)

    def _sum_taps(self, cols: Axis) -> list[str]:
        """Write the depthwise convolution of one chunk, as sums over its taps; returns the sum of each line."""
        depthwise, near = self.block.depthwise, self.near
        sums = [self._named(self.bodies.sums.name, line) for line in range(self.lines)]
        self.source.add(*(f"{total} = tl.full((BM, BH), 0.0, tl.float32)" for total in sums))
        near.names = self.tiles.names
        self._hoist(near, cols)
        for product in self.bodies.before.products.values():
            for axis in self.axes[product.inner]:
                near.weight(product, axis, cols)
        if self.lines == 1:
            self._sum_each_tap(cols, sums[0])
            return sums
        offsets, count = self.block.lines_read(self.lines), loop_lines(self.block, self.lines)
        for begin in range(0, len(offsets), count):
            some = list(offsets.items())[begin : begin + count]
            with near.scope(f"for tap in range({depthwise.kernel[1]}):"):
                read = sorted({tap for _, readers in some for _, tap in readers})
                weights = {tap: self._weight(tap, cols) for tap in read}
                self.source.add(f"column = across + tap{_times(depthwise.dilation[1])}")
                for offset, readers in some:
                    self._tap(f"down{_plus(offset)}", cols, [(sums[line], weights[tap]) for line, tap in readers])
        return sums

    def _sum_each_tap(self, cols: Axis, total: str) -> None:
        """Write the loop over all taps, where no lines share them."""
        across, (skip_down, skip_across) = self.block.depthwise.kernel[1], self.block.depthwise.dilation
        with self.near.scope(f"for tap in range({self.block.taps}):"):
            self.source.add(f"column = across + tap % {across}{_times(skip_across)}")
            self._tap(f"down + tap // {across}{_times(skip_down)}", cols, [(total, self._weight(None, cols))])

    def _tap(self, line: str, cols: Axis, readers: Sequence[tuple[str, str]]) -> None:
        """Write what the pixels of one line of the input expand to, and add it to ``readers``: sums, and their weights."""
        height, width = self.block.size
        self.source.add(
            f"line = {line}",
            f"inside = valid & (line >= 0) & (line < {height}) & (column >= 0) & (column < {width})",
            f"near = ((image * {height} + line) * {width} + column).to(tl.int64)",
        )
        with self.near.apart():
            expanded = self._expanded(cols)
            self.source.add(*(f"{total} += {expanded} * {weight}" for total, weight in readers))

    def _expanded(self, cols: Axis) -> str:
        """Write the expanded tensor at one tap; returns its name."""
        node, near = self.bodies.before.outputs[0], self.near
        for product in self.bodies.before.products.values():
            name, total = near.name(near.label(product.node, cols)), ""
            for axis in self.axes[product.inner]:
                self.source.add(f"{name} = {near.dot(product, axis, cols, total)}")
                total = name
            if product.bias is not None:
                bias = near.cast(near.read(product.bias, cols), torch.float32)
                self.source.add(f"{name} = {name} + {bias}")
            near.bind(product.node, cols, name, torch.float32)
        value = near.cast(near.read(node, cols), torch.float32)
        if node.op == "placeholder":
            return value
        valid = near.name(f"{value}_valid")
        mask = f"{NEAR.mask}[:, None]{f' & {cols.mask}[None, :]' if cols.mask else ''}"
        self.source.add(f"{valid} = tl.where({mask}, {value}, 0.0)")
        return valid

    def _weight(self, line: int | None, cols: Axis) -> str:
        """Write the load of a tap's weights, in fp32; returns their name. ``line``: None where ``tap`` counts them all."""
        weight, across_taps = self.block.depthwise.weight, self.block.depthwise.kernel[1]
        channel, _, down, across = weight.meta["val"].stride()
        name = self.near.name(weight.name if line is None else f"{weight.name}_{line}")
        place = f"tap // {across_taps}{_times(down)} + tap % {across_taps}" if line is None else f"{_start(line * down)}tap"
        address = f"{weight.name}_ptr + {cols.name}[None, :]{_times(channel)} + {place}{_times(across)}"
        mask = [f"mask={cols.mask}[None, :]", "other=0.0"] if cols.mask else []
        self.source.call(f"{name} = tl.load(", [address, *mask], ").to(tl.float32)")
        return name

    def _hoist(self, tiles: TileWriter, cols: Axis | None = None) -> None:
        """Write what is the same for all pixels: vectors of a chunk; or without ``cols``, scalars and those of the result."""
        chain: Chain = tiles.chain
        weights = {product.weight for product in chain.products.values()}
        result = [] if cols else self.axes[self.block.channels[2]]
        for node in chain.graph.nodes:
            if node.op == "output" or node in chain.row_nodes or node in weights or constant_of(node) is not None:
                continue
            if not shape_of(node):
                tiles.read(node, ROWS)
            elif cols and shape_of(node) == (self.block.channels[1],):
                tiles.read(node, cols)
            elif self.lines > 1 and shape_of(node) == (self.block.channels[2],):
                for axis in result:
                    tiles.read(node, axis)


def _times(factor: int) -> str:
    return "" if factor == 1 else f" * {factor}"


def _minus(number: int) -> str:
    return "" if number == 0 else f" - {number}"


def _plus(number: int) -> str:
    return "" if number == 0 else f" + {number}"


def _start(number: int) -> str:
    return "" if number == 0 else f"{number} + "
