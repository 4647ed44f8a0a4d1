"""The command line: what it prints, what it refuses, its exit status."""

import json
import shutil
from pathlib import Path

import pytest

import memcompile
from memcompile.commands import cli, doctor
from memcompile.commands.target import load_target
from memcompile.report import Report, StepReport
from tests import report_samples

SCRIPT = """
import torch

def make():
    return torch.nn.Linear(4, 1), (torch.ones(2, 4),)

def make_single():
    return torch.nn.Linear(4, 1), torch.ones(2, 4), {}

def wrong():
    return torch.nn.Linear(4, 1)

def make_images():
    layers = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, 2), torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(*layers).requires_grad_(False), (torch.empty(1, 3, 64, 64),)

model = torch.nn.Linear(4, 1)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return report_samples.single().save(tmp_path / "saved")


def test_show(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(saved)]) == 0
    assert "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) == str(report_samples.single())
    assert cli.main(["show", str(saved / "report.json"), "--json"]) == 0
    assert Report.from_json(capsys.readouterr().out) == report_samples.single()


def test_show_says_by_its_status_that_a_plan_does_not_fit(tmp_path: Path) -> None:
    report = report_samples.single()
    report.steps = (StepReport(("0/0",), 2**50, 2**40),)
    assert cli.main(["show", str(report.save(tmp_path))]) == 1


def test_diff(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = report_samples.single()
    other.graphs = [report_samples.inference_graph()]
    other.save(tmp_path / "other")
    assert cli.main(["diff", str(saved), str(tmp_path / "other")]) == 0
    text = capsys.readouterr().out
    assert "planned peak" in text
    assert "mm_2" in text
    assert cli.main(["diff", "--json", str(saved), str(tmp_path / "other")]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {fate["storage"] for fate in data["fates"]} == {"gelu_4", "mm_2", "drop_2"}
    assert cli.main(["diff", str(saved), str(saved)]) == 0
    assert "the same" in capsys.readouterr().out


def test_plan_and_run_hand_the_target_over(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    def plan(model: object, *args: object, options: object, **kwargs: object) -> Report:
        seen.update(model=model, args=args, options=options, kwargs=kwargs)
        return report_samples.single()

    monkeypatch.setattr(memcompile, "plan", plan)
    command = ["plan", f"{script}:make", "--budget", "6GiB", "--option", "rematerialize=false", "--save", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert seen["options"] == {"memory_budget": "6GiB", "rematerialize": False}
    assert (tmp_path / "out" / "report.html").exists()
    assert "7.94 GiB planned" in capsys.readouterr().out


def test_plan_for_a_microcontroller(script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--option", 'patch={"max_overhead": 0.1}', "--option", "bytes_per_element=1"]
    assert cli.main(["plan", f"{script}:make_images", *options, "--save", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "stages at 1 byte per element" in text
    assert "peak KiB" in text
    assert "images" in text
    assert (tmp_path / "out" / "patch.svg").exists()
    assert cli.main(["show", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.split() == text[: text.index("saved to")].split()
    assert cli.main(["plan", f"{script}:make_images", *options, "--json"]) == 0
    (graph,) = Report.from_json(capsys.readouterr().out).graphs
    assert graph["patch"] is not None
    assert graph["patch"].bytes_per_element == 1
    assert 0 < graph["patch"].peak_bytes < graph["patch"].base_peak_bytes
    assert graph["patch"].overhead <= 0.1


def test_run(script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", f"{script}:make", "--budget", "1GiB", "--steps", "1", "--json"]) == 0
    report = Report.from_json(capsys.readouterr().out)
    assert report.budget_bytes == 1024**3
    assert report.measured_peak_bytes is not None
    assert 0 < report.measured_peak_bytes <= report.budget_bytes
    assert report.measured_seconds is not None


def test_run_below_the_floor(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", f"{script}:make", "--budget", "1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("memcompile: BudgetInfeasibleError: the step does not fit in 1 B")
    assert "TORCHDYNAMO_VERBOSE" not in error


def test_targets(script: Path) -> None:
    assert load_target(f"{script}:make").args[0].shape == (2, 4)
    assert len(load_target(f"{script}:make_single").args) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SCRIPT", "is not SCRIPT.py:FUNCTION"),
        ("SCRIPT:nothing", "has no 'nothing'"),
        ("SCRIPT:model", "is not a function"),
        ("SCRIPT:wrong", "returned Linear, not (model, args)"),
        ("missing.py:make", "no such script"),
        ("no_such_module_here:make", "no module 'no_such_module_here'"),
    ],
)
def test_bad_targets(name: str, message: str, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", name.replace("SCRIPT", str(script))]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["plan", "SCRIPT:make", "--budget", "-6GiB"], 2, "expected one argument"),
        (["plan", "SCRIPT:make", "--budget=-6GiB"], 2, "InvalidOptionError"),
        (["plan", "SCRIPT:make", "--budget", "6 gigs"], 2, "InvalidOptionError"),
        (["run", "SCRIPT:make", "--budget", "lots"], 2, "InvalidOptionError"),
        (["plan", "SCRIPT:make", "--option", "dmp=x"], 2, "Did you mean 'dump'"),
        (["plan", "SCRIPT:make", "--option", "patch={max_overhead: 0.1}"], 2, "True, False or {'max_overhead': 0.1}"),
        (["plan", "SCRIPT:make", "--option", "solver_time_limit_s=soon"], 2, "InvalidOptionError"),
        (["scratchpad", "SCRIPT:make", "--size", "small"], 2, "InvalidOptionError"),
        (["compress", "SCRIPT:make", "--ratio", "7"], 2, "InvalidOptionError"),
        (["compress", "SCRIPT:make", "--rank", "2", "--layers", "nowhere"], 2, "NoSuchLayerError"),
        (["kernels", "SCRIPT:make", "--target", "cuda:1"], 2, "UnknownTargetError"),
        (["plan", "SCRIPT:make", "--option", "dump"], 2, "not NAME=VALUE"),
        (["run", "SCRIPT:make", "--steps", "0"], 2, "not a positive whole number"),
        (["show", "nowhere"], 2, "no saved report here"),
        ([], 2, "required"),
    ],
)
def test_bad_usage(arguments: list[str], status: int, message: str, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        found = cli.main([argument.replace("SCRIPT", str(script)) for argument in arguments])
    except SystemExit as stop:
        found = int(str(stop.code))
    assert found == status
    assert message in capsys.readouterr().err


def test_errors_are_json_too(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", f"{script}:make", "--budget", "0", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "InvalidOptionError"


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    checks = {check["name"]: check["status"] for check in json.loads(capsys.readouterr().out)}
    assert checks["torch"] == checks["C++ compiler"] == checks["backend name"] == "ok"
    assert cli.main(["doctor"]) == 0


def test_doctor_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", {}.get)
    check = doctor.check_compiler()
    assert check.status == "fail"
    assert "apt-get install g++" in check.message
    monkeypatch.undo()
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no OpenMP here >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert "does not compile C++17 with OpenMP: no OpenMP here" in doctor.check_compiler().message


BROKEN = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x)  # LAYER

class Strict(Model):
    def forward(self, x):
        if x.shape[0] > 1:
            raise ValueError("one at a time")  # STRICT
        return self.layer(x)

def make_wrong_shape():
    return Model(), (torch.ones(2, 5),)

def make_strict():
    return Strict(), (torch.ones(2, 4),)

def make_plain():
    return torch.nn.Sequential(torch.nn.Linear(4, 1)), (torch.ones(2, 5),)

def make_nothing():
    return open("/no/such/file")  # OPEN
"""


@pytest.mark.parametrize(
    ("command", "function", "line", "message"),
    [
        ("plan", "make_wrong_shape", "LAYER", "the model raised"),
        ("run", "make_wrong_shape", "LAYER", "the model raised"),
        ("plan", "make_strict", "STRICT", "one at a time"),
        ("plan", "make_plain", "", "the model raised"),
        ("plan", "make_nothing", "OPEN", "make_nothing() raised FileNotFoundError"),
        ("compress --rank 1", "make_nothing", "OPEN", "make_nothing() raised FileNotFoundError"),
    ],
)
def test_what_the_users_code_raises(
    command: str, function: str, line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short message with the user's own lines, and a status of its own."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    name, *others = command.split()
    assert cli.main([name, f"{script}:{function}", *others]) == 3
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error and len(error.splitlines()) < 6
    if line:
        number = next(i for i, text in enumerate(BROKEN.splitlines(), 1) if text.endswith(f"# {line}"))
        assert error.splitlines()[-1] == f"  {script}:{number}"


@pytest.mark.parametrize("text", ["import no_such_module_here", "def (", "1 / 0"])
def test_a_script_that_cannot_be_loaded(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "unloadable.py"
    script.write_text(text)
    assert cli.main(["plan", f"{script}:make", "--json"]) == 3
    out, error = capsys.readouterr()
    assert json.loads(out)["error"] == "TargetError"
    assert "unloadable.py raised" in error


def test_a_bug_of_ours_is_not_blamed_on_the_model(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise TypeError

    monkeypatch.setattr(memcompile, "plan", broken)
    with pytest.raises(TypeError):
        cli.main(["plan", f"{script}:make"])
