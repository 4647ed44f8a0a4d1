"""Inverted residuals of a compiled graph, each as one Triton kernel.

    for block in inverted_residuals(graph).blocks:
        kernel = inverted_residual(block)                        # KernelRefusedError
        if kernel.cost(device_model(device)).wins: ...
        program = inverted_program(block, kernel)                # for memcompile::stream_rows

The program takes and gives images as dense [N, H, W, C]: ``x.permute(0, 2, 3, 1)`` of images with their channels last is a
view, and so is ``permute(0, 3, 1, 2)`` of the result.
"""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor

from memcompile.codegen.triton.inverted.block import InvertedResidual
from memcompile.codegen.triton.inverted.cost import inverted_flops
from memcompile.codegen.triton.inverted.kernel import InvertedKernel, generate_inverted
from memcompile.codegen.triton.inverted.match import Found, inverted_residuals
from memcompile.codegen.triton.kernel import Launcher
from memcompile.codegen.triton.tune import Tuner
from memcompile.streaming.program import PROGRAMS, Fused, Port, Program
from memcompile.streaming.region import contiguous_strides

__all__ = ["Found", "InvertedKernel", "inverted_program", "inverted_residual", "inverted_residuals"]

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""The orders that put the channels of images last, and back."""


def inverted_residual(block: InvertedResidual, name: str = "inverted_residual") -> InvertedKernel:
    """The kernel of a block. ``load()`` gives ``launch(*operands, out=(result,))``. Raises `KernelRefusedError`."""
    return generate_inverted(block, name=name)


def inverted_program(block: InvertedResidual, kernel: InvertedKernel, *, run: bool = True) -> Program:
    """The program that runs a block by its kernel; its operands are ``block.operands``. Raises `MissingTritonError`.

    ``run``: False in a dry run, where nothing is imported.
    """
    device: torch.device = block.result.meta["val"].device
    launch = _on_dense(kernel.load(_tuner() if device.type == "cuda" else None)) if run else None
    images, *parameters = (node.meta["val"] for node in block.operands)
    operands = (_images(images), *(Port(tuple(t.shape), tuple(t.stride()), t.dtype, None, 1) for t in parameters))
    results = (_images(block.result.meta["val"]),)
    key = hashlib.sha256(repr((block.images, operands, results, str(device), kernel.source, run)).encode()).hexdigest()[:12]
    fused, flops = Fused(launch, kernel.source), inverted_flops(block, kernel.lines)
    total = block.images
    return PROGRAMS.add(Program(key, total, total, operands, results, (None,), device, flops, {}, {}, fused))


def _images(value: Tensor) -> Port:
    shape = tuple(value.shape[axis] for axis in LAST)
    return Port(shape, contiguous_strides(shape), value.dtype, 0, 1)


def _on_dense(launch: Launcher) -> Launcher:
    """A kernel's ``launch`` for images as dense [N, H, W, C]."""

    def on_dense(*operands: Tensor, out: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        images, *parameters = operands
        given = None if out is None else tuple(tensor.permute(FIRST) for tensor in out)
        return tuple(tensor.permute(LAST) for tensor in launch(images.permute(FIRST), *parameters, out=given))

    return on_dense


@functools.cache
def _tuner() -> Tuner:
    return Tuner()
