"""Inverted residuals of a network of images, each by one Triton kernel: the expanded tensor is never in memory.

Each block becomes one node ``memcompile::stream_rows``, before patches and budgets are planned: to them it is one operator that
reads a narrow image and writes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from memcompile.codegen.fused import fused_refusal
from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.cost import saved_bytes
from memcompile.codegen.inverted_residual.program import inverted_program, inverted_residual, inverted_residuals, slower
from memcompile.errors import KernelRefusedError
from memcompile.step.fxutil import source_of
from memcompile.streaming.output_strides import keep_strides, output_strides
from memcompile.streaming.program import Program
from memcompile.streaming.rewrite import Streamed, stand_in

PatchKernel = Literal["auto", "triton", "cpp", "off"]
WHY = "one Triton kernel: the expanded tensor stays on chip"
Refusals = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Inverted:
    """What the pass did to a graph. ``refused``: (node, source, reason), of blocks and, where kernels were asked for, of
    depthwise convolutions in none. ``why``: what kernels are for, in a report."""

    blocks: tuple[Streamed, ...] = ()
    refused: Refusals = ()
    why: str = WHY


def rewrite(gm: fx.GraphModule, kernel: PatchKernel, device: torch.device, *, run: bool = True) -> Inverted:
    """Replace the inverted residuals of an inference graph, in place.

    ``run``: False in a dry run, where no kernel is loaded.
    """
    if not wanted(kernel, device):
        return Inverted()
    found = inverted_residuals(gm.graph)
    sources = {node.name: source_of(node) for node in gm.graph.nodes}
    others = () if kernel == "auto" else found.refused  # unasked, nobody expects a kernel for what is no inverted residual
    refused = [(error.node, sources[error.node], error.reason) for error in others]
    if found.blocks and (refusal := fused_refusal(device)):
        first = found.blocks[0].depthwise.node
        return Inverted((), (*refused, (first.name, source_of(first), refusal)))
    made: list[tuple[InvertedResidual, Program]] = []
    for block in found.blocks:  # all are read before any is replaced
        try:
            made.append((block, _program(block, kernel, device, run)))
        except KernelRefusedError as error:
            refused.append((block.depthwise.node.name, source_of(block.depthwise.node), error.reason))
    strides = output_strides(gm.graph)
    blocks = [_replace(block, program) for block, program in reversed(made)]  # a later one may read what an earlier one makes
    if blocks:
        keep_strides(gm, strides)
        gm.graph.eliminate_dead_code()  # what was computed of parameters alone
        gm.graph.lint()
        gm.recompile()
    return Inverted(tuple(reversed(blocks)), tuple(refused))


def wanted(kernel: PatchKernel, device: torch.device) -> bool:
    """Whether any block of a graph on a device may get a kernel."""
    return kernel == "triton" or (kernel == "auto" and device.type == "cuda")


def _program(block: InvertedResidual, kernel: PatchKernel, device: torch.device, run: bool) -> Program:
    """The program of a block. Raises `KernelRefusedError`, for a kernel that would be slower as well."""
    generated = inverted_residual(block)
    if kernel == "auto" and (reason := slower(generated, device)):
        raise KernelRefusedError(block.depthwise.node.name, reason)
    return inverted_program(block, generated, run=run)


def _replace(block: InvertedResidual, program: Program) -> Streamed:
    """Put the program in the place of a block's nodes. None has to wait for it: only the last is read outside of the block."""
    saved, source = saved_bytes(block), source_of(block.depthwise.node)
    node = stand_in(program, block.operands, block.result, block.nodes)
    return Streamed(node.name, source, program, saved)
