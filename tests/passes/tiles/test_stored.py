"""Sums of images that several operators read are one image, not two addends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memcompile.passes.tiles.network import Network
from memcompile.runtime.stored import STORED
from memcompile.solvers.tiling.problem import Stage
from tests.passes.tiles.running import run


class Summed(nn.Module):
    """Two sums: the first is read twice, the second once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, 1, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) + self.b(x)
        out: Tensor = self.d(x + self.c(x))
        return out


def _tail(network: Network) -> tuple[Stage, ...]:
    """The last operator in tiles, the others layer by layer."""
    count = len(network.problem.operators)
    return Stage(0, count - 1, "layerwise"), Stage(count - 1, count, "patches", (2, 2))


def test_a_sum_that_is_read_twice_gets_a_buffer() -> None:
    torch.manual_seed(0)
    model, x = Summed().eval(), torch.randn(1, 4, 16, 16)
    ran = run(model, _tail, x)
    with torch.no_grad():
        torch.testing.assert_close(ran.results[0], model(x))
    assert ran.module is not None
    stored = [node for node in ran.module.graph.nodes if node.target is STORED]
    assert [node.args[0].name for node in stored] == ["add"]
