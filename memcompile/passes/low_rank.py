"""Low-rank chains run block by block: the full-size hidden between two factors is never whole.

A product of a product, ``(x @ U) @ V`` with only linear operators in between, is where a graph uses a factored weight: narrow
in the rank, wide on both sides. From each of them a region grows to where little is alive on both sides (``streaming/necks.py``):
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
from memcompile.streaming.necks import Found, regions_between_necks
from memcompile.streaming.program import Block, Program, program_of
from memcompile.streaming.region import Region
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
    return [node for node in graph.nodes if _is_factored(node)]


def stream_inference(
    gm: fx.GraphModule, compiler: Callable[[fx.GraphModule], Block], block_bytes: int = BLOCK_BYTES
) -> LowRank:
    """Stream the low-rank chains of an inference graph, in place. ``compiler``: lowers the body of a program."""
    started = time.perf_counter()
    seeds = factored(gm.graph)
    if not seeds:
        return LowRank()
    streamed, refused = [], []
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    hills = regions_between_necks(gm.graph, seeds, LEAST_BLOCKS * block_bytes)
    for found in sorted(hills, key=lambda hill: order[hill.region.nodes[-1]], reverse=True):  # operands are of earlier ones
        first = found.region.nodes[0]
        try:
            program = program_of(
                found.region, block_rows(found, block_bytes), overwritable(found.region), _device(found.region)
            )
        except NotRowLocalError as error:
            refused.append((first.name, source_of(first), str(error)))
            continue
        program.compile(compiler)
        seed = next(node for node in found.region.nodes if node in seeds)
        source = source_of(seed)
        node = replace(found.region, program)
        streamed.append(Streamed(node.name, source, program, found.saved_bytes))
    gm.graph.lint()
    gm.recompile()
    return LowRank(tuple(streamed[::-1]), tuple(refused), time.perf_counter() - started)


def block_rows(found: Found, block_bytes: int) -> int:
    """Rows of a block: as many blocks of equal size as the bytes ask for, a multiple of 16 rows where there are many."""
    total = found.region.total
    blocks = max(1, math.ceil(found.saved_bytes / block_bytes))
    rows = math.ceil(total / blocks)
    return min(total, -(-rows // 16) * 16) if rows > 16 else rows


def _is_factored(node: fx.Node) -> bool:
    if _name(node) not in _PRODUCTS:
        return False
    left = [operand for operand in node.args if isinstance(operand, fx.Node)][-2]
    while _name(left) in _LINEAR and left.all_input_nodes:
        left = left.all_input_nodes[0]
    return _name(left) in _PRODUCTS


def _name(node: fx.Node) -> str:
    return node.target._schema.name.split("::")[-1] if isinstance(node.target, torch._ops.OpOverload) else ""


def _device(region: Region) -> torch.device:
    device: torch.device = region.results[0].meta["val"].device
    return device
