"""What nodes cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from memcompile.step.cost import CostModel, flops_of, is_extern
from tests.planned_eagerly import DEVICE


def node_of(function: Callable[..., Any], *inputs: Any, name: str) -> fx.Node:
    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    found: fx.Node = next(node for node in graph.nodes if name in node.name)
    return found


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return backward(torch.ones_like(out), q, k, v, out, logsumexp, 0.0, True)


QKV = [torch.randn(2, 4, 64, 16) for _ in range(3)]


@pytest.mark.parametrize(("name", "products"), [("for_cpu", 2), ("for_cpu_backward", 5)])
def test_attention_on_the_cpu_has_flops(name: str, products: int) -> None:
    """PyTorch counts none: such a kernel would be the first that a plan runs again."""
    node = node_of(attention, *QKV, name=f"flash_attention_{name}")
    assert flops_of(node) == products * 2 * (2 * 4) * 64 * 64 * 16
    assert is_extern(node)


def test_library_kernels_have_their_own_speeds() -> None:
    costs = CostModel(replace(DEVICE, attention_speed=0.5, convolution_speed=2.0))
    attends = node_of(attention, *QKV, name="flash_attention_for_cpu")
    convolves = node_of(F.conv2d, torch.randn(1, 8, 16, 16), torch.randn(8, 8, 3, 3), name="conv")
    multiplies = node_of(torch.mm, torch.randn(8, 8), torch.randn(8, 8), name="mm")
    rate = DEVICE.flops(torch.float32)
    assert costs.node_seconds(attends) == pytest.approx(flops_of(attends) / (0.5 * rate))
    assert costs.node_seconds(convolves) == pytest.approx(flops_of(convolves) / (2.0 * rate))
    assert costs.node_seconds(multiplies) == pytest.approx(2 * 8**3 / rate)
