"""``memcompile allocate``: what it prints, draws, saves and refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from memcompile.commands import cli
from memcompile.passes.arena.figure import ArenaReport, PlacedBuffer
from memcompile.report.data import GraphReport, Report
from memcompile.solvers.places.minimalloc import read_csv

TEXT = "id,lower,upper,size\na,0,3,4\nb,3,9,4\nc,0,9,4\nd,9,21,4\ne,0,21,4\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "buffers.csv"
    path.write_text(TEXT)
    return path


def test_it_prints_draws_and_saves(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn, saved = tmp_path / "packing.svg", tmp_path / "offsets.csv"
    assert cli.main(["allocate", str(file), "--capacity", "12", "--svg", str(drawn), "--save", str(saved)]) == 0
    assert "5 buffers in 12 bytes (optimal: no arrangement is below 12)" in capsys.readouterr().out
    rectangles = ElementTree.parse(drawn).getroot().findall("{http://www.w3.org/2000/svg}rect")
    assert len(rectangles) == 5
    assert cli.main(["allocate", str(saved), "--json"]) == 0, "fixed at its own offsets"
    answer = json.loads(capsys.readouterr().out)
    assert answer["offsets"] == {buffer.name: buffer.offset for buffer in read_csv(saved.read_text())}


def test_the_arena_of_a_saved_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    placed = (PlacedBuffer("forward/buf0", 0, 3, 64, 0), PlacedBuffer("backward/buf1", 3, 5, 128, 0))
    arena = ArenaReport("step", height_bytes=128, lower_bound_bytes=128, placed=placed)
    graph = GraphReport(
        graph_id="0", kind="train", device="cpu", planned_peak_bytes=1, unplanned_peak_bytes=1, figures=(arena,)
    )
    folder = Report([graph]).save(tmp_path / "report")
    page = (folder / "report.html").read_text()
    assert page.count("<rect x=") == 2, "drawn in the report, too"
    assert "for 2 buffers" in page
    assert cli.main(["allocate", str(folder)]) == 0
    assert "2 buffers in 128 bytes (optimal" in capsys.readouterr().out
    folder = Report([replace(graph, figures=())]).save(tmp_path / "without")
    assert cli.main(["allocate", str(folder / "report.json")]) == 2
    assert "options={'arena': 'step'}" in capsys.readouterr().err


def test_a_capacity_below_the_bound_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["allocate", str(file), "--capacity", "11"]) == 1
    assert "no arrangement is below 12" in capsys.readouterr().out


def test_a_wrong_file_is_a_usage_error(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("id,lower\n")
    assert cli.main(["allocate", str(file)]) == 2
    assert "no column upper, size" in capsys.readouterr().err
    assert cli.main(["allocate", str(file.with_name("none.csv"))]) == 2
