"""Inverted residuals of a compiled graph, each as one Triton kernel.

    for block in inverted_residuals(graph).blocks:
        kernel = inverted_residual(block)                        # KernelRefusedError
        if not slower(kernel, device): ...
        program = inverted_program(block, kernel)                # for memcompile::stream_rows

The program takes and gives images [N, C, H, W] with their channels last in memory.
"""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor

from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.cost import inverted_flops
from memcompile.codegen.inverted_residual.kernel import InvertedKernel, generate_inverted
from memcompile.codegen.inverted_residual.match import inverted_residuals
from memcompile.codegen.triton.tune import Tuner, target_of
from memcompile.errors import UnknownTargetError
from memcompile.machine.device import device_model
from memcompile.streaming.program import PROGRAMS, FusedRows, Program, RowPort
from memcompile.streaming.region import channels_last
from memcompile.units import format_seconds

__all__ = ["InvertedKernel", "inverted_program", "inverted_residual", "inverted_residuals", "slower"]


def inverted_residual(block: InvertedResidual, name: str = "inverted_residual") -> InvertedKernel:
    """The kernel of a block. ``load()`` gives ``launch(*operands, out=(result,))``. Raises `KernelRefusedError`."""
    return generate_inverted(block, name=name)


def slower(kernel: InvertedKernel, device: torch.device) -> str:
    """Why kernels of their own are preferred to the one kernel on a CUDA device; empty where the one is expected to win."""
    try:
        processors = target_of(device).processors
    except UnknownTargetError as error:
        return str(error)
    cost = kernel.cost(device_model(device), processors)
    estimate = f"{format_seconds(cost.fused)} as one kernel, {format_seconds(cost.apart)} as kernels of their own"
    return "" if cost.wins else f"{estimate} (estimated)"


def inverted_program(block: InvertedResidual, kernel: InvertedKernel, *, run: bool = True) -> Program:
    """The program that runs a block by its kernel; its operands are ``block.operands``. Raises `MissingTritonError`.

    ``run``: False in a dry run, where nothing is imported.
    """
    device: torch.device = block.result.meta["val"].device
    launch = kernel.load(_tuner() if device.type == "cuda" else None) if run else None
    images, *parameters = (node.meta["val"] for node in block.operands)
    operands = (_images(images), *(RowPort(tuple(t.shape), tuple(t.stride()), t.dtype, None, 1) for t in parameters))
    results = (_images(block.result.meta["val"]),)
    key = hashlib.sha256(repr((block.images, operands, results, str(device), kernel.source, run)).encode()).hexdigest()[:12]
    fused, flops = FusedRows(launch, kernel.source), inverted_flops(block, kernel.lines)
    total = block.images
    return PROGRAMS.add(Program(key, total, total, operands, results, (None,), device, flops, {}, {}, fused))


def _images(value: Tensor) -> RowPort:
    count, channels, height, width = value.shape
    return RowPort((count, channels, height, width), channels_last(value.shape), value.dtype, 0, 1)


@functools.cache
def _tuner() -> Tuner:
    return Tuner()
