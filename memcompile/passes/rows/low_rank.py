"""Low-rank chains run block by block: the full-size hidden between two factors is never whole.

A product of a product, ``(x @ U) @ V`` with only linear operators in between, is where a graph uses a factored weight: narrow
in the rank, wide on both sides. Graphs that have one are first written in one spelling (``canonical.py``). Then a region grows
from each product, to where little is alive before and after it: ``expand -> pointwise -> contract``, a gated pair, attention
over low-rank queries, keys and values, a Monarch or BLAST product. It becomes one node, which runs it on a block of rows at a
time, or as one Triton kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from memcompile.codegen.fused import FUSED_RANK, fused_refusal
from memcompile.errors import KernelRefusedError
from memcompile.passes.rows.canonical import canonicalise
from memcompile.passes.rows.hidden import Hidden, chain_around, regions_of_hidden
from memcompile.passes.rows.necks import Found, regions_between_necks
from memcompile.step.fxutil import is_view, op_name, source_of
from memcompile.step.rewriting import RefusedPattern, Rewrite
from memcompile.streaming.profile import LiveProfile
from memcompile.streaming.program import Program, RowBlock, program_of
from memcompile.streaming.region import RowRegion
from memcompile.streaming.rewrite import Streamed, overwritable, replace
from memcompile.streaming.rules import NotRowLocalError, shape_of

LowRankKernel = Literal["auto", "rows", "triton"]
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 32 << 20}
"""What the inside of one block should take: it stays in the caches, and a product of so many rows is efficient."""
LEAST_BLOCKS = 2
"""A region whose inside would fit into fewer blocks is left alone."""

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mm_add"})
_LINEAR = frozenset(
    {"view", "_unsafe_view", "reshape", "permute", "transpose", "t", "clone", "mul", "expand", "unsqueeze", "squeeze", "sum"}
    | {"convert_element_type", "_to_copy"}
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """What the pass did to a graph. ``refused``: (node, source, reason)."""

    rewrites: tuple[Rewrite, ...] = ()
    streamed: tuple[Streamed, ...] = ()
    refused: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RowTools:
    """What lowers programs. ``compiler``: bodies of blocks. ``fuse``: a region to one kernel, as ``kernel`` wants it. ``dry``:
    the programs need not run."""

    compiler: Callable[[fx.GraphModule], RowBlock]
    fuse: Callable[[RowRegion], Program]
    kernel: LowRankKernel = "auto"
    dry: bool = False


def factored(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Second products of factored weights, in order, with the first ones."""
    return {node: first for node in graph.nodes if (first := first_factor(node)) is not None}


def rewrite_inference(gm: fx.GraphModule, tools: RowTools) -> LowRank:
    """Rewrite and stream the low-rank chains of an inference graph, in place."""
    return _rewrite(gm, tools, _stream_inference)


def rewrite_training(gm: fx.GraphModule, tools: RowTools) -> LowRank:
    """Rewrite and stream the low-rank chains of a joint graph, in place: what is saved for the backward is in rank space."""
    return _rewrite(gm, tools, _stream_training)


def has_products(graph: fx.Graph) -> bool:
    """Whether any product is of a product."""
    return any(first_factor(node) or _is_merged(node) for node in graph.nodes)


Refusals = list[tuple[str, str, str]]


def _rewrite(gm: fx.GraphModule, tools: RowTools, stream: Callable[[fx.Graph, RowTools, Refusals], list[Streamed]]) -> LowRank:
    expected = any(map(_is_low_rank, gm.graph.nodes))
    outcomes = canonicalise(gm)
    refused = [(outcome.node, outcome.source, outcome.why) for outcome in outcomes if isinstance(outcome, RefusedPattern)]
    streamed = stream(gm.graph, tools, refused)
    if not expected:  # products of products, as in attention, that nobody has factored
        refused.clear()
    gm.graph.lint()
    gm.recompile()
    rewrites = tuple(outcome for outcome in outcomes if isinstance(outcome, Rewrite))
    return LowRank(rewrites, tuple(streamed), tuple(refused))


def _stream_inference(graph: fx.Graph, tools: RowTools, refused: Refusals) -> list[Streamed]:
    pairs = _static(factored(graph), refused)
    order = {node: i for i, node in enumerate(graph.nodes)}
    fused, streamed = _fused(graph, pairs, tools, refused), list[Streamed]()
    dense = _dense_before_attention(graph, pairs)
    hills = regions_between_necks(graph, list(pairs), LEAST_BLOCKS * _block_bytes(pairs), dense)
    for found in sorted(hills, key=lambda hill: order[hill.region.nodes[-1]], reverse=True):  # operands are of earlier ones
        source = source_of(next(node for node in found.region.nodes if node in pairs or node in dense))
        try:
            program = _program(found, tools, overwritable(found.region))
            streamed.append(Streamed(replace(found.region, program).name, source, program, found.saved_bytes))
        except NotRowLocalError as error:
            refused.append((found.region.nodes[0].name, source, str(error)))
    return [*fused, *reversed(streamed)]


def _dense_before_attention(graph: fx.Graph, pairs: Collection[fx.Node]) -> list[fx.Node]:
    """Products with whole weights that make queries, keys and values, in a graph whose other layers are factored: what their
    ranks save in the layers around would be lost to attention otherwise."""
    found: list[fx.Node] = []
    for node in graph.nodes if pairs else ():
        for source in node.all_input_nodes if "attention" in op_name(node) else ():
            while (op_name(source) in _LINEAR or is_view(source)) and source.all_input_nodes:
                source = source.all_input_nodes[0]
            if op_name(source) in _PRODUCTS and source not in pairs and source not in found:
                found.append(source)
    return found


def _fused(graph: fx.Graph, pairs: dict[fx.Node, fx.Node], tools: RowTools, refused: Refusals) -> list[Streamed]:
    """One kernel for each chain that gets one; its factors leave ``pairs``."""
    done: list[Streamed] = []
    for seed, factor in list(pairs.items()):
        device: torch.device = seed.meta["val"].device
        wanted = tools.kernel == "triton" or (tools.kernel == "auto" and device.type == "cuda")
        if seed not in pairs or not wanted:
            continue
        try:
            region = chain_around(graph, seed, factor)
            if region is None:
                continue
            if refusal := fused_refusal(device):
                raise NotRowLocalError(refusal)
            ranks = [shape_of(pairs[node])[-1] for node in region.nodes if node in pairs]
            if tools.kernel == "auto" and max(ranks) > FUSED_RANK:
                continue
            program = tools.fuse(region)
        except (NotRowLocalError, KernelRefusedError) as error:
            if tools.kernel == "triton":
                refused.append((seed.name, source_of(seed), str(error)))
            continue
        source, saved = source_of(seed), LiveProfile(region.nodes, region.rows).hill(0, len(region.nodes))
        for node in region.nodes:
            pairs.pop(node, None)
        done.append(Streamed(replace(region, program).name, source, program, saved))
    return done


def _stream_training(graph: fx.Graph, tools: RowTools, refused: Refusals) -> list[Streamed]:
    streamed: list[Streamed] = []
    pairs = _static(factored(graph), refused)
    taken: set[fx.Node] = set()
    for seed, factor in pairs.items():
        if taken & {seed, factor}:
            continue
        source, hidden = source_of(seed), Hidden()
        try:
            hidden = regions_of_hidden(graph, seed, factor)
            if max((found.saved_bytes for found in hidden.regions), default=0) < LEAST_BLOCKS * _block_bytes(pairs):
                hidden.undo()
                continue
            programs = [_program(found, tools) for found in hidden.regions]
        except NotRowLocalError as error:
            hidden.undo()
            refused.append((seed.name, source, str(error)))
            continue
        taken |= {node for found in hidden.regions for node in found.region.nodes}
        made = [  # the backward first: it may read results of the forward
            Streamed(replace(found.region, program).name, source, program, found.saved_bytes)
            for found, program in zip(reversed(hidden.regions), reversed(programs), strict=True)
        ]
        streamed += reversed(made)
    return streamed


def _program(found: Found, tools: RowTools, in_place: tuple[int | None, ...] = ()) -> Program:
    """The compiled program of a region."""
    region = found.region
    device: torch.device = region.results[0].meta["val"].device
    program = program_of(region, block_rows(found), in_place or (None,) * len(region.results), device)
    program.compile(tools.compiler, dry=tools.dry)
    return program


def _block_bytes(nodes: Iterable[fx.Node]) -> int:
    """Bytes of a block on the device of the first node."""
    return next((BLOCK_BYTES[node.meta["val"].device.type] for node in nodes), 0)


def _static(pairs: dict[fx.Node, fx.Node], refused: Refusals) -> dict[fx.Node, fx.Node]:
    """Pairs of fixed shape; the others are refused."""
    static = {seed: all(isinstance(n, int) for n in seed.meta["val"].shape) for seed in pairs}
    refused += [(seed.name, source_of(seed), "dynamic shapes") for seed in pairs if not static[seed]]
    return {seed: factor for seed, factor in pairs.items() if static[seed]}


def block_rows(found: Found) -> int:
    """Rows of a block: as many blocks of equal size as the bytes ask for, a multiple of 16 rows where there are many."""
    total = found.region.total
    blocks = max(1, math.ceil(found.saved_bytes / _block_bytes(found.region.results)))
    rows = math.ceil(total / blocks)
    return min(total, -(-rows // 16) * 16) if rows > 16 else rows


def first_factor(node: fx.Node) -> fx.Node | None:
    """The product that a product's left operand comes from by linear operators alone; None: the node is no second factor."""
    if op_name(node) not in _PRODUCTS:
        return None
    left, right = [operand for operand in node.args if isinstance(operand, fx.Node)][-2:]
    if not _is_given(right):
        return None
    while op_name(left) in _LINEAR and left.all_input_nodes:
        left, *others = left.all_input_nodes
        if not all(map(_is_given, others)):
            return None
    return left if op_name(left) in _PRODUCTS else None


def _is_low_rank(node: fx.Node) -> bool:
    """Whether a product is by factors of a weight: ``x @ (U @ V)``, or ``x @ U @ V`` with a neck between, or block by block.

    Products of products that are none: attention before its projection, two layers in a row, the gradient of a weight.
    """
    first = first_factor(node)
    if first is None:
        return _is_merged(node)
    down, up = _right(first), _right(node)
    if not _is_given(down):
        return False
    if down.meta["val"].dim() > 2 or up.meta["val"].dim() > 2:
        return True
    rank, columns = up.meta["val"].shape
    same_rows = str(first.meta["val"].shape[0]) == str(node.meta["val"].shape[0])  # sizes may be symbols
    return bool(same_rows and rank < min(down.meta["val"].shape[0], columns))


def _right(product: fx.Node) -> fx.Node:
    """The right operand of a product."""
    return [operand for operand in product.args if isinstance(operand, fx.Node)][-1]


def _is_merged(node: fx.Node) -> bool:
    """Whether a product's right operand is a product of inputs: ``x @ (U @ V)``."""
    if op_name(node) not in _PRODUCTS:
        return False
    right = _right(node)
    while op_name(right) in _LINEAR and len(right.all_input_nodes) == 1:
        (right,) = right.all_input_nodes
    return op_name(right) in _PRODUCTS and all(map(_is_given, right.all_input_nodes))


def _is_given(node: fx.Node) -> bool:
    """Whether a tensor is an input of the graph or a view of one."""
    while op_name(node) in _LINEAR and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return node.op in ("placeholder", "get_attr")
