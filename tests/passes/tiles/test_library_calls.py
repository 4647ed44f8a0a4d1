"""What tiles on the CPU call: enlargements as one call, activations inside convolutions, large weights packed by parts."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from memcompile.passes.tiles.activations import restore
from memcompile.passes.tiles.interpreted import peak_bytes
from memcompile.passes.tiles.network import Network
from memcompile.passes.tiles.packing import CHUNK_BYTES, repacked
from memcompile.solvers.tiling.problem import Stage
from tests.passes.tiles.running import Ran, network, run


class Enlarging(nn.Module):
    """A convolution with an activation, an enlargement, and a convolution of that."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.first, self.second, self.factor = nn.Conv2d(4, 8, 3, 1, 1), nn.Conv2d(8, 4, 3, 1, 1), factor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(F.interpolate(F.leaky_relu(self.first(x), 0.2), scale_factor=self.factor))
        return out


def _all_in(kind: str, grid: tuple[int, int]) -> object:
    def choose(found: Network) -> tuple[Stage, ...]:
        count = len(found.problem.operators)
        return Stage(0, 1, "layerwise"), Stage(1, count, kind, grid)  # type: ignore[arg-type]

    return choose


def _calls(ran: Ran) -> list[fx.Node]:
    (patched,) = ran.patched
    return [node for body in patched.program.bodies.values() for node in body.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("kind, grid", [("rows", (5, 1)), ("patches", (3, 3))])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_enlargements_by_powers_of_two_gather_nothing(kind: str, grid: tuple[int, int], factor: int) -> None:
    torch.manual_seed(0)
    model, x = Enlarging(factor).eval(), torch.randn(2, 4, 11, 13)
    ran = run(model, _all_in(kind, grid), x)  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(ran.results[0], model(x))
    names = {str(node.target) for node in _calls(ran)}
    assert ("aten._unsafe_index.Tensor" in names) == (factor == 3)


def test_an_activation_runs_inside_the_convolution_before_an_enlargement() -> None:
    model, x = Enlarging().eval(), torch.randn(1, 4, 12, 12)
    assert "convolution" not in {node.name for node in network(model, x).values}
    ran = run(model, _all_in("rows", (4, 1)), x)  # type: ignore[arg-type]
    pointwise = [node for node in _calls(ran) if "_convolution_pointwise" in str(node.target)]
    assert {node.args[7] for node in pointwise} == {"leaky_relu", "none"}
    assert not any("where" in str(node.target) for node in _calls(ran))


def test_a_large_weight_is_packed_by_parts() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 256, 3, 1, 1), nn.Conv2d(256, 512, 3, 1, 1)).eval(), torch.randn(1, 4, 8, 8)
    weight_bytes = 256 * 512 * 9 * 4
    ran = run(model, _all_in("rows", (4, 1)), x)  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(ran.results[0], model(x), atol=1e-4, rtol=1e-4)
    parts = [node.meta["val"] for node in _calls(ran) if node.target is repacked]
    assert parts and max(part.numel() * part.itemsize for part in parts) <= CHUNK_BYTES < weight_bytes
    (patched,) = ran.patched
    assert max(peak_bytes(body.graph) for body in patched.program.bodies.values()) < weight_bytes


def test_an_activation_is_found_only_where_nothing_else_is_said() -> None:
    """``add(x, 3, alpha=2)`` is no part of a hardswish."""

    def swish(x: Tensor, alpha: float) -> Tensor:
        x = x.sin() * 8
        moved = torch.ops.aten.add.Tensor(x, 3, alpha=alpha) if alpha != 1 else torch.ops.aten.add.Tensor(x, 3)
        high = torch.ops.aten.clamp_max.default(torch.ops.aten.clamp_min.default(moved, 0), 6)
        y: Tensor = torch.ops.aten.div.Tensor(torch.ops.aten.mul.Tensor(x, high), 6)
        return y

    x = torch.linspace(-8, 8, 33)
    for alpha in (1, 2):
        traced = make_fx(functools.partial(swish, alpha=alpha), tracing_mode="fake")(x)
        restore(traced.graph, lambda target, args, kwargs, _like: traced.graph.call_function(target, args, kwargs))  # noqa: B023
        traced.recompile()
        targets = {node.target for node in traced.graph.nodes}
        assert (torch.ops.aten.hardswish.default in targets) == (alpha == 1)
        torch.testing.assert_close(traced(x), swish(x, alpha))
