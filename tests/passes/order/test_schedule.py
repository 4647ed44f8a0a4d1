"""The order of kernels through torch.compile: its peak is the one that the lowered code has, and numbers stay what they are."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import memcompile
from memcompile.codegen.inductor import kernels
from memcompile.codegen.inductor import ordering as schedule
from memcompile.codegen.inductor.scheduled import Scheduling, own_peak
from memcompile.codegen.inductor.trial import lower, lower_step
from memcompile.compiling.dryrun import captured
from memcompile.runtime.measure import measure_peak
from memcompile.solvers.order.ordering import OrderKernel, OrderProblem, OrderStorage
from memcompile.step.facts import StepGraphs
from memcompile.step.trace import GraphTrace
from tests.steps import QUICK
from tests.test_backend import case

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Branches(nn.Module):
    """Wide branches that leave little: run side by side, their insides are alive together."""

    def __init__(self, width: int = 16, branches: int = 4) -> None:
        super().__init__()
        self.widen = nn.ModuleList(nn.Linear(width, (8 + 4 * i) * width) for i in range(branches))
        self.narrow = nn.ModuleList(nn.Linear((8 + 4 * i) * width, width) for i in range(branches))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = [F.dropout(widen(x).sin(), 0.5, self.training) for widen in self.widen]
        parts = [narrow(part) for narrow, part in zip(self.narrow, wide, strict=True)]
        return torch.cat([part * sum(parts) for part in parts], 1).square().mean()


class Drawing(nn.Module):
    """Random numbers from the generator itself, in branches that could run in any order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = [torch.bernoulli(x.repeat(1, i).sigmoid()) @ x.repeat(i, 1) for i in (1, 3, 2)]
        return wide[0] + wide[1].t() * wide[2]


class Mutating(nn.Module):
    """A buffer that is read, written and read again."""

    state: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.ones(32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = x @ self.state
        self.state.mul_(2).add_(x)
        return before + x @ self.state


class Unmoved(Scheduling):
    """Works out an order and leaves Inductor's."""

    def _ordered(self, before: list[Any], chosen: list[Any], *rest: Any) -> list[Any]:
        super()._ordered(before, chosen, *rest)
        self.apart.clear()
        return chosen


def traces(graphs: StepGraphs, scheduling: Scheduling) -> dict[str, GraphTrace]:
    if graphs.backward is None:
        return {"inference": lower(graphs.forward, kind="inference", shares=(0.0,), scheduling=scheduling)}
    halves = lower_step(graphs.forward, graphs.backward, graphs.num_user_outputs, shares=(0.0,), scheduling=scheduling)
    return dict(zip(("forward", "backward"), halves, strict=True))


def model_and_batch(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    if name == "branches":
        return Branches(), {"x": torch.randn(64, 16)}
    if name in ("darts", "densenet"):
        from benchmarks.branching import CellNet, DenseNet

        model: nn.Module = CellNet("darts", width=4) if name == "darts" else DenseNet((2, 2), 8)
        return model, {"pixels": torch.randn(2, 3, 16, 16), "labels": torch.arange(2)}
    model, inputs = case(name)
    names = {"mlp": ("x",), "transformer": ("tokens", "targets"), "conv": ("image", "label")}[name]
    return model, dict(zip(names, inputs, strict=True))


@pytest.mark.parametrize(
    ("name", "training"),
    [*((name, True) for name in ("mlp", "transformer", "conv", "branches", "densenet")), ("branches", False), ("darts", False)],
)
def test_the_peak_of_the_model_is_that_of_the_lowered_code(name: str, training: bool) -> None:
    """In Inductor's order and in ours, which is never worse than any of its heuristics."""
    model, batch = model_and_batch(name)
    (graphs,) = captured(model.train(training), batch, training=training)
    unmoved, ours = Unmoved(), Scheduling()
    for kind, trace in traces(graphs, unmoved).items():
        assert own_peak(trace, unmoved.entry[kind]) == unmoved.orderings[kind].before_bytes
    for kind, trace in traces(graphs, ours).items():
        found = ours.orderings[kind]
        assert own_peak(trace, ours.entry[kind]) == found.order.peak_bytes
        assert set(found.known_bytes) >= {"graph order", "LPMF", "BFS", "DFS"}
        assert found.order.bound_bytes <= found.order.peak_bytes <= min(found.before_bytes, *found.known_bytes.values())


class Parts(nn.Module):
    """What one product returns is saved as its four columns of parts, each a view of it all."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 64)
        self.scales = nn.ParameterList(torch.randn(16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.up(x).view(-1, 4, 16).unbind(1)
        return torch.stack([part @ torch.diag(scale) for part, scale in zip(parts, self.scales, strict=True)]).square().mean()


def test_saved_views_of_one_storage_count_once() -> None:
    (graphs,) = captured(Parts(), {"x": torch.randn(64, 16)}, training=True)
    scheduling = Scheduling()
    found = traces(graphs, scheduling)
    root, size_bytes = found["forward"].storages()
    saved = {root[name] for name in found["forward"].outputs[graphs.num_user_outputs :] if name in root}
    entry = scheduling.entry["backward"]
    assert sum(event.size_bytes for event in entry) == sum(size_bytes[name] for name in saved)
    assert any(event.kind == "alias" for event in entry)
    assert own_peak(found["backward"], entry) == scheduling.orderings["backward"].order.peak_bytes


def test_branches_take_less_than_in_inductors_order() -> None:
    model, batch = model_and_batch("branches")
    (graphs,) = captured(model.eval(), batch, training=False)
    scheduling = Scheduling()
    traces(graphs, scheduling)
    found = scheduling.orderings["inference"]
    assert found.order.peak_bytes < 0.9 * min(found.apart_bytes, *found.known_bytes.values())
    assert found.order.status == "optimal"


def run(
    model: nn.Module, batch: dict[str, torch.Tensor], inductor: dict[str, object] | None = None, **options: Any
) -> tuple[list[torch.Tensor], memcompile.Report]:
    """Loss, gradients, buffers and the state of the generator after a step, and the report of its last graph."""
    torch._dynamo.reset()
    options["inductor"] = {**QUICK, **(inductor or {})}
    compiled = torch.compile(model, backend="memcompile", options=options)
    torch.manual_seed(1)
    loss = compiled(**batch)
    if loss.requires_grad:
        loss.sum().backward()
    state = [loss.detach(), *(p.grad for p in model.parameters()), *model.buffers(), torch.get_rng_state()]
    report = memcompile.last_report()
    assert report is not None
    return state, memcompile.Report(report.graphs[-1:])


@pytest.mark.parametrize("make", [Drawing, Mutating, Branches])
@pytest.mark.parametrize("inductor", [{}, {"fallback_random": True}])
def test_results_are_those_without_it(make: type[nn.Module], inductor: dict[str, object]) -> None:
    """Bit for bit, random numbers too."""
    batch = {"x": torch.randn(32, 32)} if make is not Branches else {"x": torch.randn(64, 16)}
    results = []
    for enabled in (True, False):
        torch.manual_seed(0)
        state, report = run(make(), batch, schedule=enabled, inductor=inductor)
        assert bool(report.graphs[0]["schedule"].orders) == enabled
        results.append(state)
    assert all(torch.equal(ours, plain) for ours, plain in zip(*results, strict=True))


def test_measured_peak_falls_with_the_order() -> None:
    model, batch = model_and_batch("branches")
    peaks = []
    for enabled in (True, False):
        torch._dynamo.reset()
        with torch.no_grad():
            compiled = torch.compile(model.eval(), backend="memcompile", options={"schedule": enabled, "inductor": QUICK})
            peaks.append(measure_peak(lambda: compiled(**batch), model=model, inputs=(batch["x"],)).peak_bytes)  # noqa: B023
    assert peaks[0] < peaks[1]


def test_the_report_has_the_order() -> None:
    model, batch = model_and_batch("branches")
    _, ours = run(model, batch)
    assert {order.kind for order in ours.graphs[0]["schedule"].orders} == {"forward", "backward"}
    assert " order " in str(ours)
    assert memcompile.Report.from_json(ours.to_json()).graphs[0]["schedule"].orders == ours.graphs[0]["schedule"].orders


def test_a_dry_run_orders_as_compiling_does() -> None:
    model, batch = model_and_batch("branches")
    dry = memcompile.plan(model, options=None, **batch)
    _, real = run(model, batch)
    assert dry.planned_peak_bytes == real.planned_peak_bytes
    assert [(o.kind, o.after_bytes) for o in dry.graphs[0]["schedule"].orders] == [
        (o.kind, o.after_bytes) for o in real.graphs[0]["schedule"].orders
    ]


def test_a_plan_sets_the_order_itself() -> None:
    model, batch = model_and_batch("mlp")
    report = memcompile.plan(model, **batch, options={"memory_budget": "60%"})
    assert report.graphs[0].passes and not report.graphs[0]["schedule"].orders


def test_inductors_own_switch_is_kept() -> None:
    model, batch = model_and_batch("branches")
    _, report = run(model, batch, inductor={"reorder_for_peak_memory": False})
    assert not report.graphs[0]["schedule"].orders


def test_the_scheduler_is_left_as_it_was() -> None:
    import torch._inductor.memory as memory
    from torch._inductor.codegen.cpp import CppScheduling

    before = memory.reorder_for_peak_memory, CppScheduling.ready_to_flush
    with pytest.raises(KeyError), Scheduling().active():
        assert memory.reorder_for_peak_memory is not before[0]
        raise KeyError
    assert (memory.reorder_for_peak_memory, CppScheduling.ready_to_flush) == before


def test_a_crash_is_an_error_that_names_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or Inductor's order, where the user chose it."""

    def crash(*args: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(schedule, "plan_order", crash)
    model, batch = model_and_batch("mlp")
    with pytest.raises(memcompile.errors.PassError, match=r"schedule.*division by zero"):
        run(model, batch)
    _, report = run(model, batch, fallback="inductor")
    assert not report.graphs[0]["schedule"].orders


def fx_node(target: Any) -> torch.fx.Node:
    graph = torch.fx.Graph()
    return graph.call_function(target, (graph.placeholder("x"),))


def scheduler_node(*origins: torch.fx.Node, effects: bool = False) -> SimpleNamespace:
    part = SimpleNamespace(node=SimpleNamespace(get_origins=lambda: origins))
    return SimpleNamespace(get_nodes=lambda: [part], has_side_effects=lambda: effects)


@pytest.mark.parametrize(
    ("target", "ordered"),
    [
        (torch.ops._c10d_functional.all_reduce.default, True),
        (torch.ops._c10d_functional.wait_tensor.default, True),
        (torch.ops.aten.bernoulli.default, True),
        (torch.ops.prims.inductor_seed.default, True),
        (torch.ops.aten.sin.default, False),
    ],
)
def test_what_keeps_its_place_among_its_like(target: str, ordered: bool) -> None:
    assert kernels._is_ordered(scheduler_node(fx_node(target))) == ordered
    assert kernels._is_ordered(scheduler_node(effects=True))


def test_random_kernels_keep_their_order() -> None:
    """Each of them can only run behind the one before."""
    from torch._inductor.virtualized import V

    found: list[list[list[object]]] = []
    chains: list[tuple[OrderProblem, list[int]]] = []

    class Watched(Scheduling):
        def _ordered(self, before: list[Any], chosen: list[Any], *rest: Any) -> list[Any]:
            ordered = super()._ordered(before, chosen, *rest)
            drawing = [[n for n in nodes if kernels._is_ordered(n)] for nodes in (chosen, ordered)]
            found.append(drawing)
            graph = kernels.KernelGraph(chosen, V.graph)
            chains.append((graph.problem, [graph.unit[node] for node in drawing[0]]))
            return ordered

    with torch._inductor.config.patch(fallback_random=True):
        (graphs,) = captured(Drawing(), {"x": torch.randn(32, 32)}, training=False)
        scheduling = Watched()
        traces(graphs, scheduling)
    assert scheduling.orderings["inference"].changed
    ((before, after),) = found
    assert len(before) >= 3 and before == after
    problem, places = chains[0]
    assert all(problem.behind[first] >> second & 1 for first, second in itertools.pairwise(dict.fromkeys(places)))


def test_an_order_that_is_not_better_is_not_taken() -> None:
    problem = OrderProblem(
        (OrderKernel("a", (0,)), OrderKernel("b", (1,))), (OrderStorage("x", 4, at_end=True), OrderStorage("y", 4, at_end=True))
    )
    found = schedule.plan_order("forward", problem, {"other": (1, 0), "not allowed": (0, 0)})
    assert (found.order.sequence, found.order.method, found.changed) == ((0, 1), schedule.INDUCTOR, False)
    assert found.known_bytes == {"other": 8}
