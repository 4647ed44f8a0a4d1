"""K1: one program takes a block of rows through the whole chain. Nothing is computed twice, nothing wide is ever stored.

    for k:  P += x[:, k] @ A1[k]                      # "project"
    for h:  T = act(P @ B1[:, h]);  S += T @ A2[h]    # "hidden"
    for n:  y[:, n] = S @ B2[:, n]                    # "emit"

"Wide" and "resident" are as in ``chain``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from torch import fx

from memcompile.codegen.kernel.chain import Chain, Sweep
from memcompile.codegen.kernel.pointwise import shape_of
from memcompile.codegen.kernel.source import Source
from memcompile.codegen.triton.layout import (
    Function,
    Pointer,
    input_pointers,
    inputs_of,
    output_pointers,
    tile_divides,
    width_of,
    write_columns,
)
from memcompile.codegen.triton.module import Launch, launch_arguments
from memcompile.codegen.triton.tile import Axis, TileWriter

ROWS_METHOD = """
One program takes BM rows through all of it. Narrow tensors stay in registers, as one or more blocks whose widths are powers of
two; wide ones exist one tile of columns at a time. Sums are in fp32, and the results of products are rounded as in the graph.
"""


def write_rows_kernel(chain: Chain, source: Source, name: str) -> Function:
    """Write the kernel function ``name``: its grid is one program for every BM rows."""
    outputs = output_pointers(chain)
    widths = dict.fromkeys(width_of(sweep) for sweep in chain.sweeps)
    pointers = (*input_pointers(chain, chain.outputs), *outputs.values())
    function = Function(name, pointers, ("BM", *widths))
    with function.open(source):
        _Writer(chain, source, function, outputs).write()
    return function


def rows_launch(chain: Chain, function: Function) -> Launch:
    """How ``launch`` calls the kernel."""
    return Launch(function.name, '(triton.cdiv(n_rows, config["BM"]),)', launch_arguments(chain, function), function.constants)


class _Writer:
    def __init__(self, chain: Chain, source: Source, function: Function, outputs: Mapping[fx.Node, Pointer]) -> None:
        self.chain, self.source, self.outputs = chain, source, outputs
        self.tiles = TileWriter(chain, source, function.arguments)
        self.axes: dict[int, list[Axis]] = {}
        self.sums: dict[tuple[fx.Node, Axis], str] = {}

    def write(self) -> None:
        self.source.add("rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)", "row_mask = rows < n_rows")
        for columns in dict.fromkeys(shape_of(node)[1] for node in self.chain.resident):
            self.axes[columns] = self.tiles.define_blocks(columns)
        needed = inputs_of(self.chain.outputs)
        self.tiles.hoist(node for node in self.chain.graph.nodes if node in needed)
        self._finish(self.chain.finished[0])
        for level, sweeps in itertools.groupby(self.chain.sweeps, key=lambda sweep: sweep.level):
            for sweep in sweeps:
                self._sweep(sweep)
            self._finish(self.chain.finished[level])

    def _sweep(self, sweep: Sweep) -> None:
        targets = [(product, axis) for product in sweep.contracts for axis in self._blocks(product.node)]
        for product, axis in targets:
            name = self.tiles.name(self.tiles.label(product.node, axis))
            self.sums[product.node, axis] = name
            self.source.add(f"{name} = tl.full((BM, {axis.width}), 0.0, tl.float32)")
        width, exact = width_of(sweep), tile_divides(sweep.columns)
        if exact:
            self.source.add(f"tl.static_assert({sweep.columns} % {width} == 0)")
        with self.tiles.scope(f"for start in range(0, {sweep.columns}, {width}):"):
            cols = write_columns(self.source, sweep.columns, width, masked=not exact)
            for node in sweep.nodes:
                self._compute(node, cols)
            for product, axis in targets:
                total = self.sums[product.node, axis]
                self.source.add(f"{total} = {self.tiles.dot(product, cols, axis, total)}")
            for node in sweep.stores:
                self.tiles.store(self.outputs[node].name, node, cols)

    def _compute(self, node: fx.Node, cols: Axis) -> None:
        if node in self.chain.products:
            product = self.chain.products[node]
            self.tiles.expand(product, self._blocks(product.left), cols)
        else:
            self.tiles.read(node, cols)

    def _finish(self, nodes: Iterable[fx.Node]) -> None:
        """Complete the resident tensors that are known now; operands of later products are cast before their loops."""
        for node in nodes:
            for axis in self._blocks(node):
                if (node, axis) in self.sums:
                    self.tiles.finish(self.chain.products[node], self.sums[node, axis], axis)
                else:
                    self._compute(node, axis)
                if node in self.outputs:
                    self.tiles.store(self.outputs[node].name, node, axis)
            readers = [product for product in self.chain.products.values() if product.left is node]
            for product, axis in itertools.product(readers, self._blocks(node)):
                self.tiles.operand(product, axis)

    def _blocks(self, node: fx.Node) -> list[Axis]:
        return self.axes[shape_of(node)[1]]
