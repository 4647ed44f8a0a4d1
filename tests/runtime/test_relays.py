"""Blocks that are handed on while a step runs: the numbers and the peak stay, nothing outlives its half."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import memcompile
from memcompile.passes.arena import allocate
from memcompile.runtime.measure import measure_peak
from memcompile.runtime.relay import Relays, Turn
from memcompile.runtime.storage import allocator
from memcompile.solvers.places.packing import pack
from tests.passes.arena.test_arena import compiled, gradients, same


class Net(nn.Module):
    """Layers of other widths: Inductor, which reuses buffers of one size, leaves something to do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (64, 256, 192, 128, 224, 96)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).sin()
        return x.square().mean()


@pytest.fixture
def _no_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is placed: all that can be is handed on."""
    torch._dynamo.reset()
    monkeypatch.setattr(allocate, "_placed", lambda *_args: ([], pack([])))


def test_a_block_goes_from_hand_to_hand() -> None:
    relays = Relays(allocator(torch.device("cpu")))
    first = relays.take(Turn(0, 64, first=True), (4, 4), (4, 1), torch.float32)
    address = first.data_ptr()
    middle = relays.take(Turn(0, 64), (8,), (1,), torch.int64)
    last = relays.take(Turn(0, 64, last=True), (2, 3), (1, 2), torch.float32)
    assert middle.data_ptr() == last.data_ptr() == address
    assert (last.shape, last.stride(), last.dtype) == ((2, 3), (1, 2), torch.float32)
    assert relays.blocks == {}, "it lives as long as what took it along"


def test_other_blocks_are_others() -> None:
    relays = Relays(allocator(torch.device("cpu")))
    one, other = (relays.take(Turn(number, 64, first=True), (16,), (1,), torch.float32) for number in (0, 1))
    assert one.data_ptr() != other.data_ptr()


@pytest.mark.usefixtures("_no_arena")
def test_numbers_and_peak() -> None:
    model, x = Net(), torch.randn(512, 64)
    function = compiled(model)

    def step() -> None:
        function(x).backward()
        model.zero_grad(set_to_none=True)

    measured = measure_peak(step, model=model, inputs=x)
    report = memcompile.report(function)
    arena = report.graphs[0]["arena"]
    assert arena is not None
    assert arena.height_bytes == 0 < arena.handed_bytes
    assert arena.calls_after < arena.calls_before
    assert abs(measured.peak_bytes - report.planned_peak_bytes) <= 64
    assert report.planned_peak_bytes <= report.unplanned_peak_bytes + 64 * arena.calls_before
    assert "handed on" in str(report)


@pytest.mark.usefixtures("_no_arena")
def test_two_forwards_before_a_backward() -> None:
    model, inputs = Net(), [torch.randn(512, 64) for _ in range(2)]
    expected = [gradients(compiled(model, "off"), model, x) for x in inputs]
    torch._dynamo.reset()
    function = compiled(model)
    assert same(gradients(function, model, inputs[0]), expected[0])
    assert memcompile.report(function).graphs[-1]["arena"].handed_bytes
    losses = [function(x).pow(2).mean() for x in inputs]
    for loss, wanted in zip(losses, expected, strict=True):
        model.zero_grad(set_to_none=True)
        loss.backward()
        assert same([p.grad for p in model.parameters() if p.grad is not None], wanted)
