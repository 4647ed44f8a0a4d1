"""Graphs that yield what is no dense tensor of a known size: nothing is refused, numbers are those of eager, and what is left as
it is has a row in the report."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch.utils import _pytree

import memcompile
from memcompile.backend import memcompile as compiled_graph
from memcompile.report.data import Report
from memcompile.runtime.measure import measure_peak
from tests.odd_programs import PROGRAMS, ROWS, WIDTH, Around, Odd
from tests.planned_eagerly import Planner
from tests.step.test_effects import keep_nothing
from tests.steps import QUICK

ODD = pytest.mark.parametrize("name", PROGRAMS)
DRY = [*((name, True) for name in PROGRAMS), *((name, False) for name in ("elements", "complex in", "branches"))]


def run(odd: Odd, train: bool, backend: Any = None) -> list[Any]:
    """Outputs and gradients of one step, dense."""
    model, inputs = odd.model(), odd.inputs()
    compiled = model if backend is None else torch.compile(model, backend=backend)
    with torch._dynamo.config.patch(odd.settings), torch.set_grad_enabled(train):
        outputs = compiled(*inputs)
        if train:
            _pytree.tree_leaves(outputs)[0].backward()
    return [*map(dense, _pytree.tree_leaves(outputs)), *(dense(p.grad) for p in model.parameters() if train)]


def dense(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return hash(value)
    value = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    return value.float() if value.dtype in (torch.uint16, torch.float8_e4m3fn) else value.resolve_conj().clone()


def dry(odd: Odd, train: bool, **options: Any) -> Report:
    with torch._dynamo.config.patch(odd.settings), torch.set_grad_enabled(train):
        return memcompile.plan(odd.model(), *odd.inputs(), options={"on_infeasible": "best_effort", **options})


@ODD
@pytest.mark.parametrize("train", [True, False], ids=["training", "inference"])
def test_planned_graphs_have_the_numbers_of_eager(name: str, train: bool, fresh_dynamo: None) -> None:
    """With all that may be made again made again."""
    odd = PROGRAMS[name]
    planner = Planner(keep_nothing)
    torch.testing.assert_close(run(odd, train, planner), run(odd, train), rtol=1e-4, atol=1e-4)
    assert planner.planned


@pytest.mark.parametrize(("name", "train"), DRY)
def test_every_budget_has_a_plan_and_what_is_left_is_named(name: str, train: bool, fresh_dynamo: None) -> None:
    odd = PROGRAMS[name]
    free, tight = dry(odd, train), dry(odd, train, memory_budget=1)
    assert free.graphs and free.planned_peak_bytes >= tight.planned_peak_bytes > 0
    for report in (free, tight):
        (graph,) = report.graphs
        rows = [row for row in graph.decisions if row.kind == "refused" and row.why.startswith(odd.left or "-")]
        rows += [row for row in graph.decisions if odd.left and odd.left in row.why and row not in rows]
        assert bool(rows) == (bool(odd.left) and (train or odd.left != "sparse_coo"))
        assert all(row.source for row in rows)


def measured(odd: Odd, model: Around, compiled: Any, train: bool) -> int:
    gc.collect()
    memcompile.release()  # what others left idle is alive at entry
    inputs = odd.inputs()

    def step() -> None:
        with torch.set_grad_enabled(train):
            outputs = compiled(*inputs)
            if train:
                _pytree.tree_leaves(outputs)[0].backward()
                model.zero_grad()

    return measure_peak(step, model=model, inputs=inputs).peak_bytes


@pytest.mark.parametrize(("name", "train", "beside"), [("rotary", True, 0), ("branches", False, ROWS * WIDTH * 4)])
def test_planned_bytes_are_those_that_are_measured(name: str, train: bool, beside: int, fresh_dynamo: None) -> None:
    """Views of complex storages are no memory; graphs inside the graph are. ``beside``: what the branch that was not taken would
    have held."""
    odd, model = PROGRAMS[name], PROGRAMS[name].model()
    compiled = torch.compile(model, backend="memcompile", options={"inductor": QUICK})
    peak = measured(odd, model, compiled, train)
    planned = memcompile.report(compiled).planned_peak_bytes
    assert peak / 1.001 <= planned <= peak + beside  # autograd's own scalars are beside the graph


def test_nothing_writes_over_the_values_of_a_sparse_gradient(fresh_dynamo: None) -> None:
    """Inductor lets the next kernel write over what the sparse tensor was made of."""
    odd = PROGRAMS["sparse gradient"]

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        return compiled_graph(gm, inputs, options={"inductor": QUICK})

    torch.testing.assert_close(run(odd, True, backend), run(odd, True), rtol=1e-5, atol=1e-5)
