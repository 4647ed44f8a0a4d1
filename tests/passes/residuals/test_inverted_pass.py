"""Inverted residuals of whole networks as kernels: in graphs, and through the backend, in the interpreter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import fx, nn

import memcompile
from memcompile.codegen.triton.configs import TARGETS
from memcompile.machine.device import DeviceModel
from memcompile.passes.residuals.kernels import WHY, Inverted, PatchKernel, rewrite
from memcompile.report.data import DecisionRow, Report
from memcompile.runtime.measure import measure_peak
from memcompile.step.fxutil import op_name, outputs_of
from tests.codegen.inverted_residual.residuals import Block, graph_of, pixels
from tests.steps import QUICK

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
H100 = DeviceModel("H100", 2.8e12, {"float32": 5e13, "float16": 6e14}, 2.5e13, 4e-6, 0.0, 1.0, 0.4)


def network(*more: nn.Module) -> nn.Sequential:
    """A block of stride 2, one with a residual, and what follows."""
    torch.manual_seed(0)
    return nn.Sequential(Block((8, 12), 48, stride=2), Block((12, 12), 72), *more).eval()


class Both(Block):
    """Its expanded tensor is a result as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.layers[:3](x)
        y: torch.Tensor = self.layers[3:](wide) + wide.mean(1, keepdim=True)
        return y


def rewritten(
    model: nn.Module,
    x: torch.Tensor,
    kernel: PatchKernel = "triton",
    device: torch.device = CPU,
    decomposed: bool = True,
    **options: bool,
) -> tuple[fx.GraphModule, Inverted, list[torch.Tensor]]:
    """The graph after the pass, what the pass did, and what the graph computes of."""
    graph, tensors = graph_of(model, x, decomposed)
    gm = fx.GraphModule(nn.Module(), graph)
    return gm, rewrite(gm, kernel, device, **options), list(tensors.values())


def operators(gm: fx.GraphModule) -> list[str]:
    return [op_name(node) for node in gm.graph.nodes if node.op == "call_function"]


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(copy.deepcopy(model), backend="memcompile", options={"inductor": QUICK, **options})


def rows(report: Report, kind: str) -> list[DecisionRow]:
    return [row for row in report.decisions if row.kind == kind]


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
def test_each_block_becomes_one_node(interpreted: None, decomposed: bool) -> None:
    model, x = network(), pixels(2, 8, 9, 10)
    gm, done, tensors = rewritten(model, x, decomposed=decomposed)
    assert operators(gm) == ["stream_rows", "getitem"] * 2
    assert [block.saved_bytes for block in done.blocks] == [4 * 2 * 48 * (90 + 25), 4 * 2 * 72 * (25 + 25)]
    assert [block.node for block in done.blocks] == [n.name for n in gm.graph.nodes if op_name(n) == "stream_rows"]
    assert not done.refused
    with torch.no_grad():
        torch.testing.assert_close(gm(*tensors)[0], model(x), rtol=1e-5, atol=1e-5)


def test_what_is_refused_stays_with_the_reason(interpreted: None) -> None:
    model, x = network(Both((12, 12), 24)), pixels(1, 8, 6, 6)
    gm, done, tensors = rewritten(model, x)
    assert operators(gm).count("stream_rows") == 2 and operators(gm).count("convolution") == 3
    ((_, _, why),) = done.refused
    assert "is read outside of the block" in why
    with torch.no_grad():
        torch.testing.assert_close(gm(*tensors)[0], model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "last",
    [nn.Identity(), nn.Conv2d(12, 4, 1), nn.Sequential(nn.Conv2d(12, 4, 3), nn.Flatten(2))],
    ids=["block", "conv", "flat"],
)
def test_results_keep_their_strides(interpreted: None, last: nn.Module) -> None:
    model, x = network(last), torch.randn(2, 8, 12, 10)
    gm, done, tensors = rewritten(model, x)
    assert len(done.blocks) == 2
    (out,) = outputs_of(gm.graph)
    with torch.no_grad():
        expected = model(x)
        assert out.meta["val"].stride() == expected.stride()
        images = [t.to(memory_format=torch.channels_last) if t is x else t for t in tensors]
        (result,) = Reshaping(gm).run(*images)
    assert result.stride() == expected.stride()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


class Reshaping(fx.Interpreter):
    """Views may copy, as under Inductor."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        view = target is torch.ops.aten.view.default
        return super().call_function(torch.ops.aten.reshape.default if view else target, args, kwargs)


def test_nothing_is_replaced_unasked(interpreted: None) -> None:
    asked: list[tuple[PatchKernel, torch.device]] = [("off", CPU), ("off", CUDA), ("auto", CPU)]
    for kernel, device in asked:
        gm, done, _ = rewritten(network(), pixels(1, 8, 6, 6), kernel, device)
        assert done == Inverted()
        assert "stream_rows" not in operators(gm)


def test_without_a_gpu_or_the_interpreter_the_graph_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    gm, done, _ = rewritten(network(), pixels(1, 8, 6, 6))
    assert [why for _, _, why in done.refused] == ["Triton kernels run on CUDA devices, or with TRITON_INTERPRET=1"]
    assert "stream_rows" not in operators(gm)


def test_auto_takes_the_kernels_that_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcompile.codegen.inverted_residual.program.device_model", lambda _device: H100)
    monkeypatch.setattr("memcompile.codegen.inverted_residual.program.target_of", lambda _device: TARGETS["cuda:90"])
    between = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(24, 160, 1))
    model = nn.Sequential(Block((24, 24), 144), between, Block((160, 160), 960)).half().eval()
    gm, done, _ = rewritten(model, pixels(32, 24, 56, 56, torch.float16), "auto", CUDA, run=False)
    assert operators(gm).count("stream_rows") == len(done.blocks) == 1
    assert next(n for n in gm.graph.nodes if op_name(n) == "stream_rows").args[1][0].op == "placeholder"
    ((_, _, why),) = done.refused
    assert "as kernels of their own (estimated)" in why
    assert rewritten(model, pixels(32, 24, 56, 56, torch.float16), "triton", CUDA, run=False)[1].blocks[1:]


def test_the_backend_runs_them(interpreted: None) -> None:
    model, x = network(), torch.randn(1, 8, 16, 16)
    with torch.no_grad():
        step, expected = compiled(model, patch_kernel="triton"), model(x)
        result = step(x)
        measured = measure_peak(lambda: step(x), model=step, inputs=x)
        plain = memcompile.plan(model, x, options={"patch_kernel": "off"})
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert result.stride() == expected.stride()
    report = memcompile.report(step)
    counters = 8 * sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # no graph reads them
    assert report.planned_peak_bytes == measured.peak_bytes - counters < 0.5 * plain.planned_peak_bytes
    assert report.unplanned_peak_bytes == plain.planned_peak_bytes
    assert [row.why for row in rows(report, "tile")] == [WHY] * 2
    assert not rows(report, "refused")
    assert sum("@triton.jit" in kernel.code for kernel in report.kernels) == 2


def test_the_backend_tiles_what_is_left(interpreted: None) -> None:
    before = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 8, 3, 2, 1)
    model, x = nn.Sequential(*before, *network()).eval(), torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        step, expected = (
            compiled(model, patch_kernel="triton", patch={"max_overhead": 20.0}),
            model(x),
        )  # small images: starts take time
        torch.testing.assert_close(step(x), expected, rtol=1e-5, atol=1e-5)
    whys = [row.why for row in rows(memcompile.report(step), "tile")]
    assert whys[:2] == [WHY] * 2
    assert "patches" in whys[2] or "strips" in whys[2]


def test_kernels_are_taken_where_they_keep_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; here kernels are let win on the CPU, in dry runs."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("memcompile.passes.residuals.kernels.wanted", lambda kernel, _device: kernel != "off")
    monkeypatch.setattr("memcompile.passes.residuals.chains.wanted", lambda _kernel, _device: False)
    monkeypatch.setattr("memcompile.passes.residuals.kernels.slower", lambda _kernel, _device: "")
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, padding=1), Block((8, 8), 24), Block((8, 4), 16, stride=2), nn.AvgPool2d(4)
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 1, 16, 16)

    def planned(**options: object) -> Report:
        with torch.no_grad():
            return memcompile.plan(model, x, options={"on_infeasible": "best_effort", **options})

    plain, kernels = planned(), planned(patch_kernel="triton")
    assert not plain.decisions, "nothing asks for patches"
    kept = planned(memory_budget="60%")
    assert kept.budget_bytes == int(0.6 * plain.planned_peak_bytes) >= kept.planned_peak_bytes
    assert [row.why for row in kept.decisions] == [WHY] * 2
    assert kept.planned_peak_bytes == kernels.planned_peak_bytes
    for asked in ({"memory_budget": kernels.planned_peak_bytes - 1}, {"patch": {"max_overhead": 20.0}}):
        lower = planned(**asked)
        assert lower.planned_peak_bytes < kernels.planned_peak_bytes
        assert [row.why for row in rows(lower, "refused")] == [
            "2 inverted residuals: tiles without their kernels have a smaller peak"
        ]
