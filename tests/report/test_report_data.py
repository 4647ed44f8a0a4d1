"""The report's numbers, its JSON, and the folder it is saved to."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from memcompile.report import GraphReport, KernelInfo, Report, TimelinePoint
from memcompile.report.chart import memory_chart
from memcompile.report.folder import kernel_text, safe_name
from memcompile.report.html import render_html
from tests import report_samples


@pytest.mark.parametrize("report", [report_samples.single(), report_samples.several(), Report()])
def test_json_round_trip(report: Report) -> None:
    assert Report.from_json(report.to_json()) == report


def test_the_keys_of_the_json_are_stable() -> None:
    data = report_samples.single().to_dict()
    assert list(data) == [
        "schema", "budget_bytes", "planned_peak_bytes", "unplanned_peak_bytes", "lower_bound_bytes", "planned_seconds",
        "base_seconds", "lower_bound_seconds", "graphs", "steps", "measured_peak_bytes", "measured_seconds", "model",
        "options", "versions",
    ]  # fmt: skip
    assert list(data["graphs"][0]) == [
        "graph_id", "kind", "device", "planned_peak_bytes", "unplanned_peak_bytes", "budget_bytes", "lower_bound_bytes",
        "entry_bytes", "saved_bytes", "planned_seconds", "lower_bound_seconds", "base_seconds", "status", "solver", "peak_at",
        "passes", "decisions", "kernels", "graphs", "plan", "forward_timeline", "backward_timeline", "base_timeline",
        "figures", "notes", "repro",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["{}", "[]", '{"schema": 99}', "not json", '{"schema": 1, "graphs": [{"kind": "train"}]}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Report.from_json(text)


def test_the_step_is_the_ledgers_where_it_is_known() -> None:
    report = report_samples.several()
    assert report.planned_peak_bytes == report.steps[0].planned_peak_bytes
    report.steps = ()
    assert report.planned_peak_bytes == max(graph.planned_peak_bytes for graph in report.graphs)
    assert report.measured_peak_bytes is None
    assert report.lower_bound_seconds == pytest.approx(0.1059)
    assert [item.name for item in report.passes] == ["rematerialize"]
    assert len(report.kernels) == 2
    assert Report().planned_peak_bytes == 0


def test_save(tmp_path: Path) -> None:
    report = report_samples.single()
    folder = report.save(tmp_path / "deep" / "out")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "graphs/0_0/00_joint.py",
        "graphs/0_0/01_after_rematerialize.py",
        "kernels/0_0/000_cpp_fused_gelu_0.cpp",
        "kernels/0_0/001_triton_poi_fused_0.py",
        "plan.json",
        "report.html",
        "report.json",
        "repro.py",
    ]
    assert Report.load(folder) == Report.load(folder / "report.json") == report
    assert json.loads((folder / "plan.json").read_text()) == {"0/0": {"recompute": ["gelu_4", "mm_2"]}}
    assert (folder / "repro.py").read_text() == "print('repro')\n"
    report.save(folder)  # again, over itself
    report_samples.several().save(folder)


def test_saving_again_leaves_nothing_of_the_older_report(tmp_path: Path) -> None:
    report_samples.single().save(tmp_path)
    Report().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "report.html", "report.json"]


def test_kernels_carry_their_source_lines() -> None:
    kernel = KernelInfo("k", ("model.py:61", "model.py:62"), "int x;", "cpp")
    assert kernel_text(kernel) == "// k\n// from model.py:61\n// from model.py:62\n\nint x;"
    assert kernel_text(KernelInfo("k", (), "pass")).startswith("# k\n# from no line")


@pytest.mark.parametrize(("text", "name"), [("0/0", "0_0"), ("../../etc", "etc"), ("", "unnamed"), ("a b<c>", "a_b_c")])
def test_file_names_stay_inside(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_html_is_self_contained_and_escaped() -> None:
    report = report_samples.single()
    report.model = "<script>alert(1)</script>"
    page = render_html(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for outside in ("http://", "https://", "src=", "<link", "@import", "url("):
        assert outside not in page
    for part in ("7.94 GiB", "7.97 GiB", "model.py:61", "random state not replayable", "<svg", "fits"):
        assert part in page
    assert "<svg" in render_html(report_samples.several())
    assert "Nothing compiled yet" in render_html(Report())


def test_the_chart_is_well_formed_and_keeps_the_peak() -> None:
    graph = report_samples.train_graph()
    root = ElementTree.fromstring(memory_chart(graph, measured_peak_bytes=graph.planned_peak_bytes))
    labels = [element.text for element in root.iter("text")]
    assert "budget 8.00 GiB" in labels
    assert "planned 7.94 GiB" in labels
    assert "measured 7.94 GiB" in labels
    assert "forward (24 ops)" in labels
    assert "backward (25 ops)" in labels


def test_a_long_timeline_is_thinned_without_losing_its_peak() -> None:
    points = tuple(TimelinePoint(f"op<{index}>", 100 + (5000 if index == 7777 else index % 13)) for index in range(20_000))
    graph = GraphReport(
        graph_id="0/0",
        kind="inference",
        device="cpu",
        planned_peak_bytes=5100,
        unplanned_peak_bytes=5100,
        forward_timeline=points,
    )
    svg = memory_chart(graph)
    assert len(svg) < 100_000
    assert "op&lt;7777&gt;: 4.98 KiB" in svg
    assert memory_chart(report_samples.inference_graph()) == ""
