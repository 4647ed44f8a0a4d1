"""Scratch of library kernels that is measured: what the cache file knows, and what a dry run may not do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import memcompile
from memcompile.machine import cache
from memcompile.runtime import workspace
from memcompile.runtime.measure import measure_peak
from memcompile.runtime.workspace import measuring, workspace_bytes

aten = torch.ops.aten
mkldnn: Any = torch.backends.mkldnn

pytestmark = pytest.mark.usefixtures("own_cache")


def patch_embedding_gradient() -> tuple[torch._ops.OpOverload, tuple[Any, ...]]:
    image, weight = (torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.randn(64, 3, 16, 16).to(memory_format=torch.channels_last)
    gradient = torch.randn(2, 64, 4, 4).to(memory_format=torch.channels_last)
    settings = ([16, 16], [0, 0], [1, 1], False, [0, 0], 1, [False, True, True])
    return aten.convolution_backward.default, (gradient, image, weight, [64], *settings)


def test_measured_once_then_read_from_the_cache_file(monkeypatch: pytest.MonkeyPatch) -> None:
    op, args = patch_embedding_gradient()
    with measuring():
        first = workspace_bytes(op, args, {})
    assert first is not None
    assert first > 0
    monkeypatch.setattr(workspace, "_measure", lambda *_: pytest.fail("measured again"))
    cache.forget()
    with measuring():
        assert workspace_bytes(op, args, {}) == first
    cache.forget()
    assert workspace_bytes(op, args, {}) == first  # a dry run reads, too


def test_nothing_runs_outside_of_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    op, args = patch_embedding_gradient()
    monkeypatch.setattr(workspace, "_measure", lambda *_: pytest.fail("ran"))
    assert workspace_bytes(op, args, {}) is None


def test_another_shape_and_another_stride_are_other_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([1, 2, 3])
    monkeypatch.setattr(workspace, "_measure", lambda *_: next(taken))
    x = torch.randn(4, 4)
    with measuring():
        found = [workspace_bytes(aten.mm.default, (x, y), {}) for y in (x, x.t(), x[:, :2], torch.randn(4, 4))]
    assert found == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.bernoulli.default, (torch.rand(8),)),
        (aten.relu_.default, (torch.rand(8),)),
        (aten.embedding.default, (torch.rand(8, 2), torch.tensor([1]))),
        (aten.linalg_cholesky_ex.default, (torch.rand(2, 3),)),
    ],
    ids=["random", "in place", "integers", "refused by the op"],
)
def test_what_is_not_measured(op: torch._ops.OpOverload, args: tuple[Any, ...]) -> None:
    state = torch.random.get_rng_state()
    with measuring():
        assert workspace_bytes(op, args, {}) is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_profiler_of_the_user_is_left_alone() -> None:
    op, args = patch_embedding_gradient()
    with torch.profiler.profile(), measuring():
        assert workspace_bytes(op, args, {}) is None


class PatchEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 192, 16, 16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.project(image).relu().mean()
        return out


@pytest.mark.skipif(not mkldnn.is_available(), reason="this build convolves without oneDNN")
def test_the_planned_peak_counts_what_the_kernel_takes() -> None:
    """A weight gradient of patches takes several times the weight, which no formula says."""
    torch._dynamo.reset()
    model = PatchEmbedding()
    image = torch.randn(4, 3, 112, 112)
    compiled = torch.compile(model, backend="memcompile")

    def step() -> None:
        model.zero_grad()
        compiled(image).backward()

    step()
    planned = memcompile.report(compiled).planned_peak_bytes
    measured = measure_peak(step, model=model, inputs=(image,)).peak_bytes
    assert planned == pytest.approx(measured, rel=1e-3)


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        inner = [layer for _ in range(2) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.GELU())]
        super().__init__(nn.Conv2d(3, 16, 4, 4), nn.GELU(), *inner)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(image).square().mean()  # type: ignore[no-untyped-call]
        return out


@pytest.mark.skipif(not mkldnn.is_available(), reason="this build convolves without oneDNN")
def test_a_first_process_plans_as_later_ones_do() -> None:
    """Nothing measured yet, then everything: the same plan for the same budget, and what it takes keeps the budget."""
    image = torch.randn(8, 3, 128, 128)
    found = []
    for _ in range(2):
        cache.forget()
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Convolutions()
        compiled = torch.compile(model, backend="memcompile", options={"memory_budget": "80%"})

        def step(model: nn.Module = model, compiled: Any = compiled) -> None:
            model.zero_grad()
            compiled(image).backward()

        step()
        report = memcompile.report(compiled)
        (graph,) = report.graphs
        measured = measure_peak(step, model=model, inputs=(image,)).peak_bytes
        assert graph.budget_bytes is not None and measured <= graph.budget_bytes
        found.append((graph.budget_bytes, graph.planned_peak_bytes, measured, [d.storage for d in graph.decisions]))
    assert found[0] == found[1]
    assert any(cache.directory().glob("workspace-*"))
