"""Nothing is refused of networks that nobody expects it of: low-rank products where no weight is factored, kernels of inverted
residuals where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import memcompile
from memcompile.compiling import dryrun
from memcompile.passes.rows.low_rank import LowRank, RowTools, rewrite_inference, rewrite_training
from memcompile.passes.tiles.interpreted import interpret
from memcompile.step.facts import StepGraphs


class Attending(nn.Module):
    """Convolutions around attention that is written out: ``mix`` is of queries, keys and values [batch, pixels, channels]."""

    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix, self.stem, self.out = mix, nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 3, 3, 1, 1)
        self.query, self.key, self.value, self.project = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        pixels = x.flatten(2).transpose(1, 2)
        mixed = self.project(self.mix(self.query(pixels), self.key(pixels), self.value(pixels)))
        out: Tensor = self.out(x + mixed.transpose(1, 2).reshape(x.shape))
        return out


def _softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query * 0.25 @ key.transpose(1, 2)).softmax(-1) @ value


def _linear(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.softmax(-1) @ (key.softmax(1).transpose(1, 2) @ value)


class Head(nn.Module):
    """A classifier of two layers in a row behind convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(F.dropout(self.first(F.relu(self.stem(x)).mean((2, 3))), 0.1, self.training))
        return out


class Factored(nn.Module):
    """The product of two factors of a layer is returned, too."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(16, 4)), nn.Parameter(torch.randn(4, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.down @ self.up
        return x.flatten(0, 2) @ whole, whole


def _outcomes(module: nn.Module, x: Tensor, *, training: bool, monkeypatch: pytest.MonkeyPatch) -> list[LowRank]:
    """What the pass says of the graphs of a step."""
    done: list[LowRank] = []
    tools = RowTools(interpret, lambda _region: pytest.fail("no kernel was asked for"), dry=True)
    dry_run: Any = dryrun
    partition: Callable[..., StepGraphs] = dry_run.default_partition

    def watched(gm: fx.GraphModule, *arguments: object, **settings: object) -> StepGraphs:
        done.append(rewrite_training(gm, tools))
        return partition(gm, *arguments, **settings)

    monkeypatch.setattr(dryrun, "default_partition", watched)
    graphs = dryrun.captured(module.train(training), {}, args=(x,), training=training)
    return done if training else [rewrite_inference(step.forward, tools) for step in graphs]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("make", [lambda: Attending(_softmax), lambda: Attending(_linear), Head])
def test_nothing_is_refused_where_no_weight_is_factored(
    make: Callable[[], nn.Module], batch: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = _outcomes(make(), torch.randn(batch, 3, 8, 8), training=training, monkeypatch=monkeypatch)
    assert outcomes and not any(done.refused for done in outcomes)


def test_what_could_have_been_expected_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    (done,) = _outcomes(Factored(), torch.randn(2, 3, 8, 16), training=False, monkeypatch=monkeypatch)
    assert done.refused and all("the product of the factors, is used elsewhere" in why for _, _, why in done.refused)


class Separable(nn.Module):
    """Depthwise convolutions that are in no inverted residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.gate, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(F.relu(self.stem(x)))
        out: Tensor = self.last(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))
        return out


@pytest.mark.parametrize("kernel, count", [("auto", 0), ("cpp", 2)])
def test_depthwise_convolutions_are_refused_where_kernels_were_asked_for(kernel: str, count: int) -> None:
    options = {"memory_budget": "90%", "on_infeasible": "best_effort", "patch_kernel": kernel, "lower": False}
    with torch.no_grad():
        (graph,) = memcompile.plan(Separable(), torch.empty(1, 3, 32, 32), options=options).graphs
    assert len([row for row in graph.decisions if row.kind == "refused"]) == count
