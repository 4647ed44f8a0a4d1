"""Patches through the whole backend: the peak that the plan says, the numbers of eager, and what is left alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memcompile
from memcompile.errors import BudgetInfeasibleError, InvalidOptionError, UnknownOptionError
from memcompile.passes.tiles import choose, shrinking
from memcompile.report.data import GraphReport
from memcompile.runtime.measure import entry_storages, measure_peak
from memcompile.solvers.tiling import paths
from memcompile.solvers.tiling.ranges import tiled_ranges
from tests.steps import QUICK

SIZE = 64


def _block(narrow: int, wide: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(narrow, wide, 1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU6(),
        nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
        nn.BatchNorm2d(wide),
        nn.Hardswish(),
        nn.Conv2d(wide, narrow, 1),
    )


class Net(nn.Module):
    """A stem, a residual block, a gate over all pixels, a block that halves the image, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.first, self.second = _block(8, 48), _block(8, 48, 2)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(x))
        x = x + self.first(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        out: Tensor = self.head(self.second(x).mean((2, 3)))
        return out


class Normed(nn.Module):
    """Group normalisation between convolutions, nearest and bilinear resizing, a skip connection: the tail of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 3, 3, 1, 1)
        self.norm = nn.GroupNorm(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(nn.functional.silu(self.norm(nn.functional.interpolate(x, scale_factor=2))))
        y = y + nn.functional.interpolate(x, size=tuple(y.shape[2:]), mode="bilinear")
        out: Tensor = self.c(y)
        return out


def _made(kind: type[nn.Module] = Net, channels: int = 3) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model, torch.randn(2, channels, SIZE, SIZE)


def _run(model: nn.Module, x: Tensor, options: dict[str, Any]) -> tuple[Tensor, GraphReport, int]:
    """Output, report, and the measured peak."""
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="memcompile", options={"inductor": QUICK, **options})
    with torch.no_grad():
        out = compiled(x)
        peak = measure_peak(lambda: compiled(x), model=model, inputs={"x": x}).peak_bytes
    (graph,) = memcompile.report(compiled).graphs
    return out, graph, peak


def _planned(model: nn.Module, x: Tensor, options: dict[str, object]) -> GraphReport:
    """The report of a dry run."""
    with torch.set_grad_enabled(model.training):
        (graph,) = memcompile.plan(model, x, options=options).graphs
    return graph


def _error(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind, channels, tolerance", [(Net, 3, 1e-5), (Normed, 4, 1e-4)])
def test_the_peak_is_what_the_plan_says_and_the_numbers_are_those_of_eager(
    kind: type[nn.Module], channels: int, tolerance: float
) -> None:
    model, x = _made(kind, channels)
    options: dict[str, Any] = {
        "patch": {"max_overhead": 4.0},
        "patch_kernel": "off",
    }  # small images: starts of tiles take the time
    out, graph, peak = _run(model, x, options)
    assert graph["patch"] is not None and any(stage.kind != "layerwise" for stage in graph["patch"].stages)
    assert peak == pytest.approx(graph.planned_peak_bytes, rel=2e-3) and peak < 0.7 * graph.unplanned_peak_bytes
    with torch.no_grad():
        assert _error(model(x), out) <= tolerance


def test_a_budget_is_kept_with_as_few_tiles_as_it_takes() -> None:
    model, x = _made()
    out, graph, peak = _run(model, x, {"memory_budget": "60%", "patch_kernel": "off"})
    assert graph["patch"] is not None and graph.budget_bytes is not None
    assert peak == pytest.approx(graph.planned_peak_bytes, rel=1e-3)
    assert peak <= graph.budget_bytes < graph.unplanned_peak_bytes
    with torch.no_grad():
        assert _error(model(x), out) <= 1e-5


def test_results_keep_the_strides_of_eager() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 1)
    ).eval()
    x = torch.randn(2, 3, SIZE, SIZE)
    out, graph, _ = _run(model, x, {"memory_budget": "60%"})
    assert graph["patch"] is not None and graph["patch"].stages[-1].kind == "layerwise"
    with torch.no_grad():
        assert out.stride() == model(x).stride()


def test_a_budget_that_fits_leaves_the_graph_alone() -> None:
    model, x = _made()
    graph = _planned(model, x, {"memory_budget": "100%"})
    assert graph["patch"] is None


def test_without_a_wish_nothing_is_tiled() -> None:
    model, x = _made()
    graph = _planned(model, x, {})
    assert graph["patch"] is None


def test_the_pass_can_be_switched_off() -> None:
    model, x = _made()
    graph = _planned(model, x, {"patch": False, "memory_budget": "99%", "on_infeasible": "best_effort"})
    assert graph["patch"] is None


def test_a_network_with_nothing_to_gain_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(1, 4, 8, 8)
    graph = _planned(model, x, {"patch": {"max_overhead": 0.1}})
    assert graph["patch"] is not None and graph["patch"].refused
    assert graph.planned_peak_bytes == graph.unplanned_peak_bytes


def test_a_budget_below_the_floor_says_what_can_be_reached() -> None:
    model, x = _made()
    entry = sum(entry_storages(model, {"x": x}, torch.device("cpu")).values())
    with pytest.raises(BudgetInfeasibleError) as caught, torch.no_grad():
        torch.compile(model, backend="memcompile", options={"memory_budget": entry + 1000})(x)
    reached = caught.value.floor_bytes
    graph = _planned(*_made(), {"patch": False})
    assert reached < graph.planned_peak_bytes


def test_a_training_graph_is_left_alone_and_says_so() -> None:
    model, x = _made()
    graph = _planned(model.train(), x, {"patch": {"max_overhead": 0.1}, "lower": False})
    assert graph.kind == "train" and graph["patch"] is None and any("inference" in note for note in graph.notes)


def test_a_dry_run_counts_as_a_microcontroller() -> None:
    model, x = _made()
    with torch.no_grad():
        report = memcompile.plan(model, x, options={"patch": {"max_overhead": 0.2}, "bytes_per_element": 1})
    (graph,) = report.graphs
    assert graph["patch"] is not None and graph["patch"].bytes_per_element == 1
    assert graph["patch"].base_peak_bytes == 2 * SIZE * SIZE * (
        8 + 48
    )  # the block's input, for its sum, and the expanded image
    assert graph["patch"].peak_bytes < graph["patch"].base_peak_bytes / 2 and graph["patch"].overhead <= 0.2


def test_a_microcontroller_that_is_too_small_is_told_what_it_takes() -> None:
    model, x = _made()
    with torch.no_grad(), pytest.raises(BudgetInfeasibleError) as caught:
        memcompile.plan(model, x, options={"memory_budget": "1KiB", "bytes_per_element": 1})
    floor = caught.value.floor_bytes
    with torch.no_grad():
        report = memcompile.plan(*_made(), options={"memory_budget": floor, "bytes_per_element": 1})
    assert report.graphs[0]["patch"] is not None and report.graphs[0]["patch"].peak_bytes <= floor


@pytest.mark.parametrize(
    "kind, channels, options",
    [(Net, 3, {"patch_kernel": "cpp"}), (Normed, 4, {"patch": {"max_overhead": 4.0}, "patch_kernel": "off"})],
)
def test_a_dry_run_that_lowers_nothing_counts_what_tiles_and_kernels_work_in(
    kind: type[nn.Module], channels: int, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = _made(kind, channels)
    with torch.no_grad():
        (lowered,) = memcompile.plan(model, x, options={**options, "lower": True}).graphs
        monkeypatch.setattr("memcompile.compiling.session.lower_graphs", lambda *_, **__: pytest.fail("lowered"))
        (predicted,) = memcompile.plan(model, x, options={**options, "lower": False}).graphs
    assert predicted.planned_peak_bytes == pytest.approx(lowered.planned_peak_bytes, rel=0.02)
    tiled = [row for row in predicted.decisions if row.kind == "tile"]
    assert tiled == [row for row in lowered.decisions if row.kind == "tile"]
    assert not any(" 0 B for one" in row.why for row in tiled)


def test_the_search_for_stages_keeps_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left when it is over stays as it is."""
    model, x = _made()
    now, looked = [0.0], list[float]()

    def ticking(*arguments: Any) -> Any:
        now[0] += 1.0
        looked.append(now[0])
        return real(*arguments)

    real = tiled_ranges
    monkeypatch.setattr(paths, "tiled_ranges", ticking)
    tools = functools.partial(choose.TileTools, clock=lambda: now[0])
    monkeypatch.setattr(shrinking, "TileTools", tools)
    with torch.no_grad():
        memcompile.plan(
            model,
            x,
            options={
                "memory_budget": "50%",
                "on_infeasible": "best_effort",
                "patch_kernel": "off",
                "solver_time_limit_s": 3.0,
                "lower": False,
            },
        )
    assert looked == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("value", [-0.1, "little", True])
def test_an_overhead_is_a_share(value: object) -> None:
    with pytest.raises(InvalidOptionError, match="max_overhead"):
        memcompile.Options.from_mapping({"patch": {"max_overhead": value}})


def test_unknown_names_and_sizes_are_errors() -> None:
    with pytest.raises(UnknownOptionError, match="max_overhead"):
        memcompile.Options.from_mapping({"patch": {"overhead": 0.1}})
    with pytest.raises(InvalidOptionError, match="bytes_per_element"):
        memcompile.Options.from_mapping({"bytes_per_element": 0})
    options = memcompile.Options.from_mapping({"patch": {"max_overhead": 0.1}})
    assert memcompile.Options.from_mapping(options.to_mapping()) == options
