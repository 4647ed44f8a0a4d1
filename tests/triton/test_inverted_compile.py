"""Fused inverted residuals compiled for GPUs that are not there: no spills, and no more shared memory than a block has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import memcompile
from memcompile.codegen.inverted import inverted_residual, inverted_residuals
from memcompile.codegen.triton.compile import compile_for
from memcompile.codegen.triton.configs import TARGETS
from memcompile.codegen.triton.inverted.kernel import InvertedKernel
from tests.triton.residuals import Block, graph_of, mobilenet_v2, pixels


def kernel_of(module: nn.Module, x: torch.Tensor) -> InvertedKernel:
    (block,) = inverted_residuals(graph_of(module.to(x.dtype), x, decomposed=True)[0]).blocks
    return inverted_residual(block, "block")


def distinct_blocks(images: int) -> dict[str, InvertedKernel]:
    """The kernels of MobileNetV2's blocks at 224 x 224, each different one once."""
    kernels = (kernel_of(module, pixels(*shape, torch.float16)) for module, shape in mobilenet_v2(images=images))
    return {kernel.key: kernel for kernel in kernels}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("images", [1, 64])
def test_mobilenet_v2(compiled, target, images):
    kernels = distinct_blocks(images)
    assert len(kernels) == 12
    for kernel in kernels.values():
        (part,) = compile_for(kernel, target)
        assert part.spills == 0 and 0 < part.registers <= 255, str(kernel.block)
        assert part.shared_bytes <= TARGETS[target].shared_bytes


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(compiled, dtype, target):
    (part,) = compile_for(kernel_of(Block((40, 40), 240, 5, act=nn.Hardswish), pixels(4, 40, 28, 28, dtype)), target)
    assert part.spills == 0
    assert part.shared_bytes <= TARGETS[target].shared_bytes
    assert "tf32" not in part.ptx


def test_generated_modules_pass_ruff(tmp_path):
    modules = [Block((24, 32), 50, 5, 2), Block((8, 8), 24, norm=False), Block((16, 16), 16, act=nn.SiLU)]
    for i, module in enumerate(modules):
        kernel = kernel_of(module, pixels(1, module.layers[0].in_channels, 6, 6))
        (tmp_path / f"kernel{i}.py").write_text(kernel.source)
    settings = Path(__file__).parents[2] / "pyproject.toml"
    command = [sys.executable, "-m", "ruff", "check", "--config", str(settings), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_names_have_to_be_identifiers():
    (block,) = inverted_residuals(graph_of(Block((8, 8), 24), pixels(1, 8, 6, 6))[0]).blocks
    with pytest.raises(ValueError, match="identifier"):
        inverted_residual(block, "graph 0/0")


def test_the_kernels_of_a_model(compiled, fresh_dynamo):
    model = nn.Sequential(Block((8, 8), 24), Block((8, 8), 24), Block((8, 16), 32, stride=2), nn.Conv2d(16, 16, 3, groups=16))
    found = memcompile.kernels(model.half().eval(), pixels(1, 8, 12, 12, torch.float16), target="cuda:80")
    assert (found.chains, found.blocks) == (0, 3)
    assert [kernel.name for kernel in found.kernels] == [f"inverted_residual_{i}_kernel" for i in range(2)]
    ((_, _, reason),) = found.refused
    assert "no 1 x 1 convolution follows it" in reason
    assert '"blocks": 3' in found.to_json()
