"""What one kernel over row blocks has to do: which tensors stay whole in registers, which exist tile by tile.

The rows of a body are independent, so one program takes a block of rows through all of it. A tensor ``[N, c]`` is then either
*resident* (all of its columns, in registers) or *tiled* (a few columns at a time, inside a loop over them). A product
``left [N, k] @ weight [k, n]`` needs all of ``left`` for one tile of its result, or adds one tile of ``left`` to all of its
result: at least one of the two is resident. The resident tensors are therefore a vertex cover of the products; the one with the
fewest columns is taken. In a low-rank layer these are the rank-space tensors, and the hidden is never whole.

The loops are *sweeps*: each goes over the columns of one width, computes tiles from residents that are ready, adds them up
into new residents, and stores results. Sweep s + 1 may read what sweep s has summed up. A tile that two sweeps need would be
computed twice: refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from memcompile.codegen.kernel.pointwise import (
    DTYPES,
    constant_of,
    dtype_of,
    is_cast,
    is_pointwise,
    is_same,
    is_transpose,
    operator_of,
    refused,
    shape_of,
)
from memcompile.step.fxutil import outputs_of

MAX_RESIDENT_COLUMNS = 1024
MAX_GROUPS = 16
DOT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Kind = Literal["project", "hidden", "emit"]


@dataclass(frozen=True, slots=True)
class Product:
    """``node [N, n] = alpha * left [N, k] @ weight [k, n] + beta * bias``; without a bias None."""

    node: fx.Node
    left: fx.Node
    weight: fx.Node
    bias: fx.Node | None = None
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def inner(self) -> int:
        """k, the length that is summed over."""
        return shape_of(self.weight)[0]


@dataclass(frozen=True, slots=True)
class Sweep:
    """One loop over tiles of ``columns`` columns.

    ``nodes``: what each tile computes, in order. ``contracts``: products with a resident result, to which each tile adds.
    ``stores``: results that are written tile by tile.
    """

    level: int
    columns: int
    nodes: tuple[fx.Node, ...]
    contracts: tuple[Product, ...]
    stores: tuple[fx.Node, ...]
    expands: tuple[Product, ...]

    @property
    def kind(self) -> Kind:
        """ "project": a wide input into residents; "emit": residents into a wide result; "hidden": through a wide tensor."""
        if not self.expands:
            return "project"
        return "hidden" if self.contracts else "emit"


@dataclass(frozen=True, slots=True)
class Chain:
    """The description that kernels are generated from.

    ``rows``: the placeholders that are sliced by rows; ``row_nodes``: all that has rows. ``products``: by their node.
    ``dependent``: what is computed from a product. ``resident``: what is held whole, in order.
    ``finished[s]``: the residents that are known once sweeps of level s are done (level 0: before any sweep).
    """

    graph: fx.Graph
    placeholders: tuple[fx.Node, ...]
    rows: frozenset[fx.Node]
    row_nodes: frozenset[fx.Node]
    outputs: tuple[fx.Node, ...]
    products: Mapping[fx.Node, Product]
    dependent: frozenset[fx.Node]
    resident: tuple[fx.Node, ...]
    finished: tuple[tuple[fx.Node, ...], ...]
    sweeps: tuple[Sweep, ...]

    @property
    def num_rows(self) -> int:
        """N of the graph; a kernel takes any."""
        return shape_of(next(iter(self.rows)))[0]

    def dtype(self) -> torch.dtype:
        """The dtype of the products' operands: of the first product, of the first result where there is none."""
        first = next(iter(self.products.values()), None)
        return dtype_of(self.outputs[0] if first is None else first.left)


def read_chain(body: fx.GraphModule, rows: Sequence[bool]) -> Chain:
    """Read a body. Raises `KernelRefusedError`, naming the node, for what one kernel cannot do.

    ``rows``: for each placeholder, whether it is sliced by rows; such a tensor is ``[N, d]``.
    """
    return _Reader(body.graph, rows).chain()


class _Reader:
    def __init__(self, graph: fx.Graph, rows: Sequence[bool]) -> None:
        self.graph = graph
        self.placeholders = tuple(node for node in graph.nodes if node.op == "placeholder")
        if len(rows) != len(self.placeholders):
            raise ValueError(f"{len(self.placeholders)} placeholders, but rows has {len(rows)} entries")
        self.row_inputs = frozenset(n for n, row in zip(self.placeholders, rows, strict=True) if row)
        self.products: dict[fx.Node, Product] = {}
        self.row_nodes: set[fx.Node] = set(self.row_inputs)
        self.dependent: set[fx.Node] = set()
        self.outputs = tuple(outputs_of(graph))

    def chain(self) -> Chain:
        nodes = [node for node in self.graph.nodes if node.op not in ("placeholder", "output")]
        self._check_rows()
        for node in nodes:
            self._read(node)
        for output in self.outputs:
            if not isinstance(output, fx.Node) or output not in self.row_nodes:
                raise refused(output if isinstance(output, fx.Node) else nodes[-1], "a result that has no rows")
        resident = self._resident()
        ready, sweep_of = self._levels(nodes, resident)
        sweeps = self._sweeps(nodes, resident, ready, sweep_of)
        last = max([0, *(sweep.level for sweep in sweeps)])
        order = [node for node in (*self.placeholders, *nodes) if node in resident]
        return Chain(
            self.graph,
            self.placeholders,
            self.row_inputs,
            frozenset(self.row_nodes),
            self.outputs,
            self.products,
            frozenset(self.dependent),
            tuple(order),
            tuple(tuple(n for n in order if ready[n] == level) for level in range(last + 1)),
            sweeps,
        )

    def _check_rows(self) -> None:
        if not self.row_inputs:
            raise refused(self.graph.output_node(), "none of the inputs has rows")
        lengths = {shape_of(node)[:1] for node in self.row_inputs}
        for node in self.row_inputs:
            if len(shape_of(node)) != 2 or len(lengths) > 1:
                raise refused(node, f"an input with rows has to be [N, d] with one N, not {list(shape_of(node))}")
        for node in self.placeholders:
            _check_dtype(node)
            if node not in self.row_inputs:
                _check_size(node)

    def _read(self, node: fx.Node) -> None:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            raise refused(node, f"{node.target} does not yield one tensor")
        _check_dtype(node)
        inputs = node.all_input_nodes
        row_inputs = [n for n in inputs if n in self.row_nodes]
        if operator_of(node) in ("aten::mm", "aten::addmm"):
            self._read_product(node)
        elif is_pointwise(node) or is_cast(node) or is_same(node):
            if row_inputs and (len(shape_of(node)) != 2 or shape_of(node)[0] != shape_of(row_inputs[0])[0]):
                raise refused(node, f"{node.target} changes the rows: {list(shape_of(node))}")
            for other in inputs:
                if row_inputs and other not in self.row_nodes and len(shape_of(other)) == 2 and shape_of(other)[0] != 1:
                    raise refused(node, f"{other.name} has rows of its own, and is not sliced")
        elif row_inputs or not (is_transpose(node) or constant_of(node) is not None):
            raise refused(node, f"{node.target} is neither a product nor a pointwise operator with a formula")
        if row_inputs:
            self.row_nodes.add(node)
        if node in self.products or any(n in self.dependent for n in inputs):
            self.dependent.add(node)

    def _read_product(self, node: fx.Node) -> None:
        bias, left, weight = node.args if operator_of(node) == "aten::addmm" else (None, *node.args)
        scale = {name: float(node.kwargs.get(name, 1.0)) for name in ("alpha", "beta")}  # type: ignore[arg-type]
        product = Product(node, left, weight, bias, **scale)  # type: ignore[arg-type]
        if product.left not in self.row_nodes:
            raise refused(node, "a product of two tensors without rows: compute it once, outside")
        if product.weight in self.row_nodes:
            raise refused(node, "the right operand of a product depends on the rows")
        if not _is_stored(product.weight):
            raise refused(node, f"the weight {product.weight.name} is computed: compute it once, outside")
        if product.inner < 2 or shape_of(node)[1] < 2:
            raise refused(node, "a product with a dimension of length 1")
        if dtype_of(product.left) not in DOT_DTYPES:
            raise refused(node, f"a product of {dtype_of(product.left)}")
        self.products[node] = product

    def _groups(self) -> dict[fx.Node, fx.Node]:
        """Each tensor that a product reads or yields -> the first one of those that have to be held in the same way."""
        leader: dict[fx.Node, fx.Node] = {n: n for n in (*self.dependent, *(p.left for p in self.products.values()))}

        def find(node: fx.Node) -> fx.Node:
            while leader[node] is not node:
                node = leader[node]
            return node

        for node in self.dependent:
            product = self.products.get(node)
            joined: Iterable[fx.Node | None] = (product.bias,) if product else node.all_input_nodes
            for other in joined:
                if other in self.dependent:
                    leader[find(node)] = find(other)
        return {node: find(node) for node in leader}

    def _resident(self) -> frozenset[fx.Node]:
        """The cover of the products with the fewest columns."""
        group = self._groups()
        sizes: dict[fx.Node, int] = {}
        for node, leader in group.items():
            sizes[leader] = max(sizes.get(leader, 0), shape_of(node)[1])
        edges = [(group[product.left], group[product.node]) for product in self.products.values()]
        names = list(dict.fromkeys(itertools.chain.from_iterable(edges)))
        for product, (left, right) in zip(self.products.values(), edges, strict=True):
            narrow = min(sizes[left], sizes[right])
            if narrow > MAX_RESIDENT_COLUMNS:
                reason = f"neither side of the product has at most {MAX_RESIDENT_COLUMNS} columns"
                raise refused(product.node, f"{reason} ({product.inner} and {shape_of(product.node)[1]})")
        small = [name for name in names if sizes[name] <= MAX_RESIDENT_COLUMNS]
        if len(small) > MAX_GROUPS:
            raise refused(next(iter(self.products)), f"more than {MAX_GROUPS} tensors that could be held in registers")
        covers = (
            frozenset(chosen)
            for count in range(len(small) + 1)
            for chosen in itertools.combinations(small, count)
            if all(left in chosen or right in chosen for left, right in edges)
        )
        best = min(covers, key=lambda cover: sum(sizes[name] for name in cover))
        return frozenset(node for node, leader in group.items() if leader in best)

    def _levels(self, nodes: list[fx.Node], resident: Collection[fx.Node]) -> tuple[dict[fx.Node, int], dict[fx.Node, int]]:
        """The level after which each tensor is known, and the sweep of each product that a sweep sums up."""
        ready = dict.fromkeys(self.placeholders, 0)
        summed: dict[fx.Node, int] = {}
        for node in nodes:
            product = self.products.get(node)
            if product is None:
                ready[node] = max([0, *(ready[n] for n in node.all_input_nodes)])
                continue
            ready[node] = ready[product.left]
            if product.left not in resident:
                ready[node] = summed[node] = ready[product.left] + 1
            if product.bias is not None:
                ready[node] = max(ready[node], ready[product.bias])
        return ready, summed

    def _sweeps(
        self,
        nodes: list[fx.Node],
        resident: Collection[fx.Node],
        ready: Mapping[fx.Node, int],
        summed: Mapping[fx.Node, int],
    ) -> tuple[Sweep, ...]:
        contracts: dict[tuple[int, int], list[Product]] = {}
        stores: dict[tuple[int, int], list[fx.Node]] = {}
        for node, level in summed.items():
            contracts.setdefault((level, self.products[node].inner), []).append(self.products[node])
        for output in dict.fromkeys(self.outputs):
            if output not in resident:
                stores.setdefault((ready[output] + 1, shape_of(output)[1]), []).append(output)
        sweeps: list[Sweep] = []
        swept: set[fx.Node] = set()
        for level, columns in sorted({*contracts, *stores}):
            summing, storing = contracts.get((level, columns), []), stores.get((level, columns), [])
            needed = self._tiles([*(p.left for p in summing), *storing], resident)
            if twice := [n for n in nodes if n in needed and n in swept]:
                raise refused(twice[0], "two loops need it, one of them only after the other's sums are complete")
            swept |= needed
            order = tuple(node for node in nodes if node in needed)
            expands = tuple(self.products[node] for node in order if node in self.products)
            sweeps.append(Sweep(level, columns, order, tuple(summing), tuple(storing), expands))
        return tuple(sweeps)

    def _tiles(self, roots: Iterable[fx.Node], resident: Collection[fx.Node]) -> set[fx.Node]:
        """The tensors after a product that have to be computed tile by tile for ``roots``."""
        found: set[fx.Node] = set()
        waiting = list(roots)
        while waiting:
            node = waiting.pop()
            if node in found or node in resident or node not in self.dependent:
                continue
            found.add(node)
            product = self.products.get(node)
            bias = [product.bias] if product and product.bias is not None else []
            waiting += bias if product else node.all_input_nodes
        return found


def _check_dtype(node: fx.Node) -> None:
    if dtype_of(node) not in DTYPES:
        raise refused(node, f"{dtype_of(node)} is not supported in a kernel")


def _check_size(node: fx.Node) -> None:
    if sum((length - 1) * stride for length, stride in zip(shape_of(node), node.meta["val"].stride(), strict=True)) >= 2**31:
        raise refused(node, "its offsets do not fit in 32 bits")


def _is_stored(weight: fx.Node) -> bool:
    """Whether the node is an input, at most transposed and cast."""
    while is_transpose(weight) or is_cast(weight) or is_same(weight):
        weight = weight.all_input_nodes[0]
    return weight.op == "placeholder"
