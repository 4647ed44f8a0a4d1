"""TORCH_LOGS reaches memcompile's loggers, and importing memcompile stays light enough for that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import memcompile
from memcompile.logs import get_logger

EMIT = """
import torch
from memcompile.logs import get_logger
for name in ("memcompile.step.calibrate", "memcompile.passes.schedule.rematerialize"):
    log = get_logger(name)
    log.debug("debug of %s", name)
    log.info("info of %s", name)
    log.warning("warning of %s", name)
"""


def run(script: str, torch_logs: str | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_LOGS"}
    if torch_logs is not None:
        environment["TORCH_LOGS"] = torch_logs
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    ("torch_logs", "shown", "hidden"),
    [
        ("+memcompile", ["debug of memcompile.step.calibrate", "debug of memcompile.passes.schedule.rematerialize"], []),
        ("memcompile", ["info of memcompile.step.calibrate"], ["debug of"]),
        (
            "+memcompile.passes",
            ["debug of memcompile.passes.schedule.rematerialize"],
            ["debug of memcompile.step.calibrate"],
        ),
        (None, ["warning of memcompile.step.calibrate"], ["info of"]),
    ],
)
def test_torch_logs(torch_logs: str | None, shown: list[str], hidden: list[str]) -> None:
    output = run(EMIT, torch_logs)
    for text in shown:
        assert output.count(text) == 1
    for text in hidden:
        assert text not in output


def test_packages_do_not_import_torch() -> None:
    # With TORCH_LOGS=memcompile torch imports these while it is itself half loaded.
    folder = Path(memcompile.__file__).parent
    packages = sorted(".".join(path.parent.relative_to(folder.parent).parts) for path in folder.rglob("__init__.py"))
    assert "memcompile.report" in packages
    heavy = ("torch", "rich", "jinja2", "ortools")
    script = f"import sys, {', '.join(packages)}\nprint([name for name in {heavy} if name in sys.modules])"
    assert run(script).strip() == "[]"


def test_foreign_names_are_refused() -> None:
    with pytest.raises(ValueError, match="not a module of memcompile"):
        get_logger("__main__")
