"""Scratch memory of library kernels, against what the profiler sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from memcompile.codegen.inductor.scratch import scratch_bytes
from memcompile.runtime.measure import highest_sum, record_allocations

aten = torch.ops.aten
mkldnn: Any = torch.backends.mkldnn


def predicted_and_measured(op: Any, *args: Any) -> tuple[int, int]:
    op(*args)
    taken = highest_sum(record_allocations(lambda: op(*args)), {})
    found = op(*args)
    results = [found] if isinstance(found, torch.Tensor) else [t for t in found if isinstance(t, torch.Tensor)]
    graph = make_fx(lambda *tensors: op(*tensors), tracing_mode="fake")(*args).graph
    node = next(n for n in graph.nodes if n.target is op)
    return scratch_bytes(node), taken - sum(t.untyped_storage().nbytes() for t in results)


@pytest.mark.parametrize("length", [48, 256, 800])
@pytest.mark.parametrize("contiguous", [False, True], ids=["gradient in place", "gradient copied"])
def test_attention(length: int, contiguous: bool) -> None:
    q = torch.randn(2, length, 2, 16).transpose(1, 2)
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(q, q, q, 0.0, True)
    predicted, measured = predicted_and_measured(aten._scaled_dot_product_flash_attention_for_cpu.default, q, q, q, 0.0, True)
    assert predicted == measured > 0
    gradient = q.contiguous() if contiguous else q
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    predicted, measured = predicted_and_measured(backward, gradient, q, q, q, out, logsumexp, 0.0, True)
    assert predicted == measured > 0


@pytest.mark.skipif(not mkldnn.is_available(), reason="this build convolves without oneDNN")
@pytest.mark.parametrize(("channels", "size", "kernel"), [(8, 24, 3), (64, 14, 3), (64, 14, 1)])
def test_convolution(channels: int, size: int, kernel: int) -> None:
    """oneDNN picks its blocks by processor: within a few kilobytes."""
    x, gradient = (torch.randn(2, channels, size, size).to(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.randn(channels, channels, kernel, kernel).to(memory_format=torch.channels_last)
    settings = ([1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], 1)
    for op, *arguments in (
        (aten.convolution.default, x, weight, None, *settings),
        (aten.convolution_backward.default, gradient, x, weight, [0], *settings, [True, True, False]),
    ):
        predicted, measured = predicted_and_measured(op, *arguments)
        assert abs(predicted - measured) <= 16 * 1024


@pytest.mark.skipif(not mkldnn.is_available(), reason="this build convolves without oneDNN")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("source", ["last", "part of last"])
@pytest.mark.parametrize("gradient", ["dense", "last", "part", "part of last"])
def test_a_convolution_in_channels_last_copies_what_is_not_dense(transposed: bool, source: str, gradient: str) -> None:
    """The gradient of a part of a concatenation lies between those of the others."""

    def image(layout: str) -> torch.Tensor:
        whole = torch.randn(2, 32 if "part" in layout else 16, 24, 24)
        whole = whole.to(memory_format=torch.channels_last) if "last" in layout else whole
        return whole[:, 16:] if "part" in layout else whole

    weight, settings = torch.randn(16, 16, 3, 3), ([1, 1], [1, 1], [1, 1], transposed, [0, 0], 1)
    forward = predicted_and_measured(aten.convolution.default, image(source), weight, None, *settings)
    arguments = (image(gradient), image(source), weight, [0], *settings, [True, True, False])
    backward = predicted_and_measured(aten.convolution_backward.default, *arguments)
    for predicted, measured in (forward, backward):
        assert abs(predicted - measured) <= 32 * 1024  # an image: 73,728 bytes


def test_everything_else_takes_none() -> None:
    graph = make_fx(lambda a: (a @ a).relu(), tracing_mode="fake")(torch.randn(8, 8)).graph
    assert [scratch_bytes(node) for node in graph.nodes if node.op == "call_function"] == [0, 0]
