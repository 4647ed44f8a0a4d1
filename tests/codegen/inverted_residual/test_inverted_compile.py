"""Fused inverted residuals compiled for GPUs that are not there: no spills, and no more shared memory than a block has."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from expecttest import TestCase
from torch import nn

import memcompile
from memcompile.codegen.inverted_residual.kernel import InvertedKernel, generate_inverted
from memcompile.codegen.inverted_residual.program import inverted_residual, inverted_residuals
from memcompile.codegen.triton.compile import compile_for
from memcompile.codegen.triton.configs import TARGETS
from tests.codegen.inverted_residual.residuals import Block, graph_of, mobilenet_v2, pixels


def kernel_of(module: nn.Module, x: torch.Tensor) -> InvertedKernel:
    (block,) = inverted_residuals(graph_of(module.to(x.dtype), x, decomposed=True)[0]).blocks
    return inverted_residual(block, "block")


@functools.cache
def distinct_blocks(images: int) -> dict[str, InvertedKernel]:
    """The kernels of MobileNetV2's blocks at 224 x 224, each different one once."""

    def images_of(shape: torch.Size) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float16, memory_format=torch.channels_last)

    kernels = (kernel_of(module, images_of(shape)) for module, shape in mobilenet_v2(images=images))
    return {kernel.key: kernel for kernel in kernels}


@pytest.mark.parametrize(("target", "images"), [("cuda:80", 1), ("cuda:90", 64)])
def test_mobilenet_v2(compiled: None, target: str, images: int) -> None:
    kernels = distinct_blocks(images)
    assert len(kernels) == 12
    for kernel in kernels.values():
        (part,) = compile_for(kernel, target)
        assert part.spills == 0 and 0 < part.registers <= 255, str(kernel.block)
        assert part.shared_bytes <= TARGETS[target].shared_bytes


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(compiled: None, dtype: torch.dtype, target: str) -> None:
    (part,) = compile_for(kernel_of(Block((40, 40), 240, 5, act=nn.Hardswish), pixels(4, 40, 28, 28, dtype)), target)
    assert part.spills == 0
    assert part.shared_bytes <= TARGETS[target].shared_bytes
    assert "tf32" not in part.ptx


def test_generated_modules_pass_ruff(tmp_path: Path) -> None:
    modules = [Block((24, 32), 50, 5, 2), Block((8, 8), 24, norm=False), Block((16, 16), 16, act=nn.SiLU)]
    for i, module in enumerate(modules):
        first: Any = module.layers[0]
        kernel = kernel_of(module, pixels(1, first.in_channels, 6, 6))
        (tmp_path / f"kernel{i}.py").write_text(kernel.source)
    settings = Path(__file__).parents[3] / "pyproject.toml"
    command = [sys.executable, "-m", "ruff", "check", "--config", str(settings), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_names_have_to_be_identifiers() -> None:
    (block,) = inverted_residuals(graph_of(Block((8, 8), 24), pixels(1, 8, 6, 6))[0]).blocks
    with pytest.raises(ValueError, match="identifier"):
        inverted_residual(block, "graph 0/0")


def test_the_kernels_of_a_model(compiled: None, fresh_dynamo: None) -> None:
    model = nn.Sequential(Block((8, 8), 24), Block((8, 8), 24), Block((8, 16), 32, stride=2), nn.Conv2d(16, 16, 3, groups=16))
    found = memcompile.kernels(model.half().eval(), pixels(1, 8, 12, 12, torch.float16), target="cuda:80")
    assert (found.chains, found.blocks) == (0, 3)
    assert [kernel.name for kernel in found.kernels] == [f"inverted_residual_{i}_kernel" for i in range(2)]
    ((_, _, reason),) = found.refused
    assert "no 1 x 1 convolution follows it" in reason
    assert '"blocks": 3' in found.to_json()


class Golden(TestCase):
    maxDiff = None

    def test_block(self) -> None:
        module = Block((16, 8), 32, norm=False).half()
        (block,) = inverted_residuals(graph_of(module, pixels(1, 16, 6, 6, torch.float16))[0]).blocks
        source = generate_inverted(block, name="block", lines=1).source
        self.assertExpectedInline(
            source[source.index("@triton.jit") : source.index("OPERANDS = (")].strip(),
            """\
@triton.jit(do_not_specialize=["n_rows"])
def block_kernel(
    x_ptr,
    expand_weight_ptr,
    expand_bias_ptr,
    depthwise_weight_ptr,
    depthwise_bias_ptr,
    project_weight_ptr,
    project_bias_ptr,
    out_ptr,
    n_rows,
    BM: tl.constexpr,
    BH: tl.constexpr,
):
    pixels = tl.program_id(0) * BM + tl.arange(0, BM)
    valid = pixels < n_rows
    first = pixels // 6 % 6
    down = first - 1
    across = pixels % 6 - 1
    image = pixels // 36
    r16 = tl.arange(0, 16)
    r8 = tl.arange(0, 16)
    r8_mask = r8 < 8
    project = tl.full((BM, 16), 0.0, tl.float32)
    tl.static_assert(32 % BH == 0)
    for start in range(0, 32, BH):
        cols = start + tl.arange(0, BH)
        depthwise = tl.full((BM, BH), 0.0, tl.float32)
        expand_bias = tl.load(expand_bias_ptr + cols[None, :])
        expand_weight = tl.load(expand_weight_ptr + r16[:, None] + cols[None, :] * 16)
        for tap in range(9):
            column = across + tap % 3
            depthwise_weight = tl.load(depthwise_weight_ptr + cols[None, :] * 9 + tap // 3 * 3 + tap % 3).to(tl.float32)
            line = down + tap // 3
            inside = valid & (line >= 0) & (line < 6) & (column >= 0) & (column < 6)
            near = ((image * 6 + line) * 6 + column).to(tl.int64)
            x = tl.load(x_ptr + near[:, None] * 16 + r16[None, :], mask=inside[:, None], other=0.0)
            expand = tl.dot(x, expand_weight)
            expand_bias_float32 = expand_bias.to(tl.float32)
            expand = expand + expand_bias_float32
            hardtanh = tl.where(tl.where(expand < 0.0, 0.0, expand) > 6.0, 6.0, tl.where(expand < 0.0, 0.0, expand))
            hardtanh_valid = tl.where(inside[:, None], hardtanh, 0.0)
            depthwise += hardtanh_valid * depthwise_weight
        depthwise_bias = tl.load(depthwise_bias_ptr + cols[None, :])
        project_weight = tl.load(project_weight_ptr + cols[:, None] + r8[None, :] * 32, mask=r8_mask[None, :], other=0.0)
        depthwise_bias_float32 = depthwise_bias.to(tl.float32)
        depthwise_1 = depthwise + depthwise_bias_float32
        hardtanh_1 = tl.where(tl.where(depthwise_1 < 0.0, 0.0, depthwise_1) > 6.0, 6.0, tl.where(depthwise_1 < 0.0, 0.0, depthwise_1))
        hardtanh_1_float16 = hardtanh_1.to(tl.float16)
        project = tl.dot(hardtanh_1_float16, project_weight, project)
    rows = pixels.to(tl.int64)
    row_mask = valid
    project_bias = tl.load(project_bias_ptr + r8[None, :], mask=r8_mask[None, :], other=0.0)
    project_bias_float32 = project_bias.to(tl.float32)
    project = project + project_bias_float32
    project_float16 = project.to(tl.float16)
    tl.store(out_ptr + rows[:, None] * 8 + r8[None, :], project_float16, mask=row_mask[:, None] & r8_mask[None, :])""",
        )
