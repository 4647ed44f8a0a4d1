"""Chains of inverted residuals as kernels: generated, compiled, and run within guarded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memcompile.codegen.cpp.chain import RowChain, link_of, runs_of
from memcompile.codegen.cpp.kernel import RowsKernel, generate_rows
from memcompile.codegen.inverted_residual.match import inverted_residuals
from tests.codegen.inverted_residual.residuals import graph_of

GUARD = 4096
"""Bytes behind the workspace and the result that a kernel must leave alone."""


@dataclass(frozen=True)
class Rows:
    """The one chain of a module, as a kernel, and its operands."""

    kernel: RowsKernel
    operands: tuple[Tensor, ...]

    def run(self, threads: int = 2) -> Tensor:
        """The result. What the kernel works in is full of nan."""
        value = self.kernel.chain.result.meta["val"]
        count, channels, height, width = value.shape
        floats = torch.full((value.numel() + GUARD // 4,), torch.nan)
        result = floats[: value.numel()].view(count, height, width, channels).permute(0, 3, 1, 2)
        size = self.kernel.workspace_bytes(threads)
        workspace = torch.full((size + GUARD,), 255, dtype=torch.uint8)
        self.kernel.load(threads)(*self.operands, out=(result,), workspace=workspace[:size])
        assert floats[value.numel() :].isnan().all(), "written behind the result"
        assert (workspace[size:] == 255).all(), "written behind the workspace"
        return result


def rows_of(module: nn.Module, x: Tensor, decomposed: bool = False) -> Rows:
    """The kernel of a module that is one chain."""
    graph, tensors = graph_of(module, x, decomposed)
    found = inverted_residuals(graph, dense=True)
    assert not found.refused, found.refused
    (run,) = runs_of(found.blocks)
    kernel = generate_rows(RowChain(tuple(map(link_of, run))))
    return Rows(kernel, tuple(tensors[node] for node in kernel.chain.operands))


class Stem(nn.Sequential):
    """A convolution of all channels and what follows it: it expands the block behind it."""

    def __init__(self, channels: int, mid: int, taps: int = 3, stride: int = 2, act: nn.Module | None = None) -> None:
        super().__init__(nn.Conv2d(channels, mid, taps, stride, taps // 2), act or nn.ReLU6())


def with_whole_numbers(module: nn.Module, *shape: int) -> Tensor:
    """Images of small whole numbers, and such weights: sums are exact in fp32 in any order."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
    return torch.randint(-2, 3, shape).float().to(memory_format=torch.channels_last)
