"""The tutorial's code does what the tutorial says."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from expecttest import assert_expected_inline

import memcompile
from memcompile.compiling import pipeline
from memcompile.options import pass_options, table
from tests.golden import before_and_after, side_by_side

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "writing_a_pass.md").read_text()
PASS, LINE, GOLDEN = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pass in its place: a module, and a line in the list."""
    module = types.ModuleType("memcompile.passes.once.once")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(PASS, module.__dict__)
    names = {"Once": module.Once, "PASSES": pipeline.PASSES}
    exec(LINE, names)
    monkeypatch.setattr(pipeline, "PASSES", names["PASSES"])
    return module.Once


def test_the_golden_test_of_the_page(once: Any) -> None:
    names = {
        "torch": torch,
        "Once": once,
        "before_and_after": before_and_after,
        "side_by_side": side_by_side,
        "assert_expected_inline": lambda found, expected: assert_expected_inline(found, expected),
    }
    code = GOLDEN.replace("assert_expected_inline(", "same(")
    names["same"] = _same
    exec(code, names)
    names["test_golden"]()


def _same(found: str, expected: str) -> None:
    assert found == expected


class Steps(torch.nn.Module):
    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.sin(x @ w) * torch.cos(x @ w) + torch.dropout(x @ w, 0.5, True)


def test_its_option_rows_and_refusals_are_everywhere(once: Any) -> None:
    assert "once" in pass_options() and "| `once` | what a model computes twice is computed once | `True` |" in table()
    inputs = torch.randn(4, 8), torch.randn(8, 8, requires_grad=True)
    report = memcompile.plan(Steps(), *inputs, options={"lower": False})
    assert any(row.kind == "rewrite" and row.why == "is mm" for row in report.decisions)
    off = memcompile.plan(Steps(), *inputs, options={"lower": False, "once": False})
    assert off.decisions != report.decisions and off.options["once"] is False
    with pytest.raises(memcompile.InvalidOptionError, match="once"):
        memcompile.plan(Steps(), *inputs, options={"once": "yes"})


def test_it_computes_the_same(once: Any) -> None:
    torch._dynamo.reset()
    x, w = torch.randn(4, 8), torch.randn(8, 8, requires_grad=True)

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.sin(x @ w) * torch.cos(x @ w)

    step: Any = torch.compile(product, backend="memcompile")
    step(x, w).sum().backward()
    (expected,) = torch.autograd.grad((torch.sin(x @ w) * torch.cos(x @ w)).sum(), w)
    torch.testing.assert_close(w.grad, expected)
    assert len(memcompile.last_report().decisions) >= 1


def test_a_crash_in_it_is_named(once: Any) -> None:
    with (
        mock.patch.object(once, "apply", side_effect=RuntimeError("forgot")),
        pytest.raises(memcompile.PassError, match="'once'"),
    ):
        memcompile.plan(Steps(), torch.randn(4, 8), torch.randn(8, 8), options={"lower": False})
