"""Low-rank chains through the backend: the same numbers, the planned bytes, and what the report says of them."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import memcompile
from memcompile.compiling.dryrun import captured
from memcompile.errors import PassError
from memcompile.passes.rows.low_rank import _dense_before_attention, factored
from memcompile.report.data import DecisionRow
from memcompile.runtime.measure import measure_peak
from memcompile.streaming.program import PROGRAMS, Program, Run
from tests.steps import QUICK, SEARCH_S
from tests.streamed import blocks_of
from tests.streaming.test_streaming import Attention, FeedForward, Loss, pair

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
ROWS = (8, 96, 32)
BLOCK = 64 * 1024


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    with blocks_of(BLOCK):
        yield


def network(*kinds: str, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    made: dict[str, Callable[[], nn.Module]] = {
        "ffn": lambda: FeedForward(32, 192, 8),
        "gated": lambda: FeedForward(32, 192, 8, gated=True),
        "attention": lambda: Attention(32, 8, 4),
    }
    return nn.Sequential(*(made[kind]() for kind in kinds)).to(dtype)


def compiled(model: nn.Module, **options: Any) -> Any:
    chosen: dict[str, Any] = {"inductor": QUICK, **options}
    return torch.compile(model, backend="memcompile", options=chosen)


def tiles(model: Callable[..., Any]) -> list[DecisionRow]:
    return [row for row in memcompile.report(model).graphs[0].decisions if row.kind == "tile"]


def gradients(function: Callable[..., Any], model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    function(x).backward()
    return [cast(torch.Tensor, p.grad).clone() for p in model.parameters()]


@pytest.mark.parametrize(("kinds", "arena"), [(("ffn", "gated"), "off"), (("attention", "ffn"), "step")])
def test_inference_is_planned_to_the_byte(kinds: tuple[str, str], arena: str) -> None:
    model, x = network(*kinds).eval(), torch.randn(ROWS)
    with torch.no_grad():
        expected = model(x)
        step = compiled(model, arena=arena)
        torch.testing.assert_close(step(x), expected, rtol=1e-5, atol=1e-5)
        measured = measure_peak(lambda: step(x), model=model, inputs=x)
        report = memcompile.report(step)
        plain = memcompile.plan(model, x, options={"arena": arena, "low_rank": False})
    assert len(tiles(step)) >= len(kinds) // 2
    assert report.planned_peak_bytes == measured.peak_bytes
    assert report.planned_peak_bytes < plain.planned_peak_bytes


@pytest.mark.parametrize(("kinds", "arena"), [(("ffn", "ffn"), "step"), (("gated",), "off")])
def test_training_is_planned_to_the_byte(kinds: tuple[str, ...], arena: str) -> None:
    model, x = Loss(*network(*kinds)), torch.randn(ROWS)
    expected = gradients(model, model, x)
    step = compiled(model, arena=arena)
    for one, other in zip(gradients(step, model, x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        step(x).backward()

    measured = measure_peak(run, model=model, inputs=x)
    report = memcompile.report(step)
    assert len(tiles(step)) == 2 * len(kinds)
    assert 0 <= measured.peak_bytes - report.planned_peak_bytes <= 4, "at most the gradient of the loss"
    plain = memcompile.plan(model, x, options={"arena": arena, "low_rank": False})
    assert report.planned_peak_bytes < 0.7 * plain.planned_peak_bytes


def test_a_budget_below_what_streaming_reaches_is_met_by_recomputing() -> None:
    model, x = Loss(*network("ffn", "ffn", "ffn")), torch.randn(ROWS)
    expected = gradients(model, model, x)
    budget = int(0.8 * memcompile.plan(model, x).planned_peak_bytes)
    step = compiled(model, memory_budget=budget, solver_time_limit_s=SEARCH_S)
    for one, other in zip(gradients(step, model, x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)
    report = memcompile.report(step)
    assert report.planned_peak_bytes <= budget
    assert {"tile", "recompute"} <= {row.kind for row in report.graphs[0].decisions}


def test_a_hidden_with_dropout_has_one_mask() -> None:
    class Dropped(FeedForward):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.down(F.dropout(F.gelu(self.up(x)), 0.2))
            return x + y

    torch.manual_seed(0)
    model, x = Loss(Dropped(32, 192, 8)), torch.randn(ROWS, requires_grad=True)
    step = compiled(model)

    def loss(value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        found: torch.Tensor = step(value)
        return found

    (gradient,) = torch.autograd.grad(loss(x), x)
    assert len(tiles(step)) == 2
    direction, size = torch.randn_like(x), 3e-2  # smaller ones drown in the rounding of the loss
    with torch.enable_grad():
        slope = (loss(x.detach() + size * direction).item() - loss(x.detach() - size * direction).item()) / (2 * size)
    torch.testing.assert_close((gradient * direction).sum().item(), slope, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    model, x = network("ffn", "attention", dtype=dtype).eval(), torch.randn(ROWS, dtype=dtype)
    with torch.no_grad():
        step = compiled(model)
        result, expected = step(x), model(x)
    assert tiles(step)
    tolerance = 4e-2 if dtype is torch.bfloat16 else 1e-10
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_a_dry_run_knows_the_same_peak() -> None:
    model, x = Loss(*network("ffn")), torch.randn(ROWS)
    dry = memcompile.plan(model, x, options={"inductor": QUICK, "arena": "off"})
    step = compiled(model, arena="off")
    gradients(step, model, x)
    assert memcompile.report(step).planned_peak_bytes == dry.planned_peak_bytes
    assert [row.kind for row in dry.graphs[0].decisions] == ["tile", "tile"]


def test_a_dry_run_does_not_stand_in_for_code() -> None:
    model, x = network("ffn").eval(), torch.randn(ROWS)
    with torch.no_grad():
        report = memcompile.plan(model, x, options={"inductor": QUICK})
        step = compiled(model)
        torch.testing.assert_close(step(x), model(x), rtol=1e-5, atol=1e-5)
    assert report.graphs[0].decisions


def test_dynamic_shapes_are_refused_with_their_reason() -> None:
    model = network("ffn").eval()
    options: dict[str, Any] = {"inductor": QUICK}
    step = torch.compile(model, backend="memcompile", dynamic=True, options=options)
    with torch.no_grad():
        for rows in (96, 80):
            x = torch.randn(8, rows, 32)
            torch.testing.assert_close(step(x), model(x), rtol=1e-5, atol=1e-5)
    refused = [row for row in memcompile.report(step).graphs[0].decisions if row.kind == "refused"]
    assert refused
    assert all("dynamic shapes" in row.why for row in refused)


def test_a_bug_in_the_pass_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise ValueError("broken on purpose")

    monkeypatch.setattr("memcompile.passes.rows.low_rank.regions_between_necks", broken)
    model, x = network("ffn").eval(), torch.randn(ROWS)
    with torch.no_grad():
        with pytest.raises(PassError, match=r"low_rank.*broken on purpose"):
            compiled(model)(x)
        torch._dynamo.reset()
        torch.testing.assert_close(compiled(model, fallback="inductor")(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_program_is_a_module_that_runs_alone(tmp_path: Path) -> None:
    model, x = network("gated").eval(), torch.randn(ROWS)
    with torch.no_grad():
        step = compiled(model)
        step(x)
    memcompile.report(step).save(tmp_path)
    (path,) = tmp_path.glob("kernels/*/*rows_*.py")
    spec = importlib.util.spec_from_file_location("rows", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    key = path.stem.rpartition("_")[2]
    program = PROGRAMS[key]
    torch.manual_seed(0)
    operands = [torch.empty_strided(port.shape, port.stride).copy_(0.1 * torch.randn(port.shape)) for port in program.operands]
    results = [torch.empty(port.shape) for port in program.results]
    module.run(*operands, *results)
    for one, other in zip(torch.ops.memcompile.stream_rows(key, operands), results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    lint = subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", path], capture_output=True, text=True)
    assert not lint.returncode, lint.stdout


def test_programs_die_with_the_models_that_use_them() -> None:
    model, x = network("ffn").eval(), torch.randn(ROWS)
    with torch.no_grad():
        step = compiled(model)
        step(x)
    (key,) = {kernel.name.removeprefix("rows_") for kernel in memcompile.report(step).kernels if "rows_" in kernel.name}
    program = weakref.ref(PROGRAMS[key])
    del step
    torch._dynamo.reset()
    gc.collect()
    assert program() is None


def test_two_threads_run_one_program() -> None:
    model = network("ffn").eval()
    inputs = [torch.randn(ROWS) for _ in range(2)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        step = compiled(model)
        step(inputs[0])
    found: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                found[index] = step(inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        torch.testing.assert_close(found[index], expected[index], rtol=1e-5, atol=1e-5)


def test_an_error_inside_a_block_leaves_nothing_behind() -> None:
    model, x = network("ffn").eval(), torch.randn(ROWS)
    with torch.no_grad():
        step = compiled(model)
        expected = step(x).clone()
        key = next(k.name.removeprefix("rows_") for k in memcompile.report(step).kernels if k.name.startswith("rows_"))
        program = PROGRAMS[key]
        assert isinstance(program, Program)
        block = program.blocks[program.block]
        calls = []

        def failing(workspace: torch.Tensor) -> Run:
            assert block.prepare is not None
            run = block.prepare(workspace)

            def once(tensors: list[torch.Tensor]) -> object:
                calls.append(tensors)
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return run(tensors)

            return once

        program.blocks[program.block] = type(block)(failing, block.workspace_bytes, block.scratch_bytes)
        with contextlib.suppress(KeyboardInterrupt):
            step(x)
        assert len(calls) == 2
        program.blocks[program.block] = block
        torch.testing.assert_close(step(x), expected, rtol=0, atol=0)
        measured = measure_peak(lambda: step(x), model=model, inputs=x)
    assert measured.peak_bytes == memcompile.report(step).planned_peak_bytes


def test_a_factored_layer_beside_a_dense_one() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.dense = pair(32, 8, 192), nn.Linear(192, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.dense(self.up(x).relu())
            return y

    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(ROWS)
    with torch.no_grad():
        step = compiled(model)
        torch.testing.assert_close(step(x), model(x), rtol=1e-5, atol=1e-5)
    assert tiles(step)


def test_dense_queries_keys_and_values_beside_factored_layers_are_seeds() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
            self.ffn = FeedForward(32, 192, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, width = x.shape
            q, k, v = (layer(x).view(batch, length, 4, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
            seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
            y: torch.Tensor = self.ffn(x + self.out(seen))
            return y

    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(ROWS)
    with torch.no_grad():
        step = compiled(model)
        torch.testing.assert_close(step(x), model(x), rtol=1e-5, atol=1e-5)
    graph = captured(model, {}, args=(x,), training=False)[0].forward.graph
    assert len(_dense_before_attention(graph, factored(graph))) == 3
    assert not _dense_before_attention(graph, {})


TRITON = """
import torch, memcompile
from tests.passes.rows.test_low_rank_streaming import compiled, network, tiles

torch.manual_seed(0)
for kinds, batch in ((("ffn", "gated"), 8), (("ffn",), 1)):
    model, x = network(*kinds).eval(), torch.randn(batch, 40, 32)
    with torch.no_grad():
        step = compiled(model, low_rank_kernel="triton")
        torch.testing.assert_close(step(x), model(x), rtol=1e-4, atol=1e-4)
    assert [row.why for row in tiles(step)] == ["one Triton kernel"] * len(kinds), tiles(step)
    assert sum("@triton.jit" in kernel.code for kernel in memcompile.report(step).kernels) == len(kinds)
"""


def test_a_chain_runs_as_one_triton_kernel() -> None:
    """Interpreted; few rows take the kernel that splits the columns."""
    done = subprocess.run(
        [sys.executable, "-c", TRITON], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-2000:]


def test_a_triton_kernel_without_a_gpu_is_refused_and_rows_stream() -> None:
    model, x = network("ffn").eval(), torch.randn(ROWS)
    with torch.no_grad():
        step = compiled(model, low_rank_kernel="triton")
        torch.testing.assert_close(step(x), model(x), rtol=1e-5, atol=1e-5)
    refused = [row.why for row in memcompile.report(step).graphs[0].decisions if row.kind == "refused"]
    assert refused == ["Triton kernels run on CUDA devices, or with TRITON_INTERPRET=1"]
    assert "blocks of" in tiles(step)[0].why
