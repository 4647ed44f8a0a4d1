"""The patch benchmark's networks, cases, rows and tables, at sizes that take no time."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmarks are no installed package

import memcompile
from benchmarks import patch
from benchmarks.core import turns
from benchmarks.core.rows import Kept, Setting, read_rows
from benchmarks.core.steps import max_error
from benchmarks.core.table import between
from benchmarks.core.ways import EAGER, PLAIN, Way
from benchmarks.core.workers import WayFailedError
from benchmarks.patch_cases import CASES, Case
from benchmarks.patch_configs import ARCHITECTURES
from benchmarks.patch_nets import Classifier, Segmenter, SuperResolution, VaeDecoder, initialised, macs, parameters
from benchmarks.patch_published import PUBLISHED
from benchmarks.patch_running import TILING, Running, planned, with_patches, within_overhead, within_share
from benchmarks.patch_table import Row, tables
from memcompile.errors import MemcompileError

pytestmark = pytest.mark.usefixtures("cold_workers")

SETTING = Setting("cpu", 2, "2.13.0", "abc")
CHOSEN = patch.Chosen("cpu", 1, torch.float32, 2, overheads=(0.1,), shares=(0.5,))
OURS, HALF = within_overhead(0.1), within_share(0.5)
PATCHED: dict[str, Any] = {
    "patch_peak_bytes": 2**18,
    "patch_base_bytes": 2**20,
    "macs": 110,
    "base_macs": 100,
    "plan_seconds": 0.5,
    "stages": "patches 4 x 4, layerwise",
}


def row(way: str, case: str = "net", **fields: Any) -> Row:
    return Row("2026-01-01", "cpu", 2, "2.13.0", "", case, "float32", 1, way, **fields)


def smoothing(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build().eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_classifier_has_the_published_parameters_and_multiply_adds(name: str) -> None:
    architecture = ARCHITECTURES[name]
    module = on_meta(lambda: Classifier(architecture))
    digits = 6 if name == "mobilenetv2-1.0" else 2
    assert round(parameters(module) / 1e6, digits) == architecture.parameters
    assert round(macs(module, 1, 3, architecture.resolution, architecture.resolution) / 1e6, 1) == architecture.macs
    assert module(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, architecture.classes)


def test_mobilenets_widths_are_those_of_the_zoo() -> None:
    narrow = ARCHITECTURES["mobilenetv2-0.35"]
    assert narrow.stem == 16
    assert narrow.head == 448
    widths = [8, 8, 8, 16, 16, 16, 24, 24, 24, 24, 32, 32, 32, 56, 56, 56, 112]
    assert [block.channels for block in narrow.blocks] == widths


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_block_of_a_text_is_lost(name: str) -> None:
    architecture = ARCHITECTURES[name]
    assert len(architecture.blocks) == len(architecture.text.split())
    assert np.prod([block.stride for block in architecture.blocks]) == 16


@pytest.mark.parametrize(
    ("build", "count", "shape", "expected"),
    [
        (SuperResolution, 16_697_987, (1, 3, 16, 24), (1, 3, 64, 96)),
        (lambda: Segmenter(64, 4, classes=1), 31_037_633, (1, 3, 32, 64), (1, 1, 32, 64)),
        (VaeDecoder, 49_490_199, (1, 4, 8, 8), (1, 3, 64, 64)),
    ],
    ids=["esrgan", "unet", "vae"],
)
def test_the_other_networks_have_the_published_parameters(
    build: Callable[[], nn.Module], count: int, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if build is VaeDecoder:
        pytest.importorskip("diffusers")
    module = on_meta(build)
    assert parameters(module) == count
    assert module(torch.empty(shape, device="meta")).shape == expected


def test_multiply_adds_are_those_of_the_formula() -> None:
    module = on_meta(lambda: nn.Conv2d(6, 12, (3, 5), 2, (1, 2), groups=3))
    assert macs(module, 2, 6, 10, 14) == 2 * 12 * 5 * 7 * (6 // 3) * 3 * 5


def test_what_comes_out_depends_on_the_image() -> None:
    """Of a deep network whose weights shrink what passes, only the last bias would be left, and no error could be seen."""
    module: Any = initialised(Classifier(ARCHITECTURES["mcunet-vww1"]), 2, 3, 64, 64)
    with torch.no_grad():
        first, second = module(torch.randn(2, 3, 64, 64))
    assert (first - second).abs().max() > 0.05 * (first - module.classifier.bias).abs().max()
    assert not module.training


@pytest.mark.parametrize("name", ["mobilenetv2-224", "esrgan-128", "unet16-512", "vae-256"])
def test_a_case_is_the_same_at_every_call(name: str) -> None:
    if CASES[name].package:
        pytest.importorskip(CASES[name].package)
    first, second = (CASES[name].make(8) for _ in range(2))
    assert all(map(torch.equal, first[0].state_dict().values(), second[0].state_dict().values()))
    assert torch.equal(first[1]["x"], second[1]["x"])
    assert first[1]["x"].shape == CASES[name].shape(8)


def test_a_scale_keeps_sides_in_their_multiples() -> None:
    assert CASES["mobilenetv2-224"].shape(1) == (1, 3, 224, 224)
    assert CASES["mobilenetv2-224"].shape(2) == (1, 3, 96, 96)
    assert CASES["mobilenetv2-224"].shape(100) == (1, 3, 32, 32)
    assert CASES["vae-512"].shape(4) == (1, 4, 16, 16)


def test_a_planned_case_has_no_memory() -> None:
    for name in ("int8-mobilenetv2-1.0", "fp16-unet64-2048"):
        module, batch = CASES[name].make()
        assert {t.device.type for t in (*module.parameters(), *batch.values())} == {"meta"}
        assert not module.training


def test_tiles_are_half_as_wide_as_the_picture_and_change_it() -> None:
    pytest.importorskip("diffusers")
    case = Case(
        "small", "", lambda: VaeDecoder((16, 32), 8), 16, channels=4, tiled=lambda tile: VaeDecoder((16, 32), 8, tile * 2)
    )
    found: list[Any] = [Running(case, way, "cpu", 1, torch.float32) for way in (EAGER, TILING)]
    assert found[1].module.vae.tile_latent_min_size == 8
    whole, tiled = (each.results()["output"] for each in found)
    assert whole.shape == tiled.shape == (1, 3, 32, 32)
    assert np.abs(whole - tiled).max() > 0


def test_ways_are_the_options_that_users_write() -> None:
    assert OURS.options == {"patch": {"max_overhead": 0.1}}
    assert HALF.within(7).options == {"memory_budget": 7}
    assert Way("memcompile", "memcompile").options == {}


def test_ways_of_a_case() -> None:
    def names(case: str, **changes: Any) -> list[str]:
        return [way.name for way in patch.ways_of(CASES[case], dataclasses.replace(CHOSEN, **changes))]

    assert names("unet16-512") == ["eager", "compile", "memcompile +10 %", "memcompile in 50 %"]
    assert names("vae-256", overheads=(), shares=()) == ["eager", "compile", "diffusers tiling"]
    assert names("vae-256", overheads=(), shares=(), tiling=False) == ["eager", "compile"]
    assert names("int8-mcunet-in3") == [f"memcompile +{percent} %" for percent in (0, 3, 10, 25)]


def test_cases_by_name() -> None:
    assert [case.name for case in patch.chosen_cases(["esrgan-128"])] == ["esrgan-128"]
    planned = patch.chosen_cases(["planned"])
    assert {case.name for case in planned} == {name for name in CASES if name.startswith(("int8-", "fp16-"))}
    assert len(patch.chosen_cases(["all"])) == len(CASES)


def test_eager_and_compiled_agree(fresh_dynamo: None) -> None:
    """And count the same bytes at entry."""
    case = Case("small", "", smoothing, 32)
    eager, compiled = (Running(case, way, "cpu", 1, torch.float32) for way in (EAGER, PLAIN))
    found: list[Any] = [each.measured(row(each.way.name)) for each in (eager, compiled)]
    tensors = (*eager.module.parameters(), *eager.module.buffers(), *eager.batch.values())
    assert found[0].entry_bytes == found[1].entry_bytes == sum(t.nbytes for t in tensors)
    assert found[0].peak_bytes - found[0].entry_bytes >= 4 * 8 * 32 * 32
    assert found[0].first_call_seconds is None
    assert found[1].first_call_seconds > 0
    assert max_error(eager.results(), compiled.results()) < 1e-5


def stage(kind: str, *grid: int) -> SimpleNamespace:
    return SimpleNamespace(kind=kind, grid=grid)


def report_with(*stages: SimpleNamespace) -> Any:
    found = SimpleNamespace(peak_bytes=30, base_peak_bytes=90, macs=110, base_macs=100, seconds=0.25, stages=stages)
    return SimpleNamespace(graphs=[{"patch": found}, {"patch": None}], decisions=())


def test_stages_are_read_off_the_report() -> None:
    stages = (
        stage("patches", 4, 4),
        stage("rows", 14, 1),
        stage("rows", 14, 1),
        stage("layerwise", 1, 1),
        stage("layerwise", 1, 1),
    )
    found = with_patches(row("ours"), report_with(*stages))
    counted: dict[str, Any] = {
        "patch_peak_bytes": 30,
        "patch_base_bytes": 90,
        "macs": 110,
        "base_macs": 100,
        "plan_seconds": 0.25,
    }
    assert found == row("ours", stages="patches 4 x 4, 2 x rows 14 x 1, 2 x layerwise", **counted)
    without: Any = SimpleNamespace(graphs=[{"patch": None}], decisions=())
    assert with_patches(row("ours"), without) == row("ours")


def run(case: Case, tmp_path: Path, chosen: patch.Chosen = CHOSEN) -> dict[str, Row]:
    """The rows of a case, by way, as the file has them."""
    path = tmp_path / "rows.csv"
    with closing(patch.Ways(case, SETTING, Kept(Row, path), chosen)) as ways:
        ways.run()
    return {each.way: each for each in read_rows(Row, path)}


def test_a_planned_case_counts_its_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def plan(module: nn.Module, x: torch.Tensor, options: Mapping[str, Any]) -> Any:
        asked.append((options["bytes_per_element"], options["patch"]["max_overhead"], x.device.type))
        if options["patch"]["max_overhead"] == 0.25:
            raise MemcompileError("too deep\nand more")
        return report_with(stage("patches", 4, 4))

    monkeypatch.setattr(memcompile, "plan", plan)
    case = CASES["int8-mcunet-vww1"]
    rows = run(case, tmp_path)
    assert asked == [(1, share, "meta") for share in (0.0, 0.03, 0.1, 0.25)]
    assert list(rows) == [f"memcompile +{percent} %" for percent in (0, 3, 10, 25)]
    module, _ = case.make()
    weights = sum(t.numel() for t in (*module.parameters(), *module.buffers()))
    found = rows["memcompile +0 %"]
    assert (found.status, found.code, found.entry_bytes) == ("planned", "abc", weights + 3 * 80 * 80)
    assert (found.patch_base_bytes, found.patch_peak_bytes, found.mac_factor) == (90, 30, 1.1)
    assert found.transient_bytes is found.ratio is None
    assert (rows["memcompile +25 %"].status, rows["memcompile +25 %"].note) == ("failed", "MemcompileError: too deep")


class Fake:
    """A worker whose answers are given; it steps ``steps`` times and then fails."""

    def __init__(self, way: str, steps: int = 1000, refuses: WayFailedError | None = None) -> None:
        self.way, self.steps, self.refuses = way, steps, refuses

    def ask(self, what: str, *rows: Row) -> Any:
        found: dict[str, Any]
        if self.refuses is not None:
            raise self.refuses
        if what == "results":
            return {"output": np.full(3, 1.0 if self.way != TILING.name else 0.75, dtype=np.float32)}
        if self.way.startswith("memcompile"):
            found = {"peak_bytes": 200, "transient_bytes": 100, "first_call_seconds": 3.0, "planned_peak_bytes": 210}
            return dataclasses.replace(rows[0], entry_bytes=100, note="refused: attention", **found, **PATCHED)
        found = {"peak_bytes": 300, "transient_bytes": 200, "first_call_seconds": 2.0 if self.way == "compile" else None}
        return dataclasses.replace(rows[0], entry_bytes=100, **found)

    def warm_up(self) -> None:
        self.timed_step()

    def timed_step(self) -> float:
        self.steps -= 1
        if self.steps < 0:
            raise WayFailedError("its process ended with exit code -9")
        return 0.5 if self.way.startswith("memcompile") else 1.0

    def close(self) -> None:
        self.steps = 0


def test_the_ways_of_a_case_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {}

    def start(name: str, make: partial[Running], threads: int) -> Fake:
        started[name] = make.args[1]
        return Fake(name)

    monkeypatch.setattr(turns, "Remote", start)
    rows = run(CASES["vae-256"], tmp_path)
    assert list(rows) == ["eager", "compile", OURS.name, HALF.name, "diffusers tiling"]
    assert started[HALF.name].budget_bytes == rows[HALF.name].budget_bytes == 100 + (300 - 100) // 2
    ours = rows[OURS.name]
    assert (ours.status, ours.transient_bytes, ours.planned_peak_bytes, ours.code) == ("ok", 100, 210, "abc")
    assert (ours.ratio, ours.seconds, ours.first_call_ratio, ours.max_error) == (0.5, 0.5, 1.5, 0.0)
    assert (ours.mac_factor, ours.plan_seconds, ours.stages, ours.note) == (1.1, 0.5, PATCHED["stages"], "refused: attention")
    assert rows["compile"].ratio == 1.0
    assert rows["diffusers tiling"].max_error == 0.25
    assert (rows["eager"].max_error, rows["eager"].code, rows["eager"].first_call_ratio) == (None, "", None)


@pytest.mark.parametrize(
    ("dying", "status"),
    [
        (Fake(OURS.name, refuses=WayFailedError("RuntimeError: no such kernel")), "failed"),
        (Fake(OURS.name, refuses=WayFailedError("BudgetInfeasibleError: 7 bytes", floor_bytes=8)), "infeasible"),
        (Fake(OURS.name, steps=2), "failed"),
    ],
    ids=["compiling", "budget", "timing"],
)
def test_a_failing_way_is_a_row_and_stops_no_other(
    dying: Fake, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {OURS.name: dying}
    monkeypatch.setattr(turns, "Remote", lambda way, *_rest: made.setdefault(way, Fake(way)))
    rows = run(CASES["unet16-512"], tmp_path)
    assert (rows[OURS.name].status, bool(rows[OURS.name].note), rows[OURS.name].ratio) == (status, True, None)
    assert rows[HALF.name].ratio == 0.5


def test_there_is_no_share_of_a_peak_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {PLAIN.name: Fake(PLAIN.name, refuses=WayFailedError("no compiler"))}
    monkeypatch.setattr(turns, "Remote", lambda way, *_rest: made.setdefault(way, Fake(way)))
    rows = run(CASES["unet16-512"], tmp_path)
    assert list(rows) == ["eager", "compile", OURS.name]
    assert (rows[OURS.name].seconds, rows[OURS.name].ratio) == (0.5, None)


def test_published_figures_are_of_networks_that_are_planned() -> None:
    assert {f"int8-{each.net}" for each in PUBLISHED} <= CASES.keys()
    assert all(each.peak_kb < each.base_kb and each.mac_factor > 1 for each in PUBLISHED)


def test_the_table_has_a_line_for_each_way_and_for_each_planned_network() -> None:
    patches: dict[str, Any] = {"patch_base_bytes": 1372 * 2**10, "base_macs": 1000}
    rows = [
        row("eager", transient_bytes=2**21, ratio=1.5, ratio_q1=1.4, ratio_q3=1.6),
        row("compile", transient_bytes=2**20, seconds=0.25, ratio=1.0, first_call_seconds=12.0, max_error=1e-7),
        row("memcompile in 50 %", status="infeasible", note="no"),
        row(
            "memcompile +10 %",
            entry_bytes=2**20,
            transient_bytes=2**18,
            planned_peak_bytes=5 * 2**18,
            ratio=0.9,
            ratio_q1=0.8,
            ratio_q3=1.0,
            first_call_ratio=1.25,
            max_error=4e-7,
            stages="patches 4 x 4",
            macs=1093,
            **patches,
        ),
        row("memcompile +0 %", "int8-mobilenetv2-1.0", status="planned", patch_peak_bytes=109 * 2**10, macs=1000, **patches),
        row("memcompile +10 %", "int8-mobilenetv2-1.0", status="failed"),
        row("memcompile +0 %", "fp16-unet64-2048", status="planned", patch_base_bytes=2**31, patch_peak_bytes=2**30),
    ]
    page = "above\n<!-- results: written by patch.py -->\nold\n<!-- end of patch results -->\nbelow\n"
    text = between(page, "patch", tables(rows))
    assert "old" not in text
    assert "| net | compile | 1.0 MiB | - | - | 0.250 s | - | 12 s | 1e-07 | - |" in text
    assert "|  | eager | 2.0 MiB (200 %) | - | - | x 1.500 | 1.400 to 1.600 | - | - | - |" in text
    assert "|  | memcompile in 50 % | infeasible | - |" in text
    ours = "|  | memcompile +10 % | 0.2 MiB (25 %) | 0.2 | 9.3 % | x 0.900 | 0.800 to 1.000 | x 1.25 | 4e-07 | patches 4 x 4 |"
    assert ours in text
    assert "| network, planned | layer by layer | +0 % | +10 % | published |" in text
    planned = "| int8-mobilenetv2-1.0 | 1372.0 KiB | 109.0 KiB at x 1.000 | failed | MCUNetV2 1372 -> 172 at x 1.10 |"
    assert planned in text
    assert "| fp16-unet64-2048 | 2048.0 MiB | 1024.0 MiB at - | - | - |" in text


def test_an_empty_table_can_be_written() -> None:
    assert tables([]) == ""


def test_a_small_network_is_planned_in_its_own_bytes() -> None:
    """Half the bytes for each number, half the peak, the same work."""
    narrow: Any
    wide: Any
    narrow, wide = (
        planned(Case("small", "", smoothing, 64, bytes_per_element=size), within_overhead(0.1), 1, row("ours"))
        for size in (1, 2)
    )
    assert narrow.patch_base_bytes * 2 == wide.patch_base_bytes
    assert narrow.base_macs == wide.base_macs == 64 * 64 * 9 * (3 * 8 + 8 * 3)
    assert narrow.patch_peak_bytes < narrow.patch_base_bytes
    assert 1 <= narrow.mac_factor <= 1.1
