"""Low-rank chains run block by block: the full-size hidden between two factors is never whole.

A product of a product, ``(x @ U) @ V`` with only linear operators in between, is where a graph uses a factored weight: narrow
in the rank, wide on both sides. From each of them a region grows, to where little is alive before and after it:
``expand -> pointwise -> contract``, a gated pair, attention over low-rank queries, keys and values, a Monarch or BLAST product.
The region becomes one node that runs it on a block of rows at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from memcompile.fxutil import source_of
from memcompile.streaming.hidden import regions_of_hidden
from memcompile.streaming.necks import Found, regions_between_necks
from memcompile.streaming.program import Block, Program, program_of
from memcompile.streaming.rewrite import overwritable, replace
from memcompile.streaming.rules import NotRowLocalError

BLOCK_BYTES = 4 << 20
"""What the inside of one block should take: it stays in the caches of a core, and a product of so many rows is efficient."""
LEAST_BLOCKS = 2
"""A region whose inside would fit into fewer blocks is left alone."""

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
_LINEAR = frozenset(
    {"view", "_unsafe_view", "reshape", "permute", "transpose", "t", "clone", "mul", "expand", "unsqueeze", "squeeze", "sum"}
    | {"convert_element_type", "_to_copy"}
)


@dataclass(frozen=True, slots=True)
class Streamed:
    """One region as it runs. ``saved_bytes``: what is no longer alive at its highest moment, before workspace."""

    node: str
    source: str
    program: Program
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class LowRank:
    """What the pass did to a graph. ``refused``: (node, source, reason)."""

    streamed: tuple[Streamed, ...] = ()
    refused: tuple[tuple[str, str, str], ...] = ()
    seconds: float = 0.0


def factored(graph: fx.Graph) -> list[fx.Node]:
    """Second products of factored weights, in order."""
    return [node for node in graph.nodes if first_factor(node) is not None]


Compiler = Callable[[fx.GraphModule], Block]


def stream_inference(gm: fx.GraphModule, compiler: Compiler, *, dry: bool = False) -> LowRank:
    """Stream the low-rank chains of an inference graph, in place.

    ``compiler``: lowers the body of a program. ``dry``: the programs need not run.
    """
    started = time.perf_counter()
    seeds, refused = _static(factored(gm.graph))
    streamed = []
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    hills = regions_between_necks(gm.graph, seeds, LEAST_BLOCKS * BLOCK_BYTES)
    for found in sorted(hills, key=lambda hill: order[hill.region.nodes[-1]], reverse=True):  # operands are of earlier ones
        source = source_of(next(node for node in found.region.nodes if node in seeds))
        try:
            program = _program(found, compiler, dry, overwritable(found.region))
            streamed.append(Streamed(replace(found.region, program).name, source, program, found.saved_bytes))
        except NotRowLocalError as error:
            refused.append((found.region.nodes[0].name, source, str(error)))
    return _done(gm, streamed[::-1], refused, started)


def stream_training(gm: fx.GraphModule, compiler: Compiler, *, dry: bool = False) -> LowRank:
    """Stream the hidden of low-rank chains in a joint graph, in place: what is saved for the backward is in rank space."""
    started = time.perf_counter()
    seeds, refused = _static(factored(gm.graph))
    streamed = []
    taken: set[fx.Node] = set()
    pairs = [(seed, factor) for seed in seeds if (factor := first_factor(seed)) is not None]
    for seed, factor in pairs:
        if taken & {seed, factor}:
            continue
        try:
            hidden = regions_of_hidden(gm.graph, seed, factor)
        except NotRowLocalError as error:
            refused.append((seed.name, source_of(seed), str(error)))
            continue
        if not hidden.regions or max(found.saved_bytes for found in hidden.regions) < LEAST_BLOCKS * BLOCK_BYTES:
            hidden.undo()
            continue
        try:
            programs = [_program(found, compiler, dry) for found in hidden.regions]
        except NotRowLocalError as error:
            hidden.undo()
            refused.append((seed.name, source_of(seed), str(error)))
            continue
        source = source_of(seed)
        taken |= {node for found in hidden.regions for node in found.region.nodes}
        for found, program in zip(hidden.regions, programs, strict=True):
            streamed.append(Streamed(replace(found.region, program).name, source, program, found.saved_bytes))
    return _done(gm, streamed, refused, started)


def _program(found: Found, compiler: Compiler, dry: bool, in_place: tuple[int | None, ...] = ()) -> Program:
    """The compiled program of a region."""
    region = found.region
    device: torch.device = region.results[0].meta["val"].device
    program = program_of(region, block_rows(found), in_place or (None,) * len(region.results), device)
    program.compile(compiler, dry=dry)
    return program


def _done(gm: fx.GraphModule, streamed: list[Streamed], refused: list[tuple[str, str, str]], started: float) -> LowRank:
    if streamed:
        gm.graph.lint()
        gm.recompile()
    return LowRank(tuple(streamed), tuple(refused), time.perf_counter() - started)


def _static(seeds: list[fx.Node]) -> tuple[list[fx.Node], list[tuple[str, str, str]]]:
    """Seeds of fixed shape; the others are refused."""
    static = {seed: all(isinstance(n, int) for n in seed.meta["val"].shape) for seed in seeds}
    refused = [(seed.name, source_of(seed), "dynamic shapes") for seed in seeds if not static[seed]]
    return [seed for seed in seeds if static[seed]], refused


def block_rows(found: Found) -> int:
    """Rows of a block: as many blocks of equal size as the bytes ask for, a multiple of 16 rows where there are many."""
    total = found.region.total
    blocks = max(1, math.ceil(found.saved_bytes / BLOCK_BYTES))
    rows = math.ceil(total / blocks)
    return min(total, -(-rows // 16) * 16) if rows > 16 else rows


def first_factor(node: fx.Node) -> fx.Node | None:
    """The product that a product's left operand comes from by linear operators alone; None: the node is no second factor."""
    if _name(node) not in _PRODUCTS:
        return None
    left = [operand for operand in node.args if isinstance(operand, fx.Node)][-2]
    while _name(left) in _LINEAR and left.all_input_nodes:
        left, *others = left.all_input_nodes
        if not all(map(_is_given, others)):
            return None
    return left if _name(left) in _PRODUCTS else None


def _is_given(node: fx.Node) -> bool:
    """Whether a tensor is an input of the graph or a view of one."""
    while _name(node) in _LINEAR and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return node.op in ("placeholder", "get_attr")


def _name(node: fx.Node) -> str:
    return node.target._schema.name.split("::")[-1] if isinstance(node.target, torch._ops.OpOverload) else ""
