"""K3: a chain over few rows, where one program a block of rows would leave most of the GPU idle.

Each sweep is a kernel of its own whose columns are split over programs. A program adds up its share of a product and writes it
to a buffer ``parts [splits, N, n]`` in fp32; a small kernel sums the shares in order (no atomics: the same bits in every run),
adds what is pointwise on the narrow tensors, and stores them for the next sweep. All projections of the same input are one
sweep.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from memcompile.codegen.kernel.chain import Chain, Product, Sweep
from memcompile.codegen.kernel.pointwise import dtype_of, refused, shape_of
from memcompile.codegen.kernel.source import Source
from memcompile.codegen.triton.layout import (
    Function,
    Pointer,
    input_pointers,
    inputs_of,
    output_pointers,
    width_of,
    write_columns,
)
from memcompile.codegen.triton.module import Launch, launch_arguments
from memcompile.codegen.triton.tile import Axis, TileWriter

DECODE_METHOD = """
The columns of each loop are split over programs, TILES tiles a program; each writes its share of the sums in fp32, and a second
kernel adds the shares up in order. The results of products are rounded as in the graph.
"""


def write_decode_kernels(chain: Chain, source: Source, name: str) -> list[tuple[Function, Launch]]:
    """Write the kernel functions, in the order in which they are launched.

    Raises `KernelRefusedError` for a product between two narrow tensors: it would be one more kernel.
    """
    for product in chain.products.values():
        if product.left in chain.resident and product.node in chain.resident:
            raise refused(product.node, "both sides of a product are narrow: no hidden to split over programs")
    return _Writer(chain, source, name).write()


@dataclass(slots=True)
class _Writer:
    chain: Chain
    source: Source
    name: str
    held: dict[fx.Node, Pointer] = field(default_factory=dict)
    split: dict[fx.Node, Sweep] = field(default_factory=dict)
    written: list[tuple[Function, Launch]] = field(default_factory=list)

    def write(self) -> list[tuple[Function, Launch]]:
        for level, sweeps in itertools.groupby(self.chain.sweeps, key=lambda sweep: sweep.level):
            for sweep in sweeps:
                self._sweep(sweep, f"{self.name}_{sweep.kind}{len(self.written)}")
            finished = self.chain.finished[level]
            for columns in dict.fromkeys(shape_of(node)[1] for node in finished):
                nodes = [node for node in finished if shape_of(node)[1] == columns]
                self._sum(nodes, columns, f"{self.name}_sum{len(self.written)}")
        return self.written

    def _sweep(self, sweep: Sweep, name: str) -> None:
        outputs = {node: pointer for node, pointer in output_pointers(self.chain).items() if node in sweep.stores}
        sums = [Pointer(f"{product.node.name}_parts_ptr", torch.float32) for product in sweep.contracts]
        contracted = itertools.chain.from_iterable((p.left, p.weight) for p in sweep.contracts)
        width = width_of(sweep)
        roots = [*sweep.nodes, *sweep.stores, *contracted]
        function = self._function(name, roots, [*outputs.values(), *sums], ("BM", width, "TILES"))
        with function.open(self.source):
            tiles = self._begin(function, roots)
            narrow = [product.inner for product in sweep.expands] + [shape_of(p.node)[1] for p in sweep.contracts]
            axes = {columns: tiles.define_blocks(columns) for columns in dict.fromkeys(narrow)}
            for product in sweep.expands:
                for axis in axes[product.inner]:
                    tiles.operand(product, axis)
            targets = [(product, axis) for product in sweep.contracts for axis in axes[shape_of(product.node)[1]]]
            names = {(product.node, axis): tiles.name(tiles.label(product.node, axis)) for product, axis in targets}
            for (_, axis), total in names.items():
                self.source.add(f"{total} = tl.full((BM, {axis.width}), 0.0, tl.float32)")
            with tiles.scope("for tile in range(TILES):"):
                cols = write_columns(self.source, sweep.columns, width, f"(tl.program_id(1) * TILES + tile) * {width}")
                for node in sweep.nodes:
                    self._compute(tiles, node, cols, axes)
                for product, axis in targets:
                    total = names[product.node, axis]
                    self.source.add(f"{total} = {tiles.dot(product, cols, axis, total)}")
                for node in sweep.stores:
                    tiles.store(outputs[node].name, node, cols)
            if targets:
                self.source.add("part_rows = tl.program_id(1).to(tl.int64) * n_rows + rows")
            for product, axis in targets:
                self._store_part(product, names[product.node, axis], axis)
        self.split |= {product.node: sweep for product in sweep.contracts}
        splits = f'triton.cdiv({sweep.columns}, config["TILES"] * config["{width}"])'
        before = [f"splits = {splits}"]
        for product, part in zip(sweep.contracts, sums, strict=True):
            shape = f"(splits, n_rows, {shape_of(product.node)[1]})"
            before.append(f"{part.name.removesuffix('_ptr')} = torch.empty({shape}, dtype=torch.float32, device=device)")
        self._launch(function, "splits", before)

    def _compute(self, tiles: TileWriter, node: fx.Node, cols: Axis, axes: Mapping[int, list[Axis]]) -> None:
        if node in self.chain.products:
            product = self.chain.products[node]
            tiles.expand(product, axes[product.inner], cols)
        else:
            tiles.read(node, cols)

    def _store_part(self, product: Product, total: str, axis: Axis) -> None:
        offset = f"part_rows[:, None] * {shape_of(product.node)[1]} + {axis.name}[None, :]"
        mask = f"row_mask[:, None] & {axis.mask}[None, :]" if axis.mask else "row_mask[:, None]"
        self.source.add(f"tl.store({product.node.name}_parts_ptr + {offset}, {total}, mask={mask})")

    def _sum(self, nodes: list[fx.Node], columns: int, name: str) -> None:
        """Add up the shares of products with the same number of columns, and what is pointwise after them."""
        outputs = output_pointers(self.chain)
        stored = {n: outputs.get(n, Pointer(f"{n.name}_ptr", dtype_of(n))) for n in nodes if self._read_later(n, nodes)}
        sums = [self.chain.products[node] for node in nodes if node in self.split]
        parts = [Pointer(f"{product.node.name}_parts_ptr", torch.float32) for product in sums]
        widths = {width_of(self.split[product.node]): None for product in sums}
        roots = [n for node in nodes for n in self._inputs(node) if n not in nodes]
        constants = ("BM", "BC", *widths, *(("TILES",) if widths else ()))
        function = self._function(name, roots, [*parts, *stored.values()], constants)
        with function.open(self.source):
            tiles = self._begin(function, roots)
            cols = write_columns(self.source, columns, "BC", "tl.program_id(1) * BC")
            for node in nodes:
                if node in self.split:
                    self._add_up(tiles, self.chain.products[node], cols)
                else:
                    tiles.read(node, cols)
                if node in stored:
                    tiles.store(stored[node].name, node, cols)
        before = [
            f"{node.name} = torch.empty((n_rows, {columns}), dtype={dtype_of(node)}, device=device)"
            for node in stored
            if node not in outputs
        ]
        self.held |= stored
        self._launch(function, f'triton.cdiv({columns}, config["BC"])', before)

    def _add_up(self, tiles: TileWriter, product: Product, cols: Axis) -> None:
        sweep = self.split[product.node]
        share = f"TILES * {width_of(sweep)}"
        name, columns = tiles.name(product.node.name), shape_of(product.node)[1]
        self.source.add(f"{name} = tl.full((BM, BC), 0.0, tl.float32)")
        with self.source.block(f"for split in range(({sweep.columns} + {share} - 1) // ({share})):"):
            offset = f"(split * n_rows.to(tl.int64) + rows)[:, None] * {columns} + cols[None, :]"
            mask = "row_mask[:, None] & col_mask[None, :]"
            self.source.call(f"{name} += tl.load(", [f"{product.node.name}_parts_ptr + {offset}", f"mask={mask}", "other=0.0"])
        tiles.finish(product, name, cols)

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        product = self.chain.products.get(node)
        if product is None:
            return node.all_input_nodes
        return [product.bias] if product.bias is not None else []

    def _read_later(self, node: fx.Node, together: Iterable[fx.Node]) -> bool:
        return node in self.chain.outputs or any(user not in together for user in node.users)

    def _function(self, name: str, roots: list[fx.Node], own: list[Pointer], constants: tuple[str, ...]) -> Function:
        used = inputs_of(roots, self.held)
        read = {n for node in used for n in node.all_input_nodes} | set(roots)
        held = [pointer for node, pointer in self.held.items() if node in read]
        return Function(name, (*input_pointers(self.chain, roots, self.held), *held, *own), constants)

    def _begin(self, function: Function, roots: list[fx.Node]) -> TileWriter:
        tiles = TileWriter(self.chain, self.source, function.arguments)
        for node, pointer in self.held.items():
            tiles.hold(node, pointer.name, pointer.dtype)
        self.source.add("rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)", "row_mask = rows < n_rows")
        used = inputs_of(roots, self.held)
        tiles.hoist(node for node in self.chain.graph.nodes if node in used)
        return tiles

    def _launch(self, function: Function, second: str, before: Iterable[str]) -> None:
        grid = f'(triton.cdiv(n_rows, config["BM"]), {second})'
        arguments = launch_arguments(self.chain, function)
        self.written.append((function, Launch(function.name, grid, arguments, function.constants, tuple(before))))
