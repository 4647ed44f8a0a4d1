"""Offloaded parameters under the compiler: the same numbers, the planned peak, what stays, what is refused."""

from __future__ import annotations

import functools
import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import memcompile
from memcompile.errors import BudgetInfeasibleError
from memcompile.report.data import GraphReport
from memcompile.runtime.ledger import LEDGER
from memcompile.runtime.measure import Measurement, measure_peak
from memcompile.runtime.transfers.held import offloaded_weights, resident_tensors
from memcompile.runtime.transfers.weight_store import WeightFiles

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
WIDTH, LAYERS = 320, 10
X = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))


class Stack(nn.Module):
    """Layers of about 400 KB each, and one that is used twice, far apart."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        for layer in self.layers:
            x = torch.relu(layer(x))
        y: torch.Tensor = self.first(x)
        return y


def weight_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def compiled(model: nn.Module, budget: int | None = None, dynamic: bool | None = None, **options: Any) -> Any:
    torch._dynamo.reset()
    chosen = options if budget is None else {"memory_budget": budget, **options}
    return torch.compile(model, backend="memcompile", options=chosen, dynamic=dynamic)


@pytest.fixture
def expected() -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = torch.compile(Stack().eval())(X)
    torch._dynamo.reset()
    return result


@pytest.fixture
def model(tmp_path: Path) -> Stack:
    model = Stack().eval()
    memcompile.offload_parameters(model, directory=tmp_path)
    return model


def run_and_measure(step: Callable[..., Any], model: nn.Module) -> tuple[list[torch.Tensor], Measurement, GraphReport]:
    with torch.no_grad():
        results = [step(X).clone() for _ in range(3)]
        measured = measure_peak(lambda: step(X), model=model, inputs=X)
    return results, measured, memcompile.report(step).graphs[-1]


def test_four_times_the_budget_in_weights(model: Stack, expected: torch.Tensor) -> None:
    size = weight_bytes(Stack())
    budget = size // 4
    results, measured, graph = run_and_measure(compiled(model, budget), model)
    assert all(torch.equal(result, expected) for result in results)
    assert graph.planned_peak_bytes <= budget
    assert measured.peak_bytes == pytest.approx(graph.planned_peak_bytes, rel=0.01)
    assert graph.unplanned_peak_bytes > size
    found = graph.plan["weights"]
    assert found["streamed_bytes"] + found["resident_bytes"] >= size
    kinds = {row.storage: row.kind for row in graph.decisions if row.kind in ("move", "keep")}
    assert len(kinds) == 2 * (LAYERS + 1)
    assert any(row.name == "weights" and row.peak_after_bytes <= budget for row in graph.passes)


def test_weights_stay_where_there_is_room(model: Stack, expected: torch.Tensor) -> None:
    size = weight_bytes(Stack())
    held = []
    for budget in (size // 2, 2 * size):
        results, measured, graph = run_and_measure(compiled(model, budget), model)
        assert torch.equal(results[-1], expected)
        assert measured.peak_bytes == pytest.approx(graph.planned_peak_bytes, rel=0.01)
        held.append(sum(t.numel() * 4 for t in resident_tensors(model)))
        assert held[-1] == graph.plan["weights"]["resident_bytes"]
    assert size // 5 < held[0] < size // 2 and held[1] == size
    assert graph.plan["weights"]["streamed_bytes"] == 0


def test_without_a_budget_nothing_stays_and_reads_overlap(model: Stack, expected: torch.Tensor) -> None:
    results, measured, graph = run_and_measure(compiled(model), model)
    assert torch.equal(results[-1], expected) and not resident_tensors(model)
    assert measured.peak_bytes == pytest.approx(graph.planned_peak_bytes, rel=0.01)
    assert measured.peak_bytes < weight_bytes(Stack()) / 2
    assert any(re.search(r"read [1-9]\d* operations? before", row.why) for row in graph.decisions)


def test_a_weight_that_is_used_far_apart_is_read_twice(model: Stack) -> None:
    with torch.no_grad():
        step = compiled(model)
        step(X)
    rows = [row for row in memcompile.report(step).graphs[-1].decisions if row.storage == "first.weight"]
    assert [row.kind for row in rows] == ["move", "move"]


def test_below_the_floor_the_error_names_it_and_it_holds(model: Stack, expected: torch.Tensor) -> None:
    step = compiled(model, 100_000)
    with torch.no_grad(), pytest.raises(BudgetInfeasibleError) as caught:
        step(X)
    floor = caught.value.floor_bytes
    assert WIDTH * WIDTH * 4 < floor < 2 * WIDTH * WIDTH * 4
    results, measured, _ = run_and_measure(compiled(model, floor), model)
    assert torch.equal(results[-1], expected) and measured.peak_bytes <= floor


def test_best_effort_takes_the_floor(model: Stack, expected: torch.Tensor) -> None:
    results, _, graph = run_and_measure(compiled(model, 100_000, on_infeasible="best_effort"), model)
    assert torch.equal(results[-1], expected)
    assert graph.planned_peak_bytes < 2 * WIDTH * WIDTH * 4


def test_a_dry_run_reads_nothing(model: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightFiles, "start", lambda *_: pytest.fail("a dry run reads"))
    budget = weight_bytes(Stack()) // 4
    with torch.no_grad():
        graph = memcompile.plan(model, X, options={"memory_budget": budget}).graphs[0]
    assert graph.planned_peak_bytes <= budget
    assert graph.plan["weights"]["streamed_bytes"] > 2 * budget
    assert any("assumed" in note for note in graph.notes)


def test_a_checkpoint_in_bfloat16_of_a_model_on_meta(tmp_path: Path) -> None:
    source = Stack(torch.bfloat16).eval()
    x = X.bfloat16()
    save_file(dict(source.state_dict()), str(tmp_path / "model.safetensors"), {"odd": "offset"})
    with torch.no_grad():
        expected = torch.compile(source)(x)
        with torch.device("meta"):
            model = Stack(torch.bfloat16).eval()
        memcompile.offload_parameters(model, checkpoint=tmp_path)
        step = compiled(model, weight_bytes(source) // 2)
        assert torch.equal(step(x), expected) and torch.equal(step(x), expected)


def test_graphs_of_one_model_take_turns_within_their_budget(model: Stack, expected: torch.Tensor) -> None:
    step = compiled(model, weight_bytes(Stack()) // 2, dynamic=False)
    longer = torch.cat([X] * 32)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(step(X), expected)
            step(longer)
        measured = [measure_peak(functools.partial(step, x), model=model, inputs=x).peak_bytes for x in (X, longer)]
    held = [graph.plan["weights"]["resident_bytes"] for graph in memcompile.report(step).graphs]
    assert max(measured) <= weight_bytes(Stack()) // 2
    assert len(held) == 2 and held[0] > held[1], "the second one has less room for weights"


def test_two_models_are_two_reports_and_die_apart(tmp_path: Path, expected: torch.Tensor) -> None:
    models = [Stack().eval(), Stack().eval()]
    with torch.no_grad():
        cast(nn.Linear, models[1].layers[3]).weight.mul_(2)
        for each in models:
            memcompile.offload_parameters(each, directory=tmp_path)
        steps = [torch.compile(each, backend="memcompile") for each in models]
        results = [step(X) for step in steps]
        assert torch.equal(results[0], expected) and not torch.equal(results[1], expected)
        assert memcompile.report(steps[0]) is not None
        assert len(memcompile.report(steps[1]).graphs) == 1
        models.pop(0), steps.pop(0), results.pop(0)
        gc.collect()
        assert torch.equal(steps[0](X), results[0])


def test_compiled_code_keeps_no_weight_alive(tmp_path: Path) -> None:
    model = Stack().eval()
    memcompile.offload_parameters(model, directory=tmp_path)
    step = compiled(model, weight_bytes(Stack()) // 2)
    with torch.no_grad():
        step(X)
    code = LEDGER.last  # its report, at least, outlives the model
    residents = [weakref.ref(tensor) for tensor in resident_tensors(model)]
    store = weakref.ref(offloaded_weights(model)[model.first]["weight"].store)
    assert residents and code is not None
    del model, step
    gc.collect()
    assert store() is None and not any(ref() is not None for ref in residents)


def test_a_new_state_is_what_the_compiled_model_reads(model: Stack) -> None:
    step = compiled(model, weight_bytes(Stack()) // 2)
    with torch.no_grad():
        step(X)
        state = {name: value * 0.5 for name, value in model.state_dict().items()}
        model.load_state_dict(state)
        plain = Stack().eval()
        plain.load_state_dict(state)
        torch.testing.assert_close(step(X), plain(X))


def test_what_is_trained_beside_frozen_weights_gets_the_same_gradients(tmp_path: Path) -> None:
    def adapted() -> Any:
        model: Any = Stack().eval()
        model.requires_grad_(False)
        model.adapter = nn.Parameter(torch.ones(WIDTH))
        model.layers[4].register_forward_pre_hook(lambda _, args: (args[0] * model.adapter,))
        return model.train()

    plain, frozen = adapted(), adapted()
    memcompile.offload_parameters(frozen, directory=tmp_path, parameters=lambda name, _: name != "adapter")
    plain(X).square().sum().backward()
    step = compiled(frozen)
    step(X).square().sum().backward()
    torch.testing.assert_close(frozen.adapter.grad, plain.adapter.grad)
    report = memcompile.report(step).graphs[-1]
    assert report.kind == "train"
    assert report.saved_bytes < 3 * WIDTH * WIDTH * 4, "weights are read again for the backward, not saved"


def test_a_weight_that_the_model_returns_is_read_for_it(tmp_path: Path) -> None:
    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.layer(x), self.layer.weight.t(), self.layer.bias

    model = Returning().eval()
    with torch.no_grad():
        plain = [t.clone() for t in model(torch.ones(2, 8))]
        memcompile.offload_parameters(model, directory=tmp_path)
        found = compiled(model, 10**6)(torch.ones(2, 8))
    assert all(torch.allclose(*pair) for pair in zip(found, plain, strict=True))


def test_reads_end_with_the_model(model: Stack) -> None:
    with torch.no_grad():
        compiled(model, weight_bytes(Stack()) // 2)(X)
    stores = {id(w.store): w.store for weights in offloaded_weights(model).values() for w in weights.values()}
    (store,) = stores.values()
    assert store.residents.tensors()
    store.close()
    assert not store.residents.tensors()
    with torch.no_grad(), pytest.raises(memcompile.MemcompileError, match="closed"):
        model(X)
