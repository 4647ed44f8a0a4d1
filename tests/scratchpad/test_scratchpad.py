"""Scratchpads end to end: graphs as operators, options and errors, the report and its files, the command line."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import memcompile
from memcompile.commands import cli
from memcompile.errors import InvalidOptionError, ScratchpadError
from memcompile.options import Options
from memcompile.report import Report
from memcompile.scratchpad.figure import ScratchpadReport
from memcompile.scratchpad.figure_chart import scratchpad_chart
from memcompile.scratchpad.memories import Memories
from memcompile.scratchpad.network import problem_of
from memcompile.scratchpad.text import read_problem, write_problem
from memcompile.solvers.scratchpad.problem import Level, ProblemError, ScratchpadProblem, check
from tests.solvers.scratchpad.scratchpad_nets import chain_with_skips


class Block(nn.Module):
    """Convolution, normalisation, activation; a residual; a gate; a classifier."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.register_buffer("scale", torch.full((8, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = F.relu(self.inner(y) + y)
        out: Tensor = self.head((z * self.scale).mean((2, 3)))
        return out


IMAGE = torch.zeros(1, 3, 16, 16)
OPERATORS = [("convolution", 768, 2048), ("convolution", 2048, 2048), ("add", 4096, 2048), ("mean", 2048, 8), ("addmm", 8, 5)]
"""Of ``Block`` in int8: bytes read and written."""


def read_and_written(problem: ScratchpadProblem) -> list[tuple[int, int]]:
    size = [tensor.size_bytes for tensor in problem.tensors]
    return [(sum(size[t] for t in op.reads), sum(size[t] for t in op.writes)) for op in problem.ops]


def traced(function: Callable[..., Any], *inputs: Tensor, element: int | None = 1) -> ScratchpadProblem:
    with torch.no_grad():
        graph = make_fx(function)(*inputs).graph
    output = graph.output_node()
    output.args = (output.args[0] if isinstance(output.args[0], tuple | list) else (output.args[0],),)
    problem = problem_of(graph, (), element)
    check(problem)
    return problem


def planned(size: object = "6KiB", **options: object) -> ScratchpadReport:
    with torch.no_grad():
        report = memcompile.plan(Block().eval(), IMAGE, options={"scratchpad": size, "bytes_per_element": 1, **options})
    plan: ScratchpadReport | None = report.graphs[0]["scratchpad"]
    assert plan is not None
    return plan


def test_elementwise_work_belongs_to_the_operator_before_it() -> None:
    module = Block().eval()
    assert read_and_written(traced(lambda x: module(x), IMAGE)) == [numbers[1:] for numbers in OPERATORS]


def test_a_value_with_two_readers_is_a_tensor() -> None:
    """The activation of one branch cannot be part of the product: that is read as it is too."""
    weight = torch.ones(4, 4)
    problem = traced(lambda x: (torch.relu(x @ weight), (x @ weight).sigmoid() * 2), torch.zeros(2, 4))
    assert read_and_written(problem) == [(8, 8), (8, 8)]

    def shared(x: Tensor) -> Tensor:
        y = x @ weight
        return torch.relu(y) @ weight + torch.sigmoid(y) @ weight

    names = [op.name for op in traced(shared, torch.zeros(2, 4)).ops]
    assert names == ["mm", "relu", "mm_1", "sigmoid", "mm_2", "add"]


def test_views_are_what_they_view_and_weights_are_no_tensors() -> None:
    weight = torch.ones(6, 2)
    problem = traced(lambda x: (x.view(4, 6) @ (weight * 2)).t(), torch.zeros(2, 12), element=None)
    assert [(t.name, t.size_bytes, t.is_input, t.is_output) for t in problem.tensors] == [
        ("x_1", 96, True, False),
        ("mm", 32, False, True),
    ]
    assert problem.weight_bytes == 48


def test_a_product_that_is_summed_at_once_is_never_whole() -> None:
    weight = torch.ones(64, 5)
    problem = traced(lambda x: (x.t() * weight).sum(0), torch.zeros(1, 64))
    assert read_and_written(problem) == [(64, 5)]


def test_a_plan_in_the_report() -> None:
    plan = planned()
    assert [step.source.partition(":")[0] for step in plan.steps] == ["test_scratchpad.py"] * len(OPERATORS)
    assert (plan.size_bytes, plan.needed_bytes, plan.compulsory_bytes) == (6144, 6144, 768 + 5)
    assert (plan.moved_bytes, plan.status, plan.bytes_per_element) == (0, "optimal", 1)
    assert plan.weight_bytes == sum(t.numel() for t in [*Block().parameters(), *Block().buffers()]) - 1  # BatchNorm counts
    level = plan.levels[0]
    assert {(each.kind, each.size_bytes, each.compulsory) for each in level.transfers} == {
        ("load", 768, True),
        ("store", 5, True),
    }
    assert max(stay.offset + stay.size_bytes for stay in level.stays) == level.height_bytes <= 6144
    assert max(step.live_bytes for step in plan.steps) == 6144


def test_elements_count_as_they_are_unless_told_otherwise() -> None:
    assert planned("24KiB", bytes_per_element=None).needed_bytes == 4 * 6144


def test_several_memories() -> None:
    plan = planned({"sram": "6KiB", "dram": "1KiB @ 1KB/s", "flash": "@ 100B/s"})
    assert [level.name for level in plan.levels] == ["sram", "dram"]
    assert [level.seconds for level in plan.levels] == [0.773, 7.73]


def test_it_is_saved_and_read_again(tmp_path: Path) -> None:
    with torch.no_grad():
        report = memcompile.plan(Block().eval(), IMAGE, options={"scratchpad": "6KiB", "bytes_per_element": 1})
    report.save(tmp_path)
    plan = report.graphs[0]["scratchpad"]
    assert Report.load(tmp_path).graphs[0]["scratchpad"] == plan
    data = json.loads((tmp_path / "scratchpad.json").read_text())["0"]
    assert [step["name"] for step in data["steps"]] == [step.name for step in plan.steps]
    assert data["gap"] == 0
    assert {"offset", "begin", "end", "loaded", "stored"} <= data["levels"][0]["stays"][0].keys()
    root = ET.fromstring((tmp_path / "scratchpad.svg").read_text())
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("steps" in title for title in titles) == len(plan.levels[0].stays)
    assert sum("compulsory" in title for title in titles) == 2
    text = str(report)
    assert "6.00 KiB for 5 operators: 0 B moved beside 773 B compulsory (optimal)" in " ".join(text.split())
    assert "Scratchpad" in (tmp_path / "report.html").read_text()
    Report(graphs=[]).save(tmp_path)
    assert not (tmp_path / "scratchpad.svg").exists()


def test_a_picture_of_nothing_is_none() -> None:
    assert scratchpad_chart(ScratchpadReport(1, 0, 0, 0, 0, 0, 0, "optimal", "", 0.0)) == ""


def test_what_does_not_fit_is_named_with_the_smallest_size_that_does() -> None:
    with pytest.raises(ScratchpadError, match=r"needs 6144 bytes \(6.00 KiB\).*Give 6144 bytes or more"):
        planned("6143")


def test_training_graphs_and_compiled_ones_are_refused_with_the_fix() -> None:
    with pytest.raises(ScratchpadError, match=r"Plan it under torch.no_grad\(\)"):
        memcompile.plan(Block(), IMAGE, options={"scratchpad": "1MiB"})
    with torch.no_grad(), pytest.raises(ScratchpadError, match=r"memcompile.plan\(model"):
        torch.compile(Block().eval(), backend="memcompile", options={"scratchpad": "1MiB"})(IMAGE)


@pytest.mark.parametrize(
    ("value", "levels"),
    [
        ("512KiB", [("scratchpad", 2**19, 0.0), ("large memory", None, 0.0)]),
        (1000, [("scratchpad", 1000, 0.0), ("large memory", None, 0.0)]),
        ({"sram": 8, "flash": "@ 1MB/s"}, [("sram", 8, 0.0), ("flash", None, 1e6)]),
        ({"l1": "1KiB"}, [("l1", 1024, 0.0), ("large memory", None, 0.0)]),
    ],
)
def test_memories_as_users_write_them(value: object, levels: list[tuple[str, int | None, float]]) -> None:
    options = Options.from_mapping({"scratchpad": value})
    assert options["scratchpad"] is not None
    assert options["scratchpad"].levels == tuple(Level(*each) for each in levels)
    assert options.to_mapping()["scratchpad"] == value
    again: Any = Options.from_mapping(options.to_mapping())
    assert again["scratchpad"] == options["scratchpad"]


@pytest.mark.parametrize(
    "value", [0, -1, True, 1.5, "", "6G", {}, {"a": "8", "b": "9"}, {"a": "@ 1MB/s", "b": None}, {"a": 8, "b": "@ 1MB"}, []]
)
def test_bad_memories_name_the_option_and_the_forms(value: object) -> None:
    with pytest.raises(InvalidOptionError, match=r"option 'scratchpad'.*512KiB"):
        Memories.parse(value)


def test_networks_as_text(tmp_path: Path) -> None:
    problem = chain_with_skips()
    assert read_problem(write_problem(problem)) == problem
    for text, message in (
        ("nonsense", "not JSON"),
        ("[]", "no network"),
        ('{"tensors": [{"name": "a"}], "ops": []}', "size_bytes is missing"),
        ('{"tensors": [{"name": "a", "size_bytes": "1"}], "ops": []}', "size_bytes is no int"),
        ('{"tensors": [{"name": "a", "size_bytes": 1, "colour": 1}], "ops": []}', "colour is not known"),
        ('{"tensors": [], "ops": [{"name": "o", "reads": ["a"], "writes": []}]}', "o: there is no tensor 'a'"),
        ('{"tensors": [{"name": "a", "size_bytes": 1}], "ops": []}', "a: no input"),
    ):
        with pytest.raises(ProblemError, match=message):
            read_problem(text)


def test_the_command_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.json"
    path.write_text(write_problem(chain_with_skips()))
    assert cli.main(["scratchpad", str(path), "--size", "24", "--json", "--save", str(tmp_path / "out")]) == 0
    data = json.loads(capsys.readouterr().out)["net"]
    assert (data["moved_bytes"], data["bound_bytes"], data["status"], data["compulsory_bytes"]) == (32, 32, "optimal", 8)
    assert json.loads((tmp_path / "out" / "scratchpad.json").read_text())["net"] == data
    assert ET.fromstring((tmp_path / "out" / "scratchpad.svg").read_text()).tag.endswith("svg")
    assert (
        cli.main(["scratchpad", str(path), "--level", "sram=24", "--level", "flash=@ 1KB/s", "--svg", str(tmp_path / "a.svg")])
        == 0
    )
    assert "32 B moved beside 8 B compulsory (optimal)" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "a.svg").exists()
    assert cli.main(["scratchpad", str(path), "--size", "23"]) == 1
    assert "needs 24 bytes" in capsys.readouterr().err
    path.write_text("[]")
    assert cli.main(["scratchpad", str(path), "--size", "24"]) == 2
    assert cli.main(["scratchpad", str(path), "--level", "24"]) == 2
    assert cli.main(["scratchpad", str(path), "--size", "24", "--bytes-per-element", "1"]) == 2


def test_the_command_on_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)), (torch.ones(2, 8),)\n"
    )
    command = ["scratchpad", f"{script}:make", "--size", "1KiB", "--bytes-per-element", "1"]
    assert cli.main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["graph 0"]
    assert [step["live_bytes"] for step in data["steps"]] == [16 + 64, 64 + 8]
    assert cli.main(command) == 0
    assert "1.00 KiB for 2 operators: 0 B moved" in " ".join(capsys.readouterr().out.split())
