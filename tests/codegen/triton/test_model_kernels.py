"""Kernels of a whole model for a GPU that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import memcompile
from memcompile.commands import cli
from memcompile.errors import UnknownTargetError
from tests.streaming.test_streaming import FeedForward

SCRIPT = """
import torch
from tests.streaming.test_streaming import FeedForward

def make():
    layers = [FeedForward(64, 256, 16), FeedForward(64, 256, 16), FeedForward(64, 256, 700)]
    return torch.nn.Sequential(*layers).to(torch.bfloat16), (torch.randn(512, 64, dtype=torch.bfloat16),)
"""


@pytest.fixture(autouse=True)
def _fresh(fresh_dynamo: None, compiled: None) -> None:
    pass


def test_equal_chains_share_a_kernel() -> None:
    model = nn.Sequential(FeedForward(64, 256, 16), FeedForward(64, 256, 16), nn.Linear(64, 8)).to(torch.bfloat16)
    found = memcompile.kernels(model, torch.randn(512, 64, dtype=torch.bfloat16), target="cuda:80")
    (kernel,) = found.kernels
    assert (found.chains, found.refused) == (2, ())
    assert kernel.spills == 0
    assert "@triton.jit" in kernel.source
    assert ".version" in kernel.ptx


def test_a_model_without_low_rank_has_none() -> None:
    found = memcompile.kernels(nn.Linear(8, 8), torch.randn(4, 8))
    assert (found.kernels, found.chains, found.refused) == ((), 0, ())


def test_an_unknown_target() -> None:
    with pytest.raises(UnknownTargetError, match="cuda:90"):
        memcompile.kernels(nn.Linear(8, 8), torch.randn(4, 8), target="cuda:1")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "model.py"
    script.write_text(SCRIPT)
    assert cli.main(["kernels", f"{script}:make", "--target", "cuda:90", "--json", "--save", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chains"] >= 2
    assert len(found["kernels"]) == found["chains"] - 1
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".py", ".ttir", ".ptx"}
