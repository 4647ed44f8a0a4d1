"""Circular padding is one gather of known pixels; other copies of parts of images stay as they are, and are named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import memcompile
from memcompile.passes.tiles.wrapping import gather_copies
from memcompile.step.fxutil import op_name
from tests.passes.tiles.running import compiled, run
from tests.passes.tiles.stages import random_stages


class Padded(nn.Module):
    """A convolution on each side of some padding."""

    def __init__(self, pad: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pad, self.first, self.second = pad, nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.second(self.pad(self.first(x)))
        return made


def _names(module: nn.Module, x: Tensor) -> tuple[list[str], Tensor]:
    """The operators of the rewritten graph, and what it computes."""
    names: list[str] = []

    def compiler(gm: fx.GraphModule, _inputs: object) -> Callable[..., object]:
        gather_copies(gm.graph)
        gm.graph.lint()
        gm.recompile()
        names.extend(op_name(node) for node in gm.graph.nodes if node.op == "call_function")
        return gm.forward

    return names, compiled(module, compiler)(x)


@pytest.mark.parametrize("pad", [(1, 1, 1, 1), (3, 0, 0, 2), (0, 0, 5, 4), (7, 8, 6, 7)])
def test_circular_padding_is_one_gather(pad: tuple[int, ...]) -> None:
    module, x = Padded(lambda y: F.pad(y, pad, mode="circular")), torch.randn(2, 3, 8, 9)
    names, found = _names(module, x)
    assert names.count("_unsafe_index") == 1 and not {"slice_scatter", "copy", "empty"} & set(names)
    with torch.no_grad():
        assert torch.equal(found, module(x))


def _overwritten(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 2:4, 1:] = x[:, :, 4:6, :-1] + 1
    return y


def _channels(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3] = x[:, 0:2]
    return y


def _twice(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, ::2] = x[:, :, 1::2]
    return y


@pytest.mark.parametrize("change", [_overwritten, _channels, _twice])
def test_other_copies_stay(change: Callable[[Tensor], Tensor]) -> None:
    module, x = Padded(change), torch.randn(2, 3, 8, 9)
    names, found = _names(module, x)
    assert "_unsafe_index" not in names
    with torch.no_grad():
        assert torch.equal(found, module(x))


@pytest.mark.parametrize("seed", range(6))
def test_tiles_read_around_the_edge(seed: int) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=2, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
    ).double()
    x = torch.randn(1, 3, 12, 11).double()
    ran = run(module, random_stages(seed), x)
    with torch.no_grad():
        torch.testing.assert_close(ran.results[0], module(x), rtol=1e-13, atol=1e-13)


def test_a_network_with_circular_padding_takes_less() -> None:
    module = Padded(lambda y: F.pad(y, (1, 1, 1, 1), mode="circular")).eval()
    with torch.no_grad():
        report = memcompile.plan(module, torch.empty(1, 3, 64, 64), options={"patch": {"max_overhead": 1.0}})
    (graph,) = report.graphs
    assert graph.planned_peak_bytes < 0.8 * graph.unplanned_peak_bytes


def test_what_stops_the_tiles_is_named() -> None:
    module = Padded(lambda y: y.sort(dim=1).values).eval()
    with torch.no_grad():
        report = memcompile.plan(module, torch.empty(1, 3, 64, 64), options={"patch": {"max_overhead": 1.0}})
    (graph,) = report.graphs
    assert graph["patch"] is not None
    assert "sort is not known to run on pixels" in graph["patch"].refused
    assert "test_wrapping.py:" in graph["patch"].refused
