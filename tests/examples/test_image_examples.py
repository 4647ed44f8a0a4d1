"""The examples for images: what they show beside each other, and the network that interpolates."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the examples are no installed package

from benchmarks.patch_nets import SuperResolution
from examples import patch_vision, vae_decode
from examples.side_by_side import OURS, Contender, contend, difference, tabulate
from memcompile.errors import MemcompileError
from memcompile.runtime.arena import BLOCKS


def test_the_enlarged_picture_is_the_smoothed_one() -> None:
    torch.manual_seed(0)
    network = patch_vision.interpolating(SuperResolution(1, width=8, growth=4)).eval()
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16).contiguous()
    with torch.no_grad():
        enlarged = network(ramp)
    assert enlarged.shape == (1, 3, 64, 64)
    inner = enlarged[0, :, 16:48, 16:48]
    expected = torch.linspace(-0.375, 15.375, 64)[16:48] / 15  # centres of a quarter of a pixel
    torch.testing.assert_close(inner, expected.expand(3, 32, 32), atol=0.02, rtol=0)
    assert (inner.diff(dim=-1) >= 0).all()


def test_a_contender_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: what this one keeps for other ways is not counted."""
    monkeypatch.setattr(BLOCKS, "reserved_bytes", lambda _: 10**9)
    x = torch.randn(1, 3, 32, 32)
    found = contend("eager", functools.partial(nn.Conv2d, 3, 4, 1), x)
    assert found.entry_bytes == 4 * (4 * 3 + 4 + 3 * 32 * 32)
    assert 4 * 4 * 32 * 32 <= found.transient_bytes < 10**6
    assert found.output.shape == (1, 4, 32, 32)
    assert difference(found.output, 1.5 * found.output) == pytest.approx(0.5)


def test_what_memcompile_refuses_arrives() -> None:
    with pytest.raises(MemcompileError, match="UnknownOptionError: options has no entry 'budget'"):
        contend("memcompile", functools.partial(nn.Conv2d, 3, 4, 1), torch.ones(1, 3, 4, 4), OURS, {"budget": 1})


def test_the_table_compares_activations_with_plains() -> None:
    first = Contender("torch.compile", np.array([1.0, -2.0]), 5 * 2**20, 2**20, 0.5)
    second = Contender("memcompile", np.array([1.0, -1.5]), 2 * 2**20, 2**20, 0.75)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(tabulate("both", [first, second], "torch.compile"))
    line = next(line for line in captured.get().splitlines() if "memcompile" in line)
    assert [text in line for text in ("2.00 MiB", "1.00 MiB", "0.25", "0.75 s", "2.5e-01")] == [True] * 5


def test_arguments_become_options() -> None:
    assert vae_decode.options_of(vae_decode._arguments([])) == {"patch": {"max_overhead": 0.1}}
    assert vae_decode.options_of(vae_decode._arguments(["--budget", "600MiB"])) == {"memory_budget": "600MiB"}
    assert vae_decode.options_of(vae_decode._arguments(["--budget", "1000"])) == {"memory_budget": 1000}
    assert vae_decode._arguments(["--quick"]).size == 128
    assert patch_vision._arguments(["--quick"]).height == 512
