"""Which inverted residuals are found in a graph, and which are refused, with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.cost import extra_flops, inverted_flops, saved_bytes
from memcompile.codegen.inverted_residual.program import inverted_residual, inverted_residuals
from memcompile.machine.device import DeviceModel
from tests.codegen.inverted_residual.residuals import Block, graph_of, mobilenet_v2, pixels

H100 = DeviceModel("H100", 2.8e12, {"float32": 5e13, "float16": 6e14}, 2.5e13, 4e-6, 0.0, 1.0, 0.4)


def blocks_of(module: nn.Module, x: torch.Tensor, decomposed: bool = False) -> tuple[InvertedResidual, ...]:
    found = inverted_residuals(graph_of(module.to(x.dtype), x, decomposed)[0])
    assert not found.refused
    return found.blocks


def refusal_of(module: nn.Module, x: torch.Tensor) -> str:
    found = inverted_residuals(graph_of(module, x)[0])
    assert not found.blocks
    (error,) = found.refused
    return str(error)


class Wrapped(Block):
    """A block with something between its layers. ``at``: after which layer."""

    def __init__(self, at: int, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__((8, 8), 24)
        self.at, self.between = at, between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.layers[self.at :](self.between(self.layers[: self.at](x)))
        return out


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
def test_the_blocks_of_mobilenet_v2(decomposed: bool) -> None:
    modules = [module for module, _ in mobilenet_v2(dtype=torch.float32)]
    blocks = blocks_of(nn.Sequential(*modules), pixels(1, 32, 32, 32), decomposed)
    assert len(blocks) == 17
    assert [block.expand is None for block in blocks] == [True] + [False] * 16
    assert [block.adds_input for block in blocks] == [m.residual for m in modules]
    assert [block.channels for block in blocks[:3]] == [(32, 32, 16), (16, 96, 24), (24, 144, 24)]
    assert str(blocks[1]) == "16 -> 96 -> 24 channels, 32 x 32 pixels, 3 x 3 taps, stride 2"
    nodes = [node for block in blocks for node in block.nodes]
    assert len(nodes) == len(set(nodes))
    for first, second in itertools.pairwise(blocks):
        assert first.result is second.input


def test_equal_blocks_have_equal_kernels() -> None:
    modules = [Block((8, 8), 24), Block((8, 8), 24), Block((8, 8), 32)]
    keys = [inverted_residual(block).key for block in blocks_of(nn.Sequential(*modules), pixels(1, 8, 6, 6), True)]
    assert keys[0] == keys[1] != keys[2]


def test_activations_after_the_block_belong_to_it() -> None:
    (block,) = blocks_of(nn.Sequential(Block((8, 8), 24), nn.Hardswish()), pixels(1, 8, 6, 6), True)
    assert block.result.users.keys() == {block.result.graph.output_node()}


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Wrapped(6, lambda t: t * t.mean((2, 3), keepdim=True)), "mean reads what follows it, and is not pointwise"),
        (Wrapped(6, lambda t: t + t.flip(1)), "flip reads what follows it, and is not pointwise"),
        (nn.Conv2d(8, 8, 3, groups=8), "no 1 x 1 convolution follows it"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3)), "no 1 x 1 convolution follows it"),
    ],
)
def test_refusals(module: nn.Module, reason: str) -> None:
    assert reason in refusal_of(module, pixels(1, 8, 6, 6))


def test_an_expanded_tensor_that_is_read_elsewhere() -> None:
    class Both(Block):
        def forward(self, x: torch.Tensor) -> Any:
            wide = self.layers[:3](x)
            return self.layers[3:](wide), wide

    assert "is read outside of the block" in refusal_of(Both((8, 8), 24), pixels(1, 8, 6, 6))


def test_what_one_kernel_costs() -> None:
    (block,) = blocks_of(Block((24, 24), 144), pixels(64, 24, 56, 56, torch.float16))
    area = 64 * 56 * 56
    assert saved_bytes(block) == 2 * 2 * area * 144
    for lines, expansions in ((1, 9), (2, 6), (4, 4.5)):
        assert block.expansions(lines) == expansions
        assert extra_flops(block, lines) == 2 * area * 24 * 144 * (expansions - 1)
        assert inverted_flops(block, lines) == 2 * area * 144 * (24 + 9 + 24) + extra_flops(block, lines)


def test_one_kernel_wins_where_memory_is_the_limit() -> None:
    def wins(channels: tuple[int, int], mid: int, size: int, images: int, taps: int = 3) -> bool:
        (block,) = blocks_of(Block(channels, mid, taps), pixels(images, channels[0], size, size, torch.float16))
        return inverted_residual(block).cost(H100).wins

    assert wins((24, 24), 144, 56, 64)
    assert not wins((160, 160), 960, 7, 1)
    assert not wins((40, 40), 240, 28, 64, taps=7)
