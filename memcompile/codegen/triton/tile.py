"""Writes what a chain computes, for one tile: loads, products, pointwise expressions, stores.

A tile is named by the index variables of its two dimensions (``Axis``), so the same functions serve a tile of a loop, a block
of a resident tensor, and a tile of a weight. Every value is written once a scope: a loop's body sees what was written before.
"""

from __future__ import annotations

import keyword
from collections import ChainMap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx

from memcompile.codegen.kernel.chain import Chain, Product
from memcompile.codegen.kernel.pointwise import (
    DTYPES,
    constant_of,
    dtype_of,
    expression,
    is_cast,
    is_same,
    is_transpose,
    number,
    shape_of,
)
from memcompile.codegen.kernel.source import Source

MIN_DOT = 16
MAX_BLOCK = 256
BLOCK_COST = 16
"""Columns of padding that one block more is worth."""

RESERVED = frozenset(
    {
        "tl",
        "triton",
        "torch",
        "rows",
        "cols",
        "near",
        "inside",
        "pixels",
        "across",
        "down",
        "first",
        "valid",
        "image",
        "tap",
        "line",
        "column",
        "row_mask",
        "col_mask",
        "part_rows",
        "tile",
        "start",
        "n_rows",
        "split",
        "float",
        "range",
    }
)


@dataclass(frozen=True, slots=True)
class Axis:
    """An index variable ``name`` of ``width`` entries, those valid where ``mask`` (a variable; "" when all are)."""

    name: str
    width: str
    mask: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """An axis as a dimension of a tile: 0 its rows, 1 its columns."""

    axis: Axis
    dimension: int

    @property
    def text(self) -> str:
        """The index variable, broadcast to the tile."""
        return self._broadcast(self.axis.name)

    @property
    def mask(self) -> str:
        """The mask, broadcast to the tile, or ""."""
        return self._broadcast(self.axis.mask) if self.axis.mask else ""

    def _broadcast(self, name: str) -> str:
        return f"{name}[{':, None' if self.dimension == 0 else 'None, :'}]"


Dims = tuple[Index | None, ...]
"""The index of each dimension of a tensor; None where it has length 1 and is broadcast."""


@dataclass(frozen=True, slots=True)
class Value:
    """A variable (or a literal) and the dtype that it is held in."""

    text: str
    dtype: torch.dtype


ROWS = Axis("rows", "BM", "row_mask")
COLS = Axis("cols", "", "")


def blocks(columns: int) -> tuple[tuple[int, int], ...]:
    """(offset, width) of the powers of two that hold ``columns`` columns: 384 = 256 + 128, 240 in 256, 40 = 32 + 16."""
    padded = -(-columns // MIN_DOT) * MIN_DOT
    best: list[int] = []
    for last in (MIN_DOT << i for i in range(5)):
        left, widths = -(-padded // last) * last, []
        while left:
            widths.append(min(MAX_BLOCK, 1 << (left.bit_length() - 1)))
            left -= widths[-1]
        if not best or sum(widths) + BLOCK_COST * len(widths) < sum(best) + BLOCK_COST * len(best):
            best = widths
    return tuple((sum(best[:i]), width) for i, width in enumerate(best))


class TileWriter:
    """Writes the tiles of one kernel function into ``source``."""

    def __init__(self, chain: Chain, source: Source, taken: Iterable[str] = (), rows: Axis = ROWS) -> None:
        self.chain = chain
        self.source = source
        self.rows = rows
        self.values: ChainMap[tuple[fx.Node, Dims], Value] = ChainMap()
        self.names: ChainMap[str, None] = ChainMap(dict.fromkeys(taken))
        self.casts: ChainMap[tuple[str, torch.dtype | str], str] = ChainMap()
        self.pointers: dict[fx.Node, tuple[str, torch.dtype, int]] = {}

    @contextmanager
    def scope(self, header: str) -> Iterator[None]:
        """The body of a loop: what is written in it is not seen after it."""
        with self.source.block(header), self.apart():
            yield

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is written within is not seen after it: its names are free again."""
        outer = self.values, self.names, self.casts
        self.values, self.names, self.casts = (m.new_child() for m in outer)  # type: ignore[assignment]
        yield
        self.values, self.names, self.casts = outer

    def name(self, base: str) -> str:
        """A variable that is not in use, like ``base``."""
        base = base if base.isidentifier() and not keyword.iskeyword(base) and base not in RESERVED else f"{base}_"
        candidate, count = base, 1
        while candidate in self.names:
            count += 1
            candidate = f"{base}_{count}"
        self.names[candidate] = None
        return candidate

    def hold(self, node: fx.Node, pointer: str, dtype: torch.dtype) -> None:
        """From now on the node's value is loaded from a dense buffer [N, columns]."""
        self.pointers[node] = (pointer, dtype, shape_of(node)[1])

    def define_blocks(self, columns: int) -> list[Axis]:
        """Write the index variables of a resident tensor's blocks."""
        axes = []
        for i, (offset, width) in enumerate(blocks(columns)):
            name = self.name(f"r{columns}" if len(blocks(columns)) == 1 else f"r{columns}_{i}")
            self.source.add(f"{name} = {f'{offset} + ' if offset else ''}tl.arange(0, {width})")
            mask = ""
            if offset + width > columns:
                mask = self.name(f"{name}_mask")
                self.source.add(f"{mask} = {name} < {columns}")
            axes.append(Axis(name, str(width), mask))
        return axes

    def read(self, node: fx.Node, cols: Axis) -> Value:
        """The node's tile at (rows, cols); written first where that has not been done."""
        return self._read(node, self._dims(node, cols))

    def operand(self, product: Product, inner: Axis) -> str:
        """A tile of the product's left operand, 0 where ``inner`` is masked."""
        node = product.left
        value = self.read(node, inner)
        text = self.cast(value, dtype_of(node))
        base = node
        while is_same(base) or is_cast(base):
            base = base.all_input_nodes[0]
        if None in (None, *self._dims(base, inner))[-2:]:
            text = f"tl.broadcast_to({text}, ({self.rows.width}, {inner.width}))"
        if not inner.mask or self._zero_where_masked(base):
            return text
        key = (text, inner.mask)
        if key not in self.casts:
            self.casts[key] = self.name(f"{value.text}_valid")
            self.source.add(f"{self.casts[key]} = tl.where({Index(inner, 1).mask}, {text}, 0.0)")
        return self.casts[key]

    def weight(self, product: Product, inner: Axis, cols: Axis) -> str:
        """A tile [inner, cols] of the product's weight."""
        value = self._read(product.weight, (Index(inner, 0), Index(cols, 1)))
        return self.cast(value, dtype_of(product.weight))

    def dot(self, product: Product, inner: Axis, cols: Axis, total: str = "") -> str:
        """The expression that adds one block of a product to ``total``."""
        items = [self.operand(product, inner), self.weight(product, inner, cols)]
        items += [total] if total else []
        items += ['input_precision="ieee"'] if dtype_of(product.left) == torch.float32 else []
        return f"tl.dot({', '.join(items)})"

    def expand(self, product: Product, inner: Iterable[Axis], cols: Axis) -> None:
        """A tile of a product whose left operand is resident."""
        name = self.name(self.label(product.node, cols))
        total = ""
        for axis in inner:
            self.source.add(f"{name} = {self.dot(product, axis, cols, total)}")
            total = name
        self.finish(product, name, cols)

    def finish(self, product: Product, name: str, cols: Axis) -> None:
        """Scale, add the bias and round a complete sum: now it is the product's value."""
        if product.alpha != 1.0:
            self.source.add(f"{name} = {name} * {number(product.alpha)}")
        if product.bias is not None:
            bias = self.cast(self.read(product.bias, cols), torch.float32)
            self.source.add(f"{name} = {name} + {bias if product.beta == 1.0 else f'{number(product.beta)} * {bias}'}")
        dtype = dtype_of(product.node)
        if dtype != torch.float32:
            self.source.add(f"{name} = {name}.to({DTYPES[dtype]})")
        self.bind(product.node, cols, name, dtype)

    def bind(self, node: fx.Node, cols: Axis, name: str, dtype: torch.dtype) -> None:
        """Say which variable holds the node's tile."""
        self.values[node, self._dims(node, cols)] = Value(name, dtype)

    def store(self, pointer: str, node: fx.Node, cols: Axis) -> None:
        """Write the node's tile to a dense tensor [N, columns]."""
        value = self.cast(self.read(node, cols), dtype_of(node))
        columns = shape_of(node)[1]
        at = (Index(self.rows, 0), Index(cols, 1))
        self.source.call("tl.store(", [self._address(pointer, at, (columns, 1)), value, *self._mask(at)])

    def cast(self, value: Value, dtype: torch.dtype) -> str:
        """The value in a dtype; a cast is written once."""
        if value.dtype == dtype:
            return value.text
        key = (value.text, dtype)
        if key not in self.casts:
            name = self.name(f"{value.text}_{DTYPES[dtype].removeprefix('tl.')}")
            self.source.add(f"{name} = {value.text}.to({DTYPES[dtype]})")
            self.casts[key] = name
        return self.casts[key]

    def hoist(self, nodes: Iterable[fx.Node]) -> None:
        """Write what ``nodes`` read that has no columns: scalars and one value a row."""
        for node in nodes:
            if node not in self.chain.dependent and not self._has_columns(node) and constant_of(node) is None:
                self._read(node, self._dims(node, COLS))

    def label(self, node: fx.Node, *axes: Axis) -> str:
        """The node's name, and which block of a resident tensor it is when there are several."""
        parts = [axis.name.partition("_")[2] for axis in axes if axis.name not in (self.rows.name, "cols")]
        return "_".join([node.name, *(f"part{part}" for part in parts if part)])

    def _dims(self, node: fx.Node, cols: Axis) -> Dims:
        shape = shape_of(node)
        last = (Index(cols, 1) if shape[-1] != 1 else None,) if shape else ()
        if len(shape) < 2:
            return last
        return (Index(self.rows, 0) if node in self.chain.row_nodes else None, *last)

    def _has_columns(self, node: fx.Node) -> bool:
        return any(length != 1 for length in shape_of(node)[-1:])

    def _read(self, node: fx.Node, dims: Dims) -> Value:
        if (node, dims) not in self.values:
            self.values[node, dims] = self._write(node, dims)
        return self.values[node, dims]

    def _write(self, node: fx.Node, dims: Dims) -> Value:
        if node in self.pointers:
            pointer, dtype, columns = self.pointers[node]
            return self._load(node, pointer, dims, (columns, 1), dtype)
        if node.op == "placeholder":
            return self._load(node, f"{node.name}_ptr", dims, node.meta["val"].stride(), dtype_of(node))
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        if (constant := constant_of(node)) is not None:
            return Value(number(float(constant) if dtype_of(node).is_floating_point else constant), _held(dtype_of(node)))
        if is_transpose(node):
            return self._read(source, dims[::-1])
        if is_same(node):
            return self._read(source, self._narrow(source, dims))
        if is_cast(node):
            value = self._read(source, self._narrow(source, dims))
            return Value(self.cast(value, dtype_of(node)), dtype_of(node))
        text = expression(node, lambda other, as_float: self._input(other, dims, as_float))
        name = self.name(self.label(node, *(index.axis for index in dims if index)))
        self.source.add(f"{name} = {text}")
        return Value(name, _held(dtype_of(node)))

    def _input(self, node: fx.Node, dims: Dims, as_float: bool) -> str:
        value = self._read(node, self._narrow(node, dims))
        return self.cast(value, torch.float32) if as_float and constant_of(node) is None else value.text

    def _narrow(self, node: fx.Node, dims: Dims) -> Dims:
        """The indices of an operand that is broadcast to ``dims``."""
        shape = shape_of(node)
        if not shape:
            return ()
        rows = node in self.chain.row_nodes
        indices = (None, *dims)[-len(shape) :]
        return tuple(
            index if length != 1 or (rows and i == 0 and len(shape) == 2) else None
            for i, (length, index) in enumerate(zip(shape, indices, strict=True))
        )

    def _load(self, node: fx.Node, pointer: str, dims: Dims, strides: tuple[int, ...], dtype: torch.dtype) -> Value:
        name = self.name(self.label(node, *(index.axis for index in dims if index)))
        other = "other=0.0" if dtype.is_floating_point else "other=0"
        mask = self._mask(dims)
        self.source.call(f"{name} = tl.load(", [self._address(pointer, dims, strides), *mask, *([other] if mask else [])])
        return Value(name, dtype)

    def _address(self, pointer: str, dims: Dims, strides: tuple[int, ...]) -> str:
        terms = [pointer]
        for index, stride in zip(dims, strides, strict=True):
            if index is not None and stride:
                terms.append(index.text if stride == 1 else f"{index.text} * {stride}")
        return " + ".join(terms)

    def _mask(self, dims: Dims) -> list[str]:
        masks = [index.mask for index in dims if index is not None and index.mask]
        return [f"mask={' & '.join(masks)}"] if masks else []

    def _zero_where_masked(self, node: fx.Node) -> bool:
        """Whether masked columns of the node are 0 already: loaded, or a plain product with masked loads."""
        product = self.chain.products.get(node)
        return node in self.pointers or node.op == "placeholder" or (product is not None and product.bias is None)


def _held(dtype: torch.dtype) -> torch.dtype:
    """What a computed value of the graph's dtype is held in."""
    return torch.float32 if dtype.is_floating_point else dtype
