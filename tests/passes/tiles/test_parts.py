"""Reductions in stages of more tiles than their source has pixels: tiles without a share leave no part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memcompile.passes.tiles.network import Network
from memcompile.solvers.tiling.problem import Stage, StageKind
from tests.passes.tiles.running import run


class Enlarged(nn.Module):
    """A small image that is reduced as well as enlarged."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.small(x)
        return x.amax((2, 3)), self.large(F.interpolate(x, scale_factor=4))


def _tiled(network: Network) -> tuple[Stage, ...]:
    count = len(network.problem.operators)
    return Stage(0, 1, "layerwise"), Stage(1, count, "patches", (4, 4))


def test_every_part_is_written() -> None:
    torch.manual_seed(0)
    model, x = Enlarged().eval(), torch.randn(1, 4, 2, 2)
    ran = run(model, _tiled, x)
    with torch.no_grad():
        for found, expected in zip(ran.results, model(x), strict=True):
            torch.testing.assert_close(found, expected)
    (patched,) = ran.patched
    parts = {i: buffer.shape[0] for i, buffer in enumerate(patched.program.results) if len(buffer.shape) == 5}
    assert parts
    for index, count in parts.items():
        views = [view for _, views in patched.program.tiles for view in views if (view.where, view.index) == ("result", index)]
        assert sorted(view.cuts[0][1] for view in views) == list(range(count))


class Normed(nn.Module):
    """Instance normalisation: what it reduces and the mean and the variance are read by the operator behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)
        self.norm = nn.InstanceNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(F.relu(self.norm(self.b(F.relu(self.norm(self.a(x)))))))
        return out


@pytest.mark.parametrize("first, last", [(1, 3), (2, 3), (3, 6), (4, 6), (5, 6)])
@pytest.mark.parametrize("kind", ["patches", "rows"])
def test_a_stage_leaves_an_image_and_its_statistics(kind: StageKind, first: int, last: int) -> None:
    torch.manual_seed(0)
    model, x = Normed().double(), torch.randn(1, 3, 12, 12).double()

    def choose(network: Network) -> tuple[Stage, ...]:
        kinds = [operator.kind for operator in network.problem.operators]
        assert kinds == ["input", "local", "reduction", "local", "local", "reduction", "local", "local"]
        tiled = Stage(first, last, kind, (2, 2 if kind == "patches" else 1))
        return Stage(0, first, "layerwise"), tiled, Stage(last, len(kinds), "layerwise")

    ran = run(model, choose, x)
    assert len(ran.patched) == 1
    with torch.no_grad():
        torch.testing.assert_close(ran.results[0], model(x), rtol=1e-12, atol=1e-12)
