"""Nodes of a network of images that make no tensor: checks of values run once, and what they read is kept for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import memcompile
from tests.passes.tiles.running import network, run
from tests.passes.tiles.stages import random_stages


class Checked(nn.Module):
    """Two convolutions with a check behind the first, and one behind the second."""

    def __init__(self, check: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.check, self.last = check, last
        self.first, self.second = nn.Conv2d(3, 5, 3, 1, 1), nn.Conv2d(5, 5, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.check(F.relu(self.first(x)))))


def _finite(x: Tensor) -> Tensor:
    torch._assert_async(x.isfinite().all(), "not finite")
    return x


def _bounded(x: Tensor) -> Tensor:
    torch._assert_async(x.amax() < 1e9, "too large")
    torch._assert_async(x.mean((2, 3)).min() > -1e9, "too small")
    return x


def _classes(x: Tensor) -> Tensor:
    return F.one_hot(x.argmax(1), 5)


def _same(x: Tensor) -> Tensor:
    return x


CASES = [(_finite, _same), (_bounded, _finite), (_same, _classes), (_finite, _classes)]


@pytest.mark.parametrize("check, last", CASES)
def test_checks_are_made_once_whatever_the_stages(check: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor]) -> None:
    module, x = Checked(check, last).double(), torch.randn(1, 3, 12, 12).double()
    for seed in range(3):
        ran = run(module, random_stages(seed), x)
        assert ran.module is not None
        made = [node for node in ran.module.graph.nodes if "_assert_async" in str(node.target)]
        checks: dict[object, int] = {_finite: 1, _bounded: 2, _classes: 2, _same: 0}
        assert len(made) == sum(checks[part] for part in (check, last))
        with torch.no_grad():
            torch.testing.assert_close(ran.results[0], module(x), rtol=1e-12, atol=1e-12)


def test_a_check_that_fails_still_fails_on_tiles() -> None:
    module, x = Checked(_finite, _same), torch.full((1, 3, 12, 12), torch.inf)
    with pytest.raises(RuntimeError, match="not finite"):
        run(module, random_stages(0), x)


def test_what_makes_no_tensor_takes_no_bytes() -> None:
    found = network(Checked(_same, _classes), torch.randn(1, 3, 12, 12)).problem
    checks = [operator for operator in found.operators if "_assert_async" in operator.name]
    assert [(x.kind, x.size_bytes) for x in checks] == [("whole", 0)] * 2


@pytest.mark.parametrize("options", [{"memory_budget": "10GiB"}, {"patch": {"max_overhead": 0.5}}])
def test_one_hot_behind_an_image_is_planned(options: dict[str, object]) -> None:
    with torch.no_grad():
        report = memcompile.plan(Checked(_same, _classes).eval(), torch.empty(1, 3, 32, 32), options=options)
    assert report.graphs[0].planned_peak_bytes > 0
