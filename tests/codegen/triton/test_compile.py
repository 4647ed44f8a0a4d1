"""Kernels compiled for GPUs that are not there: no spills, and no more shared memory than a block has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memcompile.codegen.triton.compile import compile_for, compile_with, kernels
from memcompile.codegen.triton.configs import TARGETS, Config, candidates, estimate
from memcompile.codegen.triton.kernel import ChainKernel, generate
from memcompile.codegen.triton.tune import Tuner
from memcompile.errors import KernelRefusedError, MissingTritonError, UnknownTargetError
from tests.codegen.triton.bodies import Case, ffn, gated, rank_to_rank

BF16 = torch.bfloat16
CASES = {
    "ffn": lambda rank, dtype=BF16: ffn(4096, 768, rank, 3072, dtype),
    "rank_to_rank": lambda rank, dtype=BF16: rank_to_rank(4096, rank, 3072, dtype),
    "gated": lambda rank, dtype=BF16: gated(4096, 1024, rank, 2816, dtype),
}


def kernel_of(kind: str, rank: int, dtype: torch.dtype = BF16) -> ChainKernel:
    case: Case = CASES[kind](rank, dtype)
    return generate(case.body(), case.rows, name=kind)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        *(("ffn", rank) for rank in (64, 256, 384, 512)),
        *(("rank_to_rank", rank) for rank in (64, 256, 384, 512)),
        ("gated", 256),
    ],
)
def test_no_spills_and_enough_shared_memory(compiled: None, kind: str, rank: int, target: str) -> None:
    (kernel,) = compile_for(kernel_of(kind, rank), target)
    assert kernel.spills == 0
    assert 0 < kernel.registers <= 255
    assert kernel.shared_bytes <= TARGETS[target].shared_bytes
    assert f"sm_{target[-2:]}" in kernel.ptx
    assert "tt.dot" in kernel.ttir and f"def {kernel.name}(" in kernel.source


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes(compiled: None, dtype: torch.dtype) -> None:
    (kernel,) = compile_for(kernel_of("rank_to_rank", 64, dtype), "cuda:90")
    assert kernel.spills == 0
    assert "tf32" not in kernel.ptx


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_for_few_rows(compiled: None, target: str) -> None:
    case = gated(8, 1024, 256, 2816, BF16)
    parts = kernels(case.body(), case.rows, target, name="few", method="decode")
    assert [part.name for part in parts] == ["few_project0", "few_sum1", "few_hidden2", "few_sum3", "few_emit4"]
    assert all(part.spills == 0 and part.shared_bytes <= TARGETS[target].shared_bytes for part in parts)


def test_a_config_with_too_much_shared_memory_is_not_taken(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_of("ffn", 256)
    sizes = (("BM", 64), ("BK", 64), ("BH", 64), ("BN", 64))
    too_large, fitting = Config(sizes, 8, 4), Config(sizes, 8, 2)
    monkeypatch.setattr("memcompile.codegen.triton.kernel.candidates", lambda *_: [too_large, fitting])
    assert compile_with(kernel, too_large, "cuda:90")[0].shared_bytes > TARGETS["cuda:90"].shared_bytes
    assert compile_for(kernel, "cuda:90")[0].config == fitting


def test_a_rank_that_does_not_fit_is_refused(compiled: None) -> None:
    with pytest.raises(KernelRefusedError, match="1000 resident columns do not fit in the registers of cuda:80"):
        compile_for(kernel_of("rank_to_rank", 1000), "cuda:80")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["ffn", "rank_to_rank", "gated"])
@pytest.mark.parametrize(("height", "width", "warps", "stages"), [(64, 64, 8, 2), (32, 32, 4, 3), (128, 32, 8, 2)])
def test_no_more_shared_memory_than_estimated(
    compiled: None, kind: str, target: str, height: int, width: int, warps: int, stages: int
) -> None:
    kernel = kernel_of(kind, 128)
    sizes = {"BM": height, "BK": width, "BH": width, "BN": width}
    config = Config(tuple((name, sizes[name]) for name in kernel.functions[0].constants), warps, stages)
    (compiled_kernel,) = compile_with(kernel, config, target)
    expected = estimate(kernel.chain, "rows", config, TARGETS[target]).shared_bytes
    assert compiled_kernel.shared_bytes <= 1.01 * expected <= 2.1 * compiled_kernel.shared_bytes


def test_saved_kernels(compiled: None, tmp_path: Path) -> None:
    (kernel,) = compile_for(kernel_of("rank_to_rank", 64), "cuda:90")
    paths = kernel.save(tmp_path / "kernels")
    assert [path.name for path in paths] == [f"{kernel.name}.{ending}" for ending in ("py", "ttir", "ptx")]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'kernels')!r}); sys.modules['memcompile'] = None; import {kernel.name}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert paths[0].read_text() == kernel.source and paths[2].read_text() == kernel.ptx


def test_unknown_targets() -> None:
    with pytest.raises(UnknownTargetError, match="Known targets: cuda:80, cuda:90"):
        compile_for(kernel_of("rank_to_rank", 64), "cuda:75")


def test_names_have_to_be_identifiers() -> None:
    case = rank_to_rank(4, 16, 40)
    with pytest.raises(ValueError, match="identifier"):
        generate(case.body(), case.rows, name="graph 0/0")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingTritonError, match=r"pip install 'memcompile\[triton\]'"):
        kernel_of("rank_to_rank", 64).load()


def test_the_tuner_takes_the_fastest_and_asks_once(interpreted: None) -> None:
    case = ffn(20, 48, 16, 96)
    kernel = generate(case.body(), case.rows, name="kernel")
    offered = candidates(kernel.chain, "rows", TARGETS["cuda:90"], 20)
    timed: list[Callable[[], object]] = []

    def clock(call: Callable[[], object]) -> float:
        call()
        timed.append(call)
        return abs(len(timed) - 3.0)

    tuner = Tuner(clock, lambda _: TARGETS["cuda:90"])
    launch = kernel.load(tuner)
    for _ in range(2):
        assert torch.allclose(launch(*case.operands)[0].double(), case.exact()[0], atol=2e-6)
    assert list(tuner.found.values()) == [offered[2]]
    assert len(timed) == min(16, len(offered)) + 1
