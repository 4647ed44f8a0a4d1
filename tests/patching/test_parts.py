"""Reductions in stages of more tiles than their source has pixels: tiles without a share leave no part."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memcompile.patching.network import Network
from memcompile.solvers.tiling.problem import Stage
from tests.patching.running import run


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
