"""Shared by the tests of the backend: run a training step in any way, keep what it leaves, compare.

Every compile works on its own deep copy of the model, so that reports and gradients of two ways never mix.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import memcompile
from memcompile.report.data import DecisionRow, Report
from memcompile.runtime.measure import Measurement, measure_peak

SEED = 7
QUICK: Any = {"cpp.simdlen": 1}
"""Inductor settings for tests of behaviour: scalar code compiles in half the time."""
SEARCH_S = 0.5
"""The work that goes into a plan where any plan will do."""


@dataclass(frozen=True)
class Step:
    """What one step leaves behind. ``gradients`` of parameters and of inputs that require them, by name."""

    outputs: tuple[torch.Tensor, ...]
    gradients: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    inputs: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Run:
    """One way of running a model, with everything that the tests look at."""

    step: Step
    measured: Measurement
    report: Report | None = None
    budget_bytes: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def planned(self) -> Report:
        assert self.report is not None
        return self.report


def loss_of(outputs: object) -> Any:
    """A scalar that depends on every differentiable output."""
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    terms = [out if out.dim() == 0 else out.float().pow(2).mean() for out in found if out.requires_grad]
    return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


def own(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies that a step may write to."""
    return tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in inputs)


def train(function: Callable[..., Any], model: nn.Module, inputs: Sequence[torch.Tensor], seed: int = SEED) -> Step:
    """One forward and backward of ``function`` (the model, or the model compiled) from a fixed random state."""
    mine = own(inputs)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    outputs = function(*mine)
    loss_of(outputs).backward()
    named = [*model.named_parameters(), *((f"input {i}", t) for i, t in enumerate(mine) if t.requires_grad)]
    return Step(
        tuple(out.detach().clone() for out in (outputs if isinstance(outputs, tuple) else (outputs,))),
        {name: t.grad.clone() for name, t in named if t.grad is not None},
        {name: t.clone() for name, t in model.named_buffers()},
        tuple(t.detach() for t in mine),
    )


def compiled(model: nn.Module, budget: object = None, **options: object) -> tuple[nn.Module, Callable[..., Any]]:
    """A copy of the model, and the copy compiled under a budget."""
    mine = copy.deepcopy(model)
    settings: dict[str, Any] = {"inductor": QUICK, "solver_time_limit_s": SEARCH_S, **options}
    if budget is not None:
        settings["memory_budget"] = budget
    return mine, torch.compile(mine, backend="memcompile", options=settings)


def measured(function: Callable[..., object], model: nn.Module, inputs: Sequence[torch.Tensor]) -> Measurement:
    """Peak of a step; its output is held through the backward, as training loops do."""
    gc.collect()
    memcompile.release()  # what others left idle is alive at entry; what this step needs is made again as it warms up
    inputs = own(inputs)

    def step() -> object:
        outputs = function(*inputs)
        loss = loss_of(outputs)
        loss.backward()
        model.zero_grad(set_to_none=True)
        for tensor in inputs:
            tensor.grad = None
        return outputs

    model.zero_grad(set_to_none=True)
    return measure_peak(step, model=model, inputs=inputs)


def run_memcompile(model: nn.Module, inputs: Sequence[torch.Tensor], budget: object = None, **options: object) -> Run:
    """Train one step under a budget, then measure a step."""
    mine, function = compiled(model, budget, **options)
    step = train(function, mine, inputs)
    peak = measured(function, mine, inputs)
    report = memcompile.report(function)
    return Run(step, peak, report, max((g.budget_bytes or 0 for g in report.graphs), default=0) or None)


def run_inductor(model: nn.Module, inputs: Sequence[torch.Tensor], **settings: Any) -> Run:
    """The same with plain Inductor."""
    memcompile.release()  # what lies idle is alive at entry
    mine = copy.deepcopy(model)
    function = torch.compile(mine, options={**QUICK, **settings})
    step = train(function, mine, inputs)
    return Run(step, measured(function, mine, inputs))


def run_eager(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Step:
    """The step without any compiler."""
    mine = copy.deepcopy(model)
    return train(mine, mine, inputs)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference as a share of the expected norm."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if not expected.dtype.is_floating_point:
        return float(not torch.equal(found, expected))
    scale: float = expected.double().norm().item()
    difference: float = (found.double() - expected.double()).norm().item()
    return difference / (scale or 1.0)


def assert_same_step(found: Step, expected: Step, tolerance: float = 3e-6) -> None:
    """Outputs, gradients, buffers and what was written to the inputs agree within rounding."""
    assert found.gradients.keys() == expected.gradients.keys()
    pairs = {
        **{f"output {i}": pair for i, pair in enumerate(zip(found.outputs, expected.outputs, strict=True))},
        **{f"gradient of {name}": (found.gradients[name], expected.gradients[name]) for name in expected.gradients},
        **{f"buffer {name}": (found.buffers[name], expected.buffers[name]) for name in expected.buffers},
        **{f"input {i}": pair for i, pair in enumerate(zip(found.inputs, expected.inputs, strict=True))},
    }
    errors = {name: error for name, (a, b) in pairs.items() if (error := relative_error(a, b)) > tolerance}
    assert not errors, errors


def recomputed(report: Report) -> list[DecisionRow]:
    """What the plans of all graphs make again."""
    return [row for graph in report.graphs for row in graph.decisions if row.kind == "recompute"]


def assert_promise(run: Run, tolerance: float = 0.01) -> None:
    """The measured peak keeps the budget and is what was planned."""
    peak, planned = run.measured.peak_bytes, run.planned.planned_peak_bytes
    assert abs(peak - planned) <= tolerance * peak, f"planned {planned}, measured {peak}"
    assert run.budget_bytes is None or peak <= run.budget_bytes, f"measured {peak}, budget {run.budget_bytes}"
