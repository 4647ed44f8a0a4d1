"""Writes the kernel of an inverted residual."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from memcompile.codegen.triton.chain import Chain
from memcompile.codegen.triton.inverted.block import InvertedResidual
from memcompile.codegen.triton.inverted.flatten import Bodies
from memcompile.codegen.triton.layout import Function, Pointer, divisor, write_columns
from memcompile.codegen.triton.pointwise import constant_of, dtype_of, shape_of
from memcompile.codegen.triton.source import Source
from memcompile.codegen.triton.tile import ROWS, Axis, TileWriter

NEAR = Axis("near", ROWS.width, "inside")
"""The pixels of the input at one tap of the program's pixels."""
MIN_CHUNK = 16
METHOD = """
One program takes BM pixels of the result, over all images, and loops over chunks of BH expanded channels. It expands a chunk
once for each tap, at the pixels that the tap reads. What lies outside of the image is zeroed after the activation, as act(bias)
need not be zero. Sums are in fp32, and nothing is rounded between two products.
"""


def write_inverted_kernel(block: InvertedResidual, bodies: Bodies, source: Source, name: str) -> Function:
    """Write the kernel function ``name``: its grid is one program for every BM pixels of the result."""
    used = {node.name for chain in (bodies.before, bodies.after) for node in chain.placeholders if node is not bodies.sums}
    used.add(block.depthwise.weight.name)
    pointers = [Pointer(f"{node.name}_ptr", dtype_of(node)) for node in block.operands if node.name in used]
    function = Function(name, (*pointers, Pointer("out_ptr", dtype_of(block.result))), ("BM", "BH"))
    with function.open(source):
        _Writer(block, bodies, source, function).write()
    return function


def chunk_divides(columns: int) -> bool:
    """Whether chunks are chosen to divide the expanded channels: then they need no mask."""
    return divisor(columns) >= MIN_CHUNK


class _Writer:
    def __init__(self, block: InvertedResidual, bodies: Bodies, source: Source, function: Function) -> None:
        self.block, self.bodies, self.source = block, bodies, source
        self.near = TileWriter(bodies.before, source, function.arguments, NEAR)
        self.tiles = TileWriter(bodies.after, source, function.arguments)

    def write(self) -> None:
        """The body of the function."""
        self._pixels()
        axes = {columns: self.tiles.define_blocks(columns) for columns in dict.fromkeys(self._resident())}
        (project,) = self.bodies.after.products.values()
        totals = {axis: self.tiles.name(self.tiles.label(project.node, axis)) for axis in axes[shape_of(project.node)[1]]}
        for axis, total in totals.items():
            self.source.add(f"{total} = tl.full((BM, {axis.width}), 0.0, tl.float32)")
        self._hoist(self.tiles, None)
        columns, exact = self.block.channels[1], chunk_divides(self.block.channels[1])
        if exact:
            self.source.add(f"tl.static_assert({columns} % BH == 0)")
        with self.tiles.scope(f"for start in range(0, {columns}, BH):"):
            cols = write_columns(self.source, columns, "BH", masked=not exact)
            self._sum_taps(cols, axes)
            for axis, total in totals.items():
                self.source.add(f"{total} = {self.tiles.dot(project, cols, axis, total)}")
        for axis, total in totals.items():
            if project.bias is not None:
                bias = self.tiles.cast(self.tiles.read(project.bias, axis), torch.float32)
                self.source.add(f"{total} = {total} + {bias}")
            self.tiles.bind(project.node, axis, total, torch.float32)
            self.tiles.store("out_ptr", self.bodies.after.outputs[0], axis)

    def _resident(self) -> list[int]:
        """The numbers of channels that are held whole."""
        narrow = [shape_of(product.node)[1] for product in self.bodies.after.products.values()]
        return [*narrow, *(product.inner for product in self.bodies.before.products.values())]

    def _pixels(self) -> None:
        """The program's pixels, and where the first tap of each lies."""
        height, width = self.block.result_size
        (step_down, step_across), (pad_down, pad_across) = self.block.depthwise.stride, self.block.depthwise.padding
        self.source.add(
            "pixels = tl.program_id(0) * BM + tl.arange(0, BM)",
            "row_mask = pixels < n_rows",
            "rows = pixels.to(tl.int64)",
            f"across = pixels % {width}{_times(step_across)}{_minus(pad_across)}",
            f"down = pixels // {width} % {height}{_times(step_down)}{_minus(pad_down)}",
            f"image = pixels // {height * width}",
        )

    def _sum_taps(self, cols: Axis, axes: Mapping[int, list[Axis]]) -> None:
        """Write the depthwise convolution of one chunk, as the sum over its taps."""
        depthwise, near = self.block.depthwise, self.near
        across_taps = depthwise.kernel[1]
        total = self.tiles.name(self.bodies.sums.name)
        self.source.add(f"{total} = tl.full((BM, BH), 0.0, tl.float32)")
        near.names = self.tiles.names
        self._hoist(near, cols)
        for product in self.bodies.before.products.values():
            for axis in axes[product.inner]:
                near.weight(product, axis, cols)
        with near.scope(f"for tap in range({self.block.taps}):"):
            (height, width), (skip_down, skip_across) = self.block.size, depthwise.dilation
            self.source.add(
                f"line = down + tap // {across_taps}{_times(skip_down)}",
                f"column = across + tap % {across_taps}{_times(skip_across)}",
                f"inside = row_mask & (line >= 0) & (line < {height}) & (column >= 0) & (column < {width})",
                f"near = ((image * {height} + line) * {width} + column).to(tl.int64)",
            )
            expanded = self._expanded(cols, axes)
            self.source.add(f"{total} += {expanded} * {self._weight(cols)}")
        self.tiles.bind(self.bodies.sums, cols, total, torch.float32)

    def _expanded(self, cols: Axis, axes: Mapping[int, list[Axis]]) -> str:
        """Write the expanded tensor at one tap; returns its name."""
        node, near = self.bodies.before.outputs[0], self.near
        for product in self.bodies.before.products.values():
            name, total = near.name(near.label(product.node, cols)), ""
            for axis in axes[product.inner]:
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

    def _weight(self, cols: Axis) -> str:
        """Write the load of one tap's weights, in fp32; returns their name."""
        weight = self.block.depthwise.weight
        channel, _, down, across = weight.meta["val"].stride()
        taps_across = self.block.depthwise.kernel[1]
        name = self.near.name(weight.name)
        address = f"{weight.name}_ptr + {cols.name}[None, :]{_times(channel)}"
        address += f" + tap // {taps_across}{_times(down)} + tap % {taps_across}{_times(across)}"
        mask = [f"mask={cols.mask}[None, :]", "other=0.0"] if cols.mask else []
        self.source.call(f"{name} = tl.load(", [address, *mask], ").to(tl.float32)")
        return name

    def _hoist(self, tiles: TileWriter, cols: Axis | None) -> None:
        """Write what is the same for all pixels: scalars, and the vectors of a chunk where ``cols`` is given."""
        chain: Chain = tiles.chain
        weights = {product.weight for product in chain.products.values()}
        for node in chain.graph.nodes:
            if node.op == "output" or node in chain.row_nodes or node in weights or constant_of(node) is not None:
                continue
            if not shape_of(node):
                tiles.read(node, cols or ROWS)
            elif cols is not None and shape_of(node) == (self.block.channels[1],):
                tiles.read(node, cols)


def _times(factor: int) -> str:
    return "" if factor == 1 else f" * {factor}"


def _minus(number: int) -> str:
    return "" if number == 0 else f" - {number}"
