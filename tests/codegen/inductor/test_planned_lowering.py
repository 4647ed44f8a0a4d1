"""What Inductor is kept to in a planned graph, seen in the trace of its scheduled code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from memcompile.codegen.inductor.trial import lower
from memcompile.step.facts import UNPLANNED, Planned
from memcompile.step.trace import GraphTrace
from tests.planned_eagerly import Planner, unplanned, with_lowering


def lowered(function: Callable[..., Any], inputs: Sequence[torch.Tensor], plan: Planned) -> GraphTrace:
    return lower(make_fx(function, tracing_mode="fake")(*inputs), kind="inference", plan=plan)


def moment(trace: GraphTrace, kind: str, origin: str) -> int:
    """When the buffer that holds a node's value is made or freed."""
    name = next(name for name, buffer in trace.buffers.items() if buffer.origins[0] == origin)
    return next(i for i, event in enumerate(trace.events) if (event.kind, event.name) == (kind, name))


def sliced(x: torch.Tensor, w: torch.Tensor, mask: torch.Tensor, *weights: torch.Tensor) -> list[torch.Tensor]:
    """A product that is read slice by slice, as the steps of a recurrence read their part of a gradient."""
    product = (x @ w) * mask
    return [torch.tanh(product[8 * i : 8 * i + 8]) @ v for i, v in enumerate(weights)]


def test_what_a_planned_storage_is_made_of_dies_where_it_is_made() -> None:
    """Left alone, Inductor computes it again in its first readers, and keeps a buffer of it for the others."""
    inputs = [torch.randn(96, 16), torch.randn(16, 32), torch.randn(96, 32), *(torch.randn(32, 4) for _ in range(12))]
    dies = {}
    for name, plan in (("free", UNPLANNED), ("planned", Planned(stored=frozenset({"mul"})))):
        trace = lowered(sliced, inputs, plan)
        dies[name] = moment(trace, "free", "mm") < moment(trace, "alloc", "mm_1")
    assert dies == {"free": False, "planned": True}


def scales(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two loops that share nothing."""
    return torch.sin(x).sum(0), torch.cos(y).sum(1)


def test_loops_that_a_plan_keeps_apart_are_kernels_of_their_own() -> None:
    """Left alone, all loops between two library calls become one C++ function, whose arguments are alive together."""
    inputs = [torch.randn(64, 32), torch.randn(48, 16)]
    stored = frozenset({"sum_1", "sum_2"})
    kernels = [
        sum(event.kind == "kernel" for event in lowered(scales, inputs, plan).events)
        for plan in (Planned(stored=stored), Planned(stored=stored, apart=stored))
    ]
    assert kernels == [1, 2]


def test_a_trial_lowering_leaves_dynamic_sizes_dynamic() -> None:
    """A saved tensor whose strides hold a size: comparing them with the lowered ones must not fix it."""
    x, y = torch.randn(48, 8, requires_grad=True), torch.randn(48, 8)
    for tensor in (x, y):
        torch._dynamo.mark_dynamic(tensor, 0)
    planner = Planner(unplanned, lowering=with_lowering)
    torch._dynamo.reset()

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ij,ik->jk", a, b) * 0.5

    compiled: Any = torch.compile(product, backend=planner)
    compiled(x, y).sum().backward()
    assert len(planner.planned) == 1
