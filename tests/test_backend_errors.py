"""What users get wrong: each a class of its own that names the fix, straight out of the call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import memcompile
from memcompile.errors import (
    BudgetInfeasibleError,
    InvalidOptionError,
    NoReportError,
    PassError,
    UnknownOptionError,
    UnsupportedDeviceError,
    UnsupportedTorchError,
)
from tests.steps import QUICK

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def small(device: str = "cpu") -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16, device=device), nn.GELU(), nn.Linear(16, 16, device=device))


@pytest.fixture
def compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when Inductor is reached: these mistakes are found before any compile time is spent."""

    def reached(*args: object, **kwargs: object) -> None:
        raise AssertionError("Inductor was reached")

    monkeypatch.setattr("memcompile.compiling.session.compile_graph", reached)


def call(model: nn.Module, device: str = "cpu", mode: str | None = None, **options: Any) -> Any:
    if mode is not None:
        return torch.compile(model, backend="memcompile", mode=mode)(torch.randn(64, 16, device=device))
    return torch.compile(model, backend="memcompile", options=options)(torch.randn(64, 16, device=device))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"memory_bugdet": "1GiB"}, UnknownOptionError, "memory_budget"),
        ({"memory_budget": "lots"}, InvalidOptionError, "lots"),
        ({"memory_budget": -1}, InvalidOptionError, "above zero"),
        ({"memory_budget": "120%"}, InvalidOptionError, "at most at 100"),
        ({"memory_budget": 0.5}, InvalidOptionError, "60%"),
        ({"on_infeasible": "ignore"}, InvalidOptionError, "best_effort"),
        ({"inductor": {"cpp.thread": 2}}, UnknownOptionError, "cpp.threads"),
    ],
)
def test_wrong_options_are_found_first(
    compile_nothing: None, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call(small(), **options)


def test_unsupported_mode(compile_nothing: None) -> None:
    with pytest.raises(InvalidOptionError, match="inductor"):
        call(small(), mode="max-autotune")


def test_unsupported_device(compile_nothing: None) -> None:
    with pytest.raises(UnsupportedDeviceError, match="meta"):
        call(small("meta"), "meta", memory_budget="1GiB")


def test_unsupported_torch(compile_nothing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.10.1"))
    with pytest.raises(UnsupportedTorchError, match=r"2\.10\.1"):
        call(small())


class Infeasible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.sum()


def test_budget_below_the_floor_says_what_can_be_done() -> None:
    """And the floor that it names is one that can be kept."""
    model = Infeasible()
    with pytest.raises(BudgetInfeasibleError) as caught:
        call(model, memory_budget="8KiB", inductor=QUICK)
    error = caught.value
    assert error.budget_bytes == 8 * 1024
    assert error.budget_bytes < error.lower_bound_bytes <= error.floor_bytes
    assert error.next_lever
    assert any(item.source.startswith("test_backend_errors.py:") for item in error.contributors)
    assert sum(item.size_bytes for item in error.contributors) <= error.floor_bytes
    assert "best_effort" in str(error) and str(error.floor_bytes) in str(error)
    torch._dynamo.reset()
    call(model, memory_budget=error.floor_bytes, inductor=QUICK)
    report = memcompile.last_report()
    assert report.fits and report.planned_peak_bytes <= error.floor_bytes


def test_best_effort_reaches_the_floor() -> None:
    with pytest.raises(BudgetInfeasibleError) as caught:
        call(Infeasible(), memory_budget="8KiB", inductor=QUICK)
    torch._dynamo.reset()
    call(Infeasible(), memory_budget="8KiB", on_infeasible="best_effort", inductor=QUICK)
    assert memcompile.last_report().planned_peak_bytes <= 1.02 * caught.value.floor_bytes


def test_a_failure_after_an_error_is_a_fresh_start() -> None:
    """The same compiled model works once the error is gone."""
    model = Infeasible()
    for _ in range(2):
        with pytest.raises(BudgetInfeasibleError):
            call(model, memory_budget="8KiB", inductor=QUICK)


def test_a_crash_of_a_pass_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: object, **kwargs: object) -> None:
        raise RuntimeError("planner broke")

    monkeypatch.setattr("memcompile.passes.schedule.schedule.fit", crash)
    with pytest.raises(PassError, match="planner broke") as caught:
        call(small(), memory_budget="50%", inductor=QUICK)
    assert caught.value.pass_name == "rematerialize"
    torch._dynamo.reset()
    with pytest.raises(BudgetInfeasibleError) as missed:  # without a plan it is what it is, and the budget still counts
        call(small(), memory_budget="50%", fallback="inductor", inductor=QUICK)
    for budget, fits in ((missed.value.floor_bytes, True), ("50%", False)):
        torch._dynamo.reset()
        options: dict[str, Any] = {"memory_budget": budget, "on_infeasible": "raise" if fits else "best_effort"}
        shape = call(small(), fallback="inductor", inductor=QUICK, **options).shape  # nothing waits for its backward
        assert shape == (64, 16)
        report = memcompile.last_report()
        assert report.fits is fits
        assert any("is not kept" in note for note in report.graphs[0].notes) is not fits


def test_what_inductor_cannot_lower_is_no_crash_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch.compile fails alike: nobody is told that memcompile has a bug."""
    from torch._inductor.exc import InductorError
    from torch._inductor.lowering import lowerings

    def unable(*_args: object, **_kwargs: object) -> None:
        raise NotImplementedError("no kernel for this")

    monkeypatch.setitem(lowerings, torch.ops.aten.erf.default, unable)
    with pytest.raises(InductorError, match="no kernel for this"):
        call(small(), memory_budget="60%")


def test_no_report_before_the_first_call() -> None:
    with pytest.raises(NoReportError, match="one step"):
        memcompile.report(torch.compile(small(), backend="memcompile"))
