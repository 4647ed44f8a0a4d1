"""Operators that take functions (branches, loops, regions) in planned graphs: their bodies come along, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._higher_order_ops.invoke_subgraph import mark_compile_region

from tests.planned_eagerly import Planner, unplanned
from tests.step.test_effects import keep_nothing

N = 8


def branches(x: torch.Tensor) -> torch.Tensor:
    h = (x @ x).tanh()
    y: torch.Tensor = torch.cond(h.sum() > 0, lambda t: (t @ t).sin(), lambda t: t.cos(), (h,)) @ x
    return y


def maps(x: torch.Tensor) -> torch.Tensor:
    from functorch.experimental.control_flow import map

    h = (x @ x).tanh()
    y: torch.Tensor = map(lambda row, w: (row @ w).sin(), h, x.cos()) @ x
    return y


@mark_compile_region
def region(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y).sin() * x


def regions(x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = region(region(x.tanh(), x), (x @ x).cos())
    return y


def constants(x: torch.Tensor) -> torch.Tensor:
    h = (x @ x).tanh()
    y: torch.Tensor = (
        torch.cond(h.sum() > 0, lambda t: t * torch.tensor([2.0, 3.0] * (N // 2), dtype=t.dtype), lambda t: t.cos(), (h,)) @ x
    )
    return y


@pytest.mark.parametrize("program", [branches, maps, regions, constants])
@pytest.mark.parametrize("train", [True, False])
def test_bodies_are_there_in_planned_graphs(
    program: Callable[[torch.Tensor], torch.Tensor], train: bool, fresh_dynamo: None
) -> None:
    def run(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(train)
        with torch.set_grad_enabled(train):
            y = function(x)
        if train:
            y.square().sum().backward()  # type: ignore[no-untyped-call]
        return y.detach(), x.grad

    planner = Planner(keep_nothing)
    found, expected = run(torch.compile(program, backend=planner)), run(program)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert planner.planned
    torch._dynamo.reset()
    torch.testing.assert_close(run(torch.compile(program, backend=Planner(unplanned))), expected, rtol=1e-12, atol=1e-13)
