"""Chains of inverted residuals as C++ kernels: in graphs, and through the backend."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import fx, nn

import memcompile
from memcompile.codegen.inverted_residual.match import inverted_residuals
from memcompile.machine.device import DeviceModel
from memcompile.passes.residuals.chains import WHY, ChainTools, Goal, bytes_beside, rewrite_rows, rows_refusal, wanted
from memcompile.passes.residuals.kernels import Inverted
from memcompile.report.data import DecisionRow, Report
from memcompile.runtime.measure import measure_peak
from memcompile.step.cost import CostModel
from memcompile.step.fxutil import op_name
from tests.codegen.cpp.rows import Stem
from tests.codegen.inverted_residual.residuals import Block, graph_of
from tests.steps import QUICK

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
CPU = torch.device("cpu")
CALLS_COST = CostModel(DeviceModel("calls and copies take the time", 1e9, {"float32": 1e12}, 1e12, 1e-4, 0.0))
"""Where there is room for it, one kernel of all blocks is the fastest."""


def network(*more: nn.Module) -> nn.Sequential:
    """A stem that expands the first block, one of stride 2, one with a residual, and what follows."""
    torch.manual_seed(0)
    first = Stem(3, 16), *Block((16, 8), 16).layers
    return nn.Sequential(*first, Block((8, 12), 48, stride=2), Block((12, 12), 72), *more).eval()


def rewritten(
    model: nn.Module, x: torch.Tensor, goal: Goal, peak: int = 1 << 40, run: bool = False
) -> tuple[Any, Inverted, list[torch.Tensor]]:
    """The graph after the pass, what the pass did, and what the graph computes of. ``peak``: of the graph as it is."""
    graph, tensors = graph_of(model, x, decomposed=True)
    tools = ChainTools(lambda _gm: (peak, 0), CALLS_COST, 2, run)
    gm, done = rewrite_rows(fx.GraphModule(nn.Module(), graph), goal, tools)
    return gm, done, list(tensors.values())


def operators(gm: fx.GraphModule) -> list[str]:
    return [op_name(node) for node in gm.graph.nodes if node.op == "call_function"]


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(copy.deepcopy(model), backend="memcompile", options={"inductor": QUICK, **options})


def rows(report: Report, kind: str) -> list[DecisionRow]:
    return [row for row in report.decisions if row.kind == kind]


def test_a_chain_becomes_one_node() -> None:
    model, x = network(), torch.randn(2, 3, 18, 20).to(memory_format=torch.channels_last)
    gm, done, tensors = rewritten(model, x, Goal(forced=True), run=True)
    assert operators(gm) == ["stream_rows", "getitem"]
    with torch.no_grad():
        torch.testing.assert_close(gm(*tensors)[0], model(x), rtol=1e-5, atol=1e-5)
    wide = 4 * 2 * max(2 * 16 * 9 * 10, 48 * (9 * 10 + 5 * 5), 72 * 2 * 5 * 5)
    (block,) = done.blocks
    assert block.saved_bytes == wide + 4 * 2 * (8 * 9 * 10 + 12 * 5 * 5)


def test_the_room_cuts_chains() -> None:
    """Of all blocks in one kernel to each in its own: more threads' rows are in a workspace, or more images in memory."""
    model, x = network(), torch.randn(1, 3, 64, 64)
    peaks = []
    for room in (1 << 30, 1):
        _, done, _ = rewritten(model, x, Goal(room_bytes=room, forced=True))
        peaks.append(max(block.program.workspace_bytes for block in done.blocks))
    assert peaks[1] < peaks[0]


def test_what_is_alive_beside_a_block_counts() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pool = nn.Conv2d(3, 12, 1), nn.MaxPool2d(2)
            self.blocks = nn.ModuleList([Block((12, 12), 24), Block((12, 12), 24), Block((12, 12), 24)])

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            wide = self.first(x)
            narrow = self.blocks[0](self.pool(wide))
            last = self.blocks[2](self.blocks[1](narrow))
            return nn.functional.interpolate(last, scale_factor=2) + wide, narrow.mean()

    graph, _ = graph_of(Skip().eval(), torch.randn(1, 3, 16, 12))
    wide, narrow = 4 * 12 * 16 * 12, 4 * 12 * 8 * 6
    blocks = inverted_residuals(graph).blocks
    assert bytes_beside(graph, blocks) == [wide, wide, wide + narrow]


def test_a_graph_that_fits_is_left_alone_unless_forced() -> None:
    model, x = network(), torch.randn(1, 3, 18, 20)
    assert rewritten(model, x, Goal(room_bytes=1000), peak=1000)[:2] == (None, Inverted())
    assert rewritten(model, x, Goal(room_bytes=1000), peak=1001)[1].blocks
    assert rewritten(model, x, Goal(room_bytes=1000, forced=True), peak=1000)[1].blocks


def test_blocks_of_slow_kernels_stay_library_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcompile.passes.residuals.chains.rows_seconds", lambda _kernel, _model, _threads: 1.0)
    gm, done, _ = rewritten(network(), torch.randn(1, 3, 18, 20), Goal(max_overhead=0.1))
    assert gm is None
    assert [why for _, _, why in done.refused] == ["library calls are expected to be faster, or to need less memory"]
    assert rewritten(network(), torch.randn(1, 3, 18, 20), Goal(forced=True))[1].blocks


def test_what_has_no_kernel_says_why() -> None:
    model = network(Block((12, 12), 20, act=nn.GELU), Block((12, 6), 30))
    gm, done, _ = rewritten(model, torch.randn(1, 3, 18, 20), Goal(forced=True))
    assert len(done.blocks) >= 2 and operators(gm).count("convolution") == 3
    ((_, _, why),) = done.refused
    assert "has no C++ formula" in why


def test_a_compiler_that_is_missing_is_said() -> None:
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        gm, done, _ = rewritten(network(), torch.randn(1, 3, 18, 20), Goal(forced=True))
    assert gm is None
    ((_, _, why),) = done.refused
    assert "no C++ kernel can be built" in why and "no-such-compiler" in why


@pytest.mark.usefixtures("own_cache")
def test_a_compiler_without_openmp_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcompile.codegen.cpp.build.FLAGS", ("-shared", "-fPIC", "-nostdinc"))
    gm, done, _ = rewritten(network(), torch.randn(1, 3, 18, 20), Goal(forced=True), run=True)
    assert gm is None
    ((_, _, why),) = done.refused
    assert "omp.h" in why
    assert rewritten(network(), torch.randn(1, 3, 18, 20), Goal(forced=True), run=False)[1].blocks


@pytest.mark.parametrize("threads", [1, 2])
def test_the_backend_runs_them(threads: int) -> None:
    model, x = network(nn.Conv2d(12, 4, 1)), torch.randn(1, 3, 64, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            step, expected = compiled(model, patch_kernel="cpp"), model(x)
            result = step(x)
            measured = measure_peak(lambda: step(x), model=step, inputs=x)
            plain = memcompile.plan(model, x, options={"patch_kernel": "off"})
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert result.stride() == expected.stride()
    report = memcompile.report(step)
    counters = 8 * sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # no graph reads them
    assert report.planned_peak_bytes == measured.peak_bytes - counters < 0.8 * plain.planned_peak_bytes
    assert report.unplanned_peak_bytes == plain.planned_peak_bytes
    assert {row.why for row in rows(report, "tile")} == {WHY}
    assert not rows(report, "refused")
    generated = [kernel for kernel in report.kernels if "inverted_residual" in kernel.name]
    assert generated and all(kernel.language == "cpp" and "dense_row" in kernel.code for kernel in generated)


def test_auto_takes_them_to_keep_a_budget_and_a_dry_run_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        plain = memcompile.plan(model, x)
        step = compiled(model, memory_budget="50%")
        torch.testing.assert_close(step(x), model(x), rtol=1e-5, atol=1e-5)
        report = memcompile.report(step)
        monkeypatch.setattr("memcompile.codegen.cpp.kernel.load", None)
        dry = memcompile.plan(model, x, options={"memory_budget": "50%"})
    assert report.budget_bytes is not None
    assert report.planned_peak_bytes == dry.planned_peak_bytes <= report.budget_bytes == report.unplanned_peak_bytes // 2
    assert [row.why for row in rows(report, "tile")] == [row.why for row in rows(dry, "tile")] == [WHY] * len(rows(dry, "tile"))
    assert not rows(plain, "tile"), "nothing asks for it"
    with torch.no_grad():
        other = memcompile.plan(model, x, options={"memory_budget": "50%", "patch_kernel": "off"})
    assert all(row.why != WHY for row in other.decisions)


def test_a_kernel_takes_its_images_from_any_layout() -> None:
    """What comes from outside is read as it lies; what does not is brought to channels last."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), Stem(6, 16), *Block((16, 8), 16).layers).eval()
    x = torch.randn(2, 3, 30, 20)
    with torch.no_grad():
        step, stem = compiled(model, patch_kernel="cpp"), compiled(network(), patch_kernel="cpp")
        torch.testing.assert_close(step(x), model(x), rtol=1e-5, atol=1e-5)
        for images in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
            torch.testing.assert_close(stem(images), network()(images), rtol=1e-5, atol=1e-5)


def test_cpp_kernels_do_not_run_elsewhere() -> None:
    assert rows_refusal(torch.device("cuda")) == "C++ kernels run on the CPU"
    assert wanted("cpp", torch.device("cuda")) and wanted("auto", CPU)
    assert not (wanted("auto", torch.device("cuda")) or wanted("off", CPU) or wanted("triton", CPU))
