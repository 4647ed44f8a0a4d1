"""The report as a folder: report.json, report.html, plan.json, graphs/ (each stage), kernels/ (each kernel), repro.py.

Figures of passes add a file of data (graph id -> figure) and a picture of each graph: patch.json and patch.svg, scratchpad.json
and scratchpad.svg.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from memcompile.machine.codec import encode
from memcompile.report.data import GraphReport, KernelInfo, Report
from memcompile.report.figure import Figure
from memcompile.report.html import render_html

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
    _save_figures(report, folder)
    _save_repros(report, folder)
    return folder


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier report left that this one may not write again; files that are not a report's stay."""
    for old in (folder / "graphs", folder / "kernels"):
        shutil.rmtree(old, ignore_errors=True)
    for pattern in ("repro*.py", *(f"{name}{end}" for name in _earlier_figures(folder) for end in ("*.svg", ".json"))):
        for file in folder.glob(pattern):
            file.unlink()


def _earlier_figures(folder: Path) -> set[str]:
    """Base names of the files that the figures of a report in the folder have."""
    try:
        earlier = Report.load(folder)
    except (OSError, ValueError):
        return set()
    return {figure.file for graph in earlier.graphs for figure in graph.figures if figure.file}


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


def _save_figures(report: Report, folder: Path) -> None:
    """Each kind in one file, graph id -> data; a picture of each graph, that of the first without its graph's name."""
    kinds: dict[str, dict[str, Figure]] = {}
    for graph in report.graphs:
        for figure in graph.figures:
            if figure.file and figure.shown:
                kinds.setdefault(figure.file, {})[graph.graph_id] = figure
    for name, figures in kinds.items():
        data = {graph_id: {**encode(figure), **figure.derived()} for graph_id, figure in figures.items()}
        _write(folder / f"{name}.json", json.dumps(data, indent=1, ensure_ascii=False))
        _save_pictures(name, {graph_id: figure.chart(file=True) for graph_id, figure in figures.items()}, folder)


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
