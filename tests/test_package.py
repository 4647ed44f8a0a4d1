"""The public face of the package."""

import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import memcompile
from memcompile.errors import BudgetInfeasibleError, MemcompileError, NoReportError


def test_everything_public_is_there() -> None:
    for name in memcompile.__all__:
        assert getattr(memcompile, name) is not None


@pytest.mark.parametrize(
    "first",
    [
        "import memcompile",
        "import memcompile.report",
        "from memcompile.report.data import Report",
        "import memcompile.commands.cli",
    ],
)
def test_report_is_a_function_and_a_package(first: str) -> None:
    script = f"{first}\nimport memcompile\nfrom memcompile.report import Report\nfrom memcompile.report import data\n"
    script += "assert callable(memcompile.report) and data.Report is Report is memcompile.Report"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_entry_points() -> None:
    (backend,) = entry_points(group="torch_dynamo_backends", name="memcompile")
    assert backend.value == "memcompile.backend:memcompile"
    assert importlib.util.find_spec("memcompile.backend") is not None


def test_errors_share_a_base() -> None:
    assert issubclass(BudgetInfeasibleError, MemcompileError)
    assert issubclass(NoReportError, MemcompileError)
