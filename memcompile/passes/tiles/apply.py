"""Patch-based inference: stages of a convolutional network run tile by tile, so that their large images are never whole.

The stages are chosen by search (``solvers/tiling``) among layer by layer, patches with halos that are made again, and strips of
rows that keep their overlap. Each tiled stage becomes one node (``program.py``). Exact: nothing is approximated where tiles
meet.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from operator import getitem

import torch
from torch import fx

from memcompile.passes.tiles.bodies import add_call
from memcompile.passes.tiles.network import Network
from memcompile.passes.tiles.planes import Plane
from memcompile.passes.tiles.products import as_products
from memcompile.passes.tiles.program import TileProgram, program_of
from memcompile.passes.tiles.reductions import merge, parts_of
from memcompile.runtime.stored import STORED
from memcompile.solvers.tiling.problem import Stage, TilingSolution
from memcompile.solvers.tiling.stages import results
from memcompile.step.fxutil import base_of, outputs_of, source_of
from memcompile.streaming.output_strides import keep_strides, output_strides
from memcompile.streaming.program import PROGRAMS, RowBlock
from memcompile.streaming.region import channels_last, contiguous_strides
from memcompile.streaming.rewrite import call_program, result_of, waiting

Compile = Callable[[fx.GraphModule], RowBlock]


@dataclass(frozen=True, slots=True)
class Patched:
    """A tiled stage as it runs. ``source``: the user's line of its last operator."""

    name: str
    source: str
    stage: Stage
    program: TileProgram


def apply(
    gm: fx.GraphModule, network: Network, solution: TilingSolution, compiler: Compile, *, dry: bool = False
) -> list[Patched]:
    """Replace the tiled stages of ``gm``, whose network it is, by one node each. ``dry``: they need not run.

    Raises NotLocalError when an operator turns out not to run on a tile; the graph is then of no use any more.
    """
    made, strides = [], output_strides(gm.graph)
    for stage in reversed(solution.stages):  # the last first: earlier ones are still there to be read
        if stage.kind != "layerwise":
            made.append(_replace(gm.graph, network, stage, compiler, dry))
    _store_sums(gm.graph, network)
    images = [node for node in gm.graph.find_nodes(op="placeholder") if isinstance(node.meta.get("val"), torch.Tensor)]
    as_products(gm.graph, functools.partial(add_call, gm.graph, images[0].meta["val"].fake_mode))
    gm.graph.eliminate_dead_code()
    keep_strides(gm, strides)
    gm.graph.lint()
    gm.recompile()
    return made[::-1]


def _store_sums(graph: fx.Graph, network: Network) -> None:
    """Sums of images that are read more than once become one image: Inductor would keep both addends for its readers."""
    there = set(graph.nodes)
    for index, node in enumerate(network.values):
        operator = network.problem.operators[index]
        images = [read for read in operator.reads if network.problem.operators[read.source].height > 1]
        if node not in there or operator.kind != "local" or len(images) < 2 or len(node.users) < 2:
            continue
        value = node.meta["val"]
        if network.planes.get(node) == Plane(2, 3) and value.dim() == 4:
            with graph.inserting_after(node):
                stored = graph.call_function(STORED, (node, list(channels_last(value.shape))))
            stored.meta = dict(node.meta)
            node.replace_all_uses_with(stored)
            stored.update_arg(0, node)


def _replace(graph: fx.Graph, network: Network, stage: Stage, compiler: Compile, dry: bool) -> Patched:
    kept = [network.values[index] for index in results(network.problem, stage)]
    returned = {out for out in outputs_of(graph) if isinstance(out, fx.Node)}
    returned |= {base_of(out) for out in returned}
    stored = {
        value for value, operator in zip(network.values, network.problem.operators, strict=True) if operator.kind != "input"
    }
    program, operands = program_of(network, stage, lambda node: _stride(node, network, node in stored - returned))
    program = PROGRAMS.add(program)
    program.compile(compiler, dry=dry)
    inside = _own(network, stage, kept, operands)
    order = [node for node in graph.nodes if node in inside]
    late, behind = waiting(order, operands), order[-1].next
    with graph.inserting_before(behind):
        node = call_program(program, operands, network.values[stage.last - 1], network.values[0])
        _take(graph, node, network, kept, inside)
    _move(late, after=behind.prev)
    for old in reversed(order):
        for part in [user for user in old.users if user.target is getitem]:  # of a reduction whose parts were merged
            graph.erase_node(part)
        graph.erase_node(old)
    last = network.values[stage.last - 1]
    return Patched(node.name, source_of(node) or last.name, stage, program)


def _own(network: Network, stage: Stage, kept: list[fx.Node], operands: list[fx.Node]) -> set[fx.Node]:
    """Nodes that make way: those of the stage without what others, or the program, read of them on the way, such as views of
    its results, and scales that are made once for all tiles."""
    inside = {node for index in range(stage.first, stage.last) for node in network.inner[index]} - set(operands)
    while shared := {n for n in inside if n not in kept and any(user not in inside for user in n.users)}:
        inside -= shared
    return inside


def _take(graph: fx.Graph, node: fx.Node, network: Network, kept: list[fx.Node], inside: set[fx.Node]) -> None:
    """Results of the program in the place of the nodes that made them."""
    numbers = itertools.count()

    def part() -> fx.Node:
        return result_of(node, next(numbers))

    kinds = {network.values[i]: operator.kind for i, operator in enumerate(network.problem.operators)}
    for old in kept:
        if kinds[old] == "reduction":
            merge(graph, old, [part() for _ in parts_of(old)])
        else:
            old.replace_all_uses_with(part(), delete_user_cb=lambda user: user not in inside)


def _move(nodes: list[fx.Node], after: fx.Node) -> None:
    for node in nodes:
        after.append(node)
        after = node


def _stride(node: fx.Node, network: Network, inner: bool) -> tuple[int, ...]:
    """Images that stay inside lie channels last, as convolutions take them; what comes from outside, or leaves, as it is."""
    value = node.meta["val"]
    if inner and network.planes.get(node) == Plane(2, 3) and value.dim() == 4:
        return channels_last(value.shape)
    return contiguous_strides(tuple(value.shape)) if inner else tuple(value.stride())
