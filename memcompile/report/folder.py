"""The report as a folder: report.json, report.html, plan.json, graphs/ (each stage), kernels/ (each kernel), repro.py.

Networks of images that run in stages add patch.json (graph id -> stages) and a picture each, patch.svg. Plans for a scratchpad
add scratchpad.json (graph id -> order, offsets over time, transfers) and scratchpad.svg.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from memcompile.machine.codec import encode
from memcompile.report.data import GraphReport, KernelInfo, Report
from memcompile.report.html import render_html
from memcompile.report.patch_chart import patch_chart
from memcompile.report.patch_data import PatchReport
from memcompile.report.scratchpad_chart import scratchpad_chart
from memcompile.report.scratchpad_data import ScratchpadReport

_SUFFIX = {"cpp": ".cpp", "python": ".py"}
_COMMENT = {"cpp": "//", "python": "#"}


def save_report(report: Report, folder: Path) -> Path:
    """Write ``report`` into ``folder`` (made when missing, files of an earlier report replaced). Returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier(folder)
    _write(folder / "report.json", report.to_json())
    _write(folder / "report.html", render_html(report))
    plans = {graph.graph_id: graph.plan for graph in report.graphs}
    _write(folder / "plan.json", json.dumps(plans, indent=1, ensure_ascii=False))
    for graph in report.graphs:
        _save_graph(graph, folder)
    _save_patches({graph.graph_id: graph.patch for graph in report.graphs if graph.patch and not graph.patch.refused}, folder)
    _save_scratchpads({graph.graph_id: graph.scratchpad for graph in report.graphs if graph.scratchpad}, folder)
    _save_repros(report, folder)
    return folder


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier report left that this one may not write again; files that are not a report's stay."""
    for old in (folder / "graphs", folder / "kernels"):
        shutil.rmtree(old, ignore_errors=True)
    for pattern in ("repro*.py", "patch*.svg", "patch.json", "scratchpad*.svg", "scratchpad.json"):
        for file in folder.glob(pattern):
            file.unlink()


def _save_graph(graph: GraphReport, folder: Path) -> None:
    name = safe_name(graph.graph_id)
    for index, (stage, text) in enumerate(graph.graphs.items()):
        _write(folder / "graphs" / name / f"{index:02d}_{safe_name(stage)}.py", text)
    for index, kernel in enumerate(graph.kernels):
        file_name = f"{index:03d}_{safe_name(kernel.name)}{_SUFFIX[kernel.language]}"
        _write(folder / "kernels" / name / file_name, kernel_text(kernel))


def kernel_text(kernel: KernelInfo) -> str:
    """The kernel's code under a header that names the user's lines it came from."""
    mark = _COMMENT[kernel.language]
    header = [f"{mark} {kernel.name}"]
    header += [f"{mark} from {line}" for line in kernel.source_lines] or [f"{mark} from no line of the user's"]
    return "\n".join([*header, "", kernel.code])


def _save_repros(report: Report, folder: Path) -> None:
    """The first graph with a repro is repro.py; those of further graphs carry the graph's name."""
    with_repro = [graph for graph in report.graphs if graph.repro is not None]
    for index, graph in enumerate(with_repro):
        _write(folder / ("repro.py" if index == 0 else f"repro_{safe_name(graph.graph_id)}.py"), graph.repro or "")


def _save_patches(plans: Mapping[str, PatchReport], folder: Path) -> None:
    """All stages in one file; a picture of each graph, patch.svg for the first."""
    if not plans:
        return
    data = {graph_id: {**encode(patch), "overhead": patch.overhead} for graph_id, patch in plans.items()}
    _write(folder / "patch.json", json.dumps(data, indent=1, ensure_ascii=False))
    _save_pictures("patch", {graph_id: patch_chart(patch, file=True) for graph_id, patch in plans.items()}, folder)


def _save_scratchpads(plans: Mapping[str, ScratchpadReport], folder: Path) -> None:
    """Likewise."""
    if not plans:
        return
    data = {graph_id: {**encode(plan), "gap": plan.gap} for graph_id, plan in plans.items()}
    _write(folder / "scratchpad.json", json.dumps(data, indent=1, ensure_ascii=False))
    _save_pictures("scratchpad", {graph_id: scratchpad_chart(plan, file=True) for graph_id, plan in plans.items()}, folder)


def _save_pictures(name: str, pictures: Mapping[str, str], folder: Path) -> None:
    drawn = [(graph_id, svg) for graph_id, svg in pictures.items() if svg]
    for index, (graph_id, svg) in enumerate(drawn):
        _write(folder / (f"{name}.svg" if index == 0 else f"{name}_{safe_name(graph_id)}.svg"), svg)


def safe_name(text: str) -> str:
    """``text`` as a file name: "0/0" -> "0_0", "after rematerialize" -> "after_rematerialize"."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.") or "unnamed"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
