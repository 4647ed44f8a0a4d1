"""Triton kernels for low-rank chains: which chains get one, and the kernel of a region."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from memcompile.codegen.triton.kernel import GeneratedKernel, generate
from memcompile.codegen.triton.tune import Tuner
from memcompile.errors import MissingTritonError
from memcompile.streaming.program import FusedRows, Program, fused_program
from memcompile.streaming.region import RowRegion, flat_body

FEW_ROWS = 64
"""Below them a program a block of rows would leave most of a GPU idle: the columns are split instead."""
FUSED_RANK = 128
"""Widest rank for which one kernel is taken unasked. Beyond, library products on blocks of rows are about as fast (roofline in
FlashSVD's shapes), and from 512 on registers spill."""


def kernel_of(region: RowRegion, name: str) -> GeneratedKernel:
    """The kernel of a region. Raises NotRowLocalError or KernelRefusedError."""
    rows = [place is not None for _, place in region.operands]
    return generate(flat_body(region), rows, name=name, method="decode" if region.total < FEW_ROWS else "rows")


def fuse(region: RowRegion, *, run: bool = True) -> Program:
    """The program that runs a region by one kernel. Raises NotRowLocalError, KernelRefusedError or MissingTritonError.

    ``run``: False in a dry run, where nothing is imported.
    """
    kernel = kernel_of(region, "low_rank")
    device: torch.device = region.results[0].meta["val"].device
    launch = kernel.load(_tuner() if device.type == "cuda" else None) if run else None
    return fused_program(region, flat_body(region), FusedRows(launch, kernel.source), device)


@functools.cache
def _tuner() -> Tuner:
    return Tuner()


def fused_refusal(device: torch.device) -> str:
    """Why no Triton kernel runs on a device; empty when one does."""
    if importlib.util.find_spec("triton") is None:
        return str(MissingTritonError())
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return "" if device.type == "cuda" or interpreted else "Triton kernels run on CUDA devices, or with TRITON_INTERPRET=1"
