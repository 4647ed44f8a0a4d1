"""Networks of images in stages, as a report shows them: the terminal, the folder, the picture."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from expecttest import TestCase
from torch import nn

import memcompile
from memcompile.passes.tiles.figure import PatchReport
from memcompile.passes.tiles.stage_chart import patch_chart
from memcompile.passes.tiles.stage_text import images_text
from memcompile.report import GraphReport, Report
from memcompile.report.difference import compare
from memcompile.report.html import render_html
from tests import report_samples

SVG = "{http://www.w3.org/2000/svg}"


class TestTerminal(TestCase):
    def test_for_a_microcontroller(self) -> None:
        self.assertExpectedInline(
            str(Report([report_samples.patch_graph()])),
            """\
memcompile  graph 0/0  inference  cpu  no budget   48.00 MiB planned

 pass     peak before -> after    step time    compile    what
 patch     276.86 -> 20.51 KiB            -      0.7 s    3 stages, 2 tiled (heuristic), +9.7 % multiply-adds, 1 byte
                                                          per element

 without a plan    48.00 MiB peak
 alive             12.00 MiB at entry
 images            276.86 -> 20.51 KiB in stages instead of layer by layer: 13.5 times less, +9.7 % multiply-adds
                   (planned, of the images alone)

stages at 1 byte per element
 stage    operators                          runs                peak KiB    layerwise      MACs    source
     1    conv .. add<1> (3)                 4 x 5 patches           20.5        276.9    8.22 M    net.py:33
     2    conv_2 .. add_2 (2), again conv    9 strips of rows        20.0         68.4    3.19 M    net.py:34
     3    mean                               layer by layer           9.0          9.0    1.00 k    net.py:53
   all    +9.7 % multiply-adds                                       20.5        276.9    11.4 M""",
        )

    def test_on_this_device(self) -> None:
        self.assertExpectedInline(
            str(Report([report_samples.patch_graph(0)])),
            """\
memcompile  graph 0/0  inference  cpu  no budget   18.00 MiB planned

 pass     peak before -> after    step time    compile    what
 patch      48.00 -> 18.00 MiB            -      0.7 s    3 stages, 2 tiled (heuristic), +9.7 % multiply-adds

 without a plan    48.00 MiB peak
 alive             12.00 MiB at entry
 images            276.86 -> 20.51 KiB in stages instead of layer by layer: 13.5 times less, +9.7 % multiply-adds
                   (planned, of the images alone)

 decision    storage    source           saves    costs    why
 tile        add<1>     net.py:33    256.3 KiB        -    3 operators from conv on in 4 x 5 patches
 tile        add_2      net.py:34    48.36 KiB        -    2 operators from conv_2 on in 9 strips of rows""",
        )


def layer_by_layer() -> PatchReport:
    """The plan of a network that cannot gain."""
    plan = report_samples.patch_plan()
    whole = dataclasses.replace(plan.stages[2], first="conv", operators=6, peak_bytes=283_500, base_peak_bytes=283_500)
    return dataclasses.replace(plan, stages=(whole,), peak_bytes=283_500, macs=plan.base_macs)


def test_a_network_that_cannot_gain() -> None:
    assert images_text(layer_by_layer()) == "276.9 KiB layer by layer; no stages within the limits take less"


@pytest.mark.parametrize("bytes_per_element", [0, 1])
def test_json_round_trip(bytes_per_element: int) -> None:
    report = Report([report_samples.patch_graph(bytes_per_element)])
    assert Report.from_json(report.to_json()) == report


def test_save(tmp_path: Path) -> None:
    first, second = report_samples.patch_graph(), report_samples.patch_graph(0)
    Report([report_samples.inference_graph(), first, dataclasses.replace(second, graph_id="1/0")]).save(tmp_path)
    data = json.loads((tmp_path / "patch.json").read_text())
    assert list(data) == ["0/0", "1/0"]
    assert [stage["grid"] for stage in data["0/0"]["stages"]] == [[4, 5], [9, 1], [1, 1]]
    assert data["0/0"]["peak_bytes"] == 21_000
    assert data["0/0"]["overhead"] == pytest.approx(0.0967, abs=1e-4)
    assert data["0/0"]["frontier"][0] == [12_000, 33_000_000]
    assert {path.name for path in tmp_path.glob("*.svg")} == {"patch.svg", "patch_1_0.svg"}
    assert (tmp_path / "patch.svg").read_text() == patch_chart(report_samples.patch_plan(), file=True)
    report_samples.single().save(tmp_path)
    assert not list(tmp_path.glob("patch*"))


def test_a_refused_plan_is_not_shown(tmp_path: Path) -> None:
    refused = dataclasses.replace(report_samples.patch_plan(0), refused="no stages have a smaller peak")
    report = Report([dataclasses.replace(report_samples.patch_graph(0), figures=(refused,), passes=(), decisions=())])
    assert "images" not in str(report)
    assert "Images" not in render_html(report)
    assert patch_chart(refused) == ""
    assert not list(report.save(tmp_path).glob("patch*"))


def picture(patch: PatchReport) -> ElementTree.Element:
    """The parsed file."""
    return ElementTree.fromstring(patch_chart(patch, file=True))


def classes(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Elements with a class, in order."""
    return [element for element in root.iter() if name in (element.get("class") or "").split()]


def texts(root: ElementTree.Element) -> list[str]:
    """All that is written."""
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_the_picture_has_every_stage() -> None:
    root = picture(report_samples.patch_plan())
    written = texts(root)
    for text in (
        "4 × 5 patches",
        "9 strips of rows",
        "layer by layer",
        "20.51 KiB, the peak",
        "2 ops · 3.19 M MACs",
        "net.py:34",
    ):
        assert text in written
    assert [element.get("class") for element in classes(root, "stage")] == ["s0 stage", "s1 stage", "flat stage"]
    assert [len(classes(card, "cut")) for card in classes(root, "stage")] == [3 + 4, 8, 0]
    assert [len(classes(card, "halo")) for card in classes(root, "stage")] == [1, 1, 0]
    widths = [float(band.get("width", 0)) for band in classes(root, "band") if band.tag == f"{SVG}rect"]
    assert widths[0] == pytest.approx(3 * widths[2], rel=0.05)  # as many slots as operators
    assert len(classes(root, "tint")) == 3


def test_bars_and_levels_are_to_scale() -> None:
    plan = report_samples.patch_plan()
    root = picture(plan)
    whole = [float(bar.get("height", 0)) for bar in classes(root, "whole")]
    held = [float(bar.get("height", 0)) for bar in classes(root, "held") if float(bar.get("y", 0)) < 303]
    scale = whole[0] / plan.operators[1].size_bytes
    assert whole == pytest.approx([scale * operator.size_bytes for operator in plan.operators[1:]], abs=0.02)
    assert held[:6] == pytest.approx([scale * operator.held_bytes for operator in plan.operators[1:]], abs=0.02)
    assert len(classes(root, "input")) == 1
    before, after = (float(line.get("y1", 0)) for line in classes(root, "level"))
    assert after - before == pytest.approx(scale * (283_500 - 21_000), abs=0.05)
    assert {"276.9 KiB", "20.51 KiB", "in stages"} <= set(texts(root))


def test_the_frontier_marks_the_plan_that_was_taken() -> None:
    root = picture(report_samples.patch_plan())
    (frontier,) = classes(root, "frontier")
    (chosen,) = classes(frontier, "chosen")
    dots = {(dot.get("cx"), dot.get("cy")) for dot in classes(frontier, "dot")}
    assert (chosen.get("cx"), chosen.get("cy")) in dots
    assert len(dots) == 3 + 1  # one has three times the multiply-adds: beyond the upper edge; and layer by layer
    assert "17.58 KiB, +16.3 % multiply-adds" in {element.text for element in frontier.iter(f"{SVG}title")}
    assert not classes(picture(dataclasses.replace(report_samples.patch_plan(), frontier=())), "frontier")


def test_pictures_of_other_plans_are_well_formed() -> None:
    assert "276.9 KiB, layer by layer" in texts(picture(layer_by_layer()))[0]
    plan = report_samples.patch_plan()
    fine = dataclasses.replace(plan, stages=tuple(dataclasses.replace(stage, grid=(512, 1)) for stage in plan.stages))
    assert max(len(classes(card, "cut")) for card in classes(picture(fine), "stage")) <= 24
    assert patch_chart(dataclasses.replace(plan, operators=())) == ""


def test_the_page_has_the_picture_and_needs_nothing_beside_it() -> None:
    page = render_html(Report([report_samples.patch_graph()]))
    assert "Images in stages" in page
    assert "4 × 5 patches" in page
    assert "add<1>" not in page
    for outside in ("http://", "https://", "src=", "<link", "@import", "url("):
        assert outside not in page


def test_a_difference_of_two_plans() -> None:
    report, other = Report([report_samples.patch_graph()]), Report([report_samples.patch_graph()])
    other.graphs = [dataclasses.replace(other.graphs[0], figures=(layer_by_layer(),))]
    numbers = {item.name: (item.before, item.after) for item in compare(report, other).numbers}
    assert numbers["peak of images"] == (21_000, 283_500)
    assert numbers["multiply-adds of images"] == (11_411_000, 10_405_000)


def planned(options: dict[str, object], size: int = 48, grad: bool = False) -> GraphReport:
    """The dry run of a small network."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    with torch.set_grad_enabled(grad):
        (graph,) = memcompile.plan(nn.Sequential(*layers).eval(), torch.empty(1, 3, size, size), options=options).graphs
    return graph


def test_a_plan_for_a_microcontroller_says_what_each_operator_takes() -> None:
    graph = planned({"patch": {"max_overhead": 0.1}, "bytes_per_element": 1})
    patch = graph["patch"]
    assert patch is not None
    assert graph.passes[0].peak_after_bytes == patch.peak_bytes < patch.base_peak_bytes == graph.passes[0].peak_before_bytes
    inside = [operator for operator in patch.operators if operator.kind != "input"]
    assert max(operator.live_bytes for operator in inside) == patch.base_peak_bytes
    assert max(stage.base_peak_bytes for stage in patch.stages) == patch.base_peak_bytes
    assert inside[0].size_bytes == 48 * 48 * 8
    assert any(operator.held_bytes < operator.size_bytes for operator in inside)
    assert inside[-1].held_bytes == inside[-1].size_bytes  # a result
    assert all(operator.held_bytes <= patch.peak_bytes for operator in inside)
    assert {operator.name for operator in inside} >= {stage.first for stage in patch.stages}
    assert patch_chart(patch)


def test_stages_that_run_are_reported_with_exact_peaks() -> None:
    graph = planned({"patch": {"max_overhead": 20.0}})
    without = planned({"patch": False})
    assert without["patch"] is None
    assert graph.unplanned_peak_bytes == without.planned_peak_bytes
    (done,) = graph.passes
    assert (done.name, done.peak_before_bytes) == ("patch", graph.unplanned_peak_bytes)
    assert graph.planned_peak_bytes <= done.peak_after_bytes < done.peak_before_bytes
    (row, *_) = graph.decisions
    stage = graph["patch"].tiled[0] if graph["patch"] else None
    assert stage is not None
    assert (row.kind, row.storage, row.size_bytes) == ("tile", stage.last, stage.base_peak_bytes - stage.peak_bytes)
    assert f"from {stage.first} on in {stage.grid[0]} " in row.why


def test_a_second_dry_run_of_another_size_is_as_exact_as_the_first() -> None:
    peaks = []
    for size in (32, 40):
        patch = planned({"patch": {"max_overhead": 0.1}, "bytes_per_element": 1}, size)["patch"]
        assert patch is not None
        peaks.append(patch.base_peak_bytes)
    assert peaks[0] / peaks[1] == pytest.approx((32 / 40) ** 2)


def test_notes_say_why_nothing_is_tiled() -> None:
    options: dict[str, object] = {"patch": {"max_overhead": 0.0}}
    assert planned(options, size=4).notes == ("images are made layer by layer: no stages have a smaller peak",)
    assert [note for note in planned({"bytes_per_element": 1}, grad=True).notes if "for inference" in note]
    assert not planned({}, grad=True).notes


def test_sizes_that_vary_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    options: dict[str, Any] = {"patch": {"max_overhead": 0.1}}
    compiled = torch.compile(model, backend="memcompile", options=options, dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(1, 3, 24, 24))
    (graph,) = memcompile.report(compiled).graphs
    assert graph.notes == ("images are made layer by layer: dynamic shapes",)
