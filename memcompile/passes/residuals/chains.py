"""Chains of inverted residuals of a network of images, each by one C++ kernel on the CPU (``codegen/cpp``).

A chain becomes one node ``memcompile::stream_rows``, before patches and budgets are planned: to them it is one operator that
reads an image and writes one. Where chains begin and end follows from the room and from time (``codegen/cpp/choose.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import fx

from memcompile.codegen.cpp.build import build_refusal
from memcompile.codegen.cpp.chain import ChainLink, RowChain, link_of, runs_of
from memcompile.codegen.cpp.choose import Cost, best_cut, cuts
from memcompile.codegen.cpp.cost import library_bytes, library_seconds, rows_bytes, rows_seconds
from memcompile.codegen.cpp.kernel import RowsKernel, generate_rows, rows_program
from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.cost import saved_bytes
from memcompile.codegen.inverted_residual.match import inverted_residuals
from memcompile.errors import KernelRefusedError
from memcompile.passes.residuals.kernels import Inverted, PatchKernel
from memcompile.step.cost import CostModel
from memcompile.step.fxutil import base_of, copied, node_bytes, source_of
from memcompile.streaming.output_strides import keep_strides, output_strides
from memcompile.streaming.program import Program
from memcompile.streaming.rewrite import Streamed, stand_in

WHY = "one C++ kernel: the expanded tensor stays in cache"


@dataclass(frozen=True, slots=True)
class Goal:
    """``room_bytes``: what the lowered graph may take, all that is alive at entry included; or ``max_overhead``, of time.
    ``forced``: whatever can be in a kernel is, and time comes first where there is no room to keep."""

    room_bytes: int | None = None
    max_overhead: float | None = None
    forced: bool = False


@dataclass(frozen=True, slots=True)
class ChainTools:
    """``peak_of``: exact peak of a graph as it is lowered, and what is alive at entry. ``run``: False in a dry run."""

    peak_of: Callable[[fx.GraphModule], tuple[int, int]]
    model: CostModel
    threads: int
    run: bool = True


def wanted(kernel: PatchKernel, device: torch.device) -> bool:
    """Whether any chain of a graph on a device may get a kernel."""
    return kernel == "cpp" or (kernel == "auto" and device.type == "cpu")


def rows_refusal(device: torch.device, *, run: bool = True) -> str:
    """Why no C++ kernel runs on a device; empty when one does. ``run``: False in a dry run, where nothing is compiled."""
    return build_refusal(run=run) if device.type == "cpu" else "C++ kernels run on the CPU"


def rewrite_rows(gm: fx.GraphModule, goal: Goal, tools: ChainTools) -> tuple[fx.GraphModule | None, Inverted]:
    """A copy of an inference graph with chains as kernels, and what was done; None where there are none.

    A graph that keeps the room as it is stays as it is, unless kernels are forced.
    """
    copy = copied(gm)
    found = inverted_residuals(copy.graph, dense=True)
    others = found.refused if goal.forced else ()  # unasked, nobody expects a kernel for what is no inverted residual
    refused = [(error.node, error.source, error.reason) for error in others]
    if not found.blocks:
        return None, Inverted((), tuple(refused))
    limit = None
    if goal.room_bytes is not None:
        base, entry = tools.peak_of(gm)
        if base <= goal.room_bytes and not goal.forced:
            return None, Inverted()
        limit = max(0, goal.room_bytes - entry)
    if refusal := rows_refusal(found.blocks[0].result.meta["val"].device, run=tools.run):
        return None, Inverted((), (*refused, ("graph", "", refusal)))
    links, reasons = _links(found.blocks)
    kernels: list[RowsKernel] = []
    for run in runs_of(found.blocks):
        kernels += _chosen(run, links, bytes_beside(copy.graph, run), limit, goal, tools)
    if not kernels:
        slow = ("graph", "", "library calls are expected to be faster, or to need less memory")
        return None, Inverted((), (*refused, *reasons, *([slow] if links else [])))
    return copy, Inverted(_applied(copy, kernels, tools), (*refused, *reasons), WHY)


def _links(blocks: Sequence[InvertedResidual]) -> tuple[dict[InvertedResidual, ChainLink], list[tuple[str, str, str]]]:
    """The blocks that can be in a kernel, and why others cannot."""
    links: dict[InvertedResidual, ChainLink] = {}
    reasons: list[tuple[str, str, str]] = []
    for block in blocks:
        try:
            links[block] = link_of(block)
        except KernelRefusedError as error:
            node = block.depthwise.node
            reasons.append((node.name, source_of(node), error.reason))
    return links, reasons


def _chosen(
    run: Sequence[InvertedResidual],
    links: Mapping[InvertedResidual, ChainLink],
    beside: Sequence[int],
    limit: int | None,
    goal: Goal,
    tools: ChainTools,
) -> list[RowsKernel]:
    """The kernels of the best cut of a run. ``beside``: bytes that are alive while each block runs and have no part in it."""

    @functools.cache
    def kernel(begin: int, end: int) -> RowsKernel:
        return generate_rows(RowChain(tuple(links[block] for block in run[begin:end])))

    def apart(index: int) -> Cost | None:
        if goal.forced and run[index] in links:
            return None
        return Cost(library_seconds(run[index], tools.model), library_bytes(run[index]) + beside[index])

    def together(begin: int, end: int) -> Cost | None:
        if run[begin] not in links:
            return None
        peak = rows_bytes(kernel(begin, end), tools.threads) + max(beside[begin:end])
        return Cost(rows_seconds(kernel(begin, end), tools.model, tools.threads), peak)

    usual = sum(library_seconds(block, tools.model) for block in run)
    allowed = None if goal.max_overhead is None else (1 + goal.max_overhead) * usual
    cut = best_cut(cuts(len(run), apart, together), limit, allowed)
    return [kernel(*part) for part in cut.parts]


def bytes_beside(graph: fx.Graph, run: Sequence[InvertedResidual]) -> list[int]:
    """Bytes of what is alive while a block runs and has no part in it, inputs of the graph aside."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    lives: dict[fx.Node, int] = {}
    for node in graph.nodes:
        base = base_of(node)
        if base.op != "placeholder":
            lives[base] = max(lives.get(base, 0), *(place[user] for user in node.users), 0)

    def alive(block: InvertedResidual) -> int:
        begin, end = place[(block.expand or block.depthwise).node], place[block.result]
        own = {block.input, *block.nodes}
        return sum(node_bytes(n) for n, death in lives.items() if place[n] < begin and death > end and n not in own)

    return [alive(block) for block in run]


def _applied(gm: fx.GraphModule, kernels: Sequence[RowsKernel], tools: ChainTools) -> tuple[Streamed, ...]:
    """Put kernels in the places of their chains."""
    if tools.run:
        with ThreadPoolExecutor() as pool:  # a compiler is a process of its own
            list(pool.map(lambda kernel: kernel.load(tools.threads), {k.source: k for k in kernels}.values()))
    programs = [rows_program(kernel, tools.threads, run=tools.run) for kernel in kernels]
    strides = output_strides(gm.graph)
    pairs = list(zip(kernels, programs, strict=True))
    made = [_replace(kernel.chain, program) for kernel, program in reversed(pairs)]  # a later one may read an earlier one's
    keep_strides(gm, strides)
    gm.graph.eliminate_dead_code()  # what was computed of parameters alone
    gm.graph.lint()
    gm.recompile()
    return tuple(reversed(made))


def _replace(chain: RowChain, program: Program) -> Streamed:
    """Put the program in the place of a chain's nodes. None has to wait for it: only the last is read outside of the chain."""
    graph, last, first = chain.result.graph, chain.result, chain.blocks[0].depthwise.node
    between = sum(node_bytes(block.result) for block in chain.blocks[:-1])
    saved, source = max(map(saved_bytes, chain.blocks)) + between, source_of(first)
    inside = {node for block in chain.blocks for node in block.nodes}
    order = [node for node in graph.nodes if node in inside]
    node = stand_in(program, chain.operands, last, order)
    return Streamed(node.name, source, program, saved)
