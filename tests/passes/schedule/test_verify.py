"""Planted errors: each invariant of a planned step finds its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from memcompile.compiling.unchanged import check_unchanged
from memcompile.passes.schedule.check import verify
from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import RematSchedule, RematSolution
from memcompile.step.facts import Facts
from memcompile.step.fxutil import outputs_of
from memcompile.step.verify_graph import check_shapes
from memcompile.step.verify_values import VerificationError, check_values
from tests.planned_eagerly import Planned, Planner


class Net(nn.Module):
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = nn.functional.dropout(torch.tanh(layer(x)), 0.2)
        self.seen += 1
        return x.sum()


def keep_nothing(facts: Facts) -> RematSchedule:
    return decode(RematIndex.of(facts.problem), {facts.problem.boundary: set()})


@pytest.fixture
def planned() -> Planned:
    """A plan that makes everything again, fresh for every test: the tests damage it."""
    torch._dynamo.reset()
    planner = Planner(keep_nothing)
    torch.compile(Net(), backend=planner)(torch.randn(4, 8))
    assert planner.planned[0].joint.recomputed
    return planner.planned[0]


def check(planned: Planned, schedule: RematSchedule | None = None) -> None:
    solution = RematSolution(schedule or planned.schedule, 0, 0.0, 0.0, "heuristic", "test", 0.0)
    check_unchanged(planned.facts.graphs, planned.graphs)
    verify(planned.facts, solution, planned.joint, planned.facts.graphs, planned.graphs)


def test_a_right_plan_passes(planned: Planned) -> None:
    check(planned)


def test_a_schedule_that_reads_what_is_not_there(planned: Planned) -> None:
    sequence = list(planned.schedule.sequence)
    sequence.remove(planned.schedule.sequence[-2])
    with pytest.raises(ValueError, match=r"op|execution"):
        check(planned, RematSchedule(tuple(sequence), planned.schedule.split))


def test_random_state_drawn_twice(planned: Planned) -> None:
    graph = planned.graphs.forward.graph
    seeds = next(n for n in graph.nodes if "inductor_seeds" in str(n.target))
    with graph.inserting_before(graph.output_node()):
        graph.node_copy(seeds, lambda node: node)
    with pytest.raises(VerificationError, match=r"effects of the forward .* before, .*inductor_seeds.*inductor_seeds.* after"):
        check(planned)


def test_a_mutation_that_went_missing(planned: Planned) -> None:
    graph = planned.graphs.forward.graph
    copy = next(n for n in graph.nodes if str(n.target) == "aten.copy_.default")
    copy.replace_all_uses_with(copy.args[0])
    graph.erase_node(copy)
    with pytest.raises(VerificationError, match="the forward leaves other values in primals"):
        check(planned)


def test_a_mutation_that_happens_twice(planned: Planned) -> None:
    graph = planned.graphs.forward.graph
    copy = next(n for n in graph.nodes if str(n.target) == "aten.copy_.default")
    with graph.inserting_after(copy):
        graph.node_copy(copy, lambda node: node)
    with pytest.raises(VerificationError, match="the forward leaves other values in primals"):
        check(planned)


def test_operands_that_changed_places(planned: Planned) -> None:
    assert planned.graphs.backward is not None
    graph = planned.graphs.backward.graph
    product = next(n for n in graph.nodes if str(n.target) == "aten.mm.default")
    product.args = product.args[::-1]
    with pytest.raises(VerificationError, match=r"of the backward, .* is another value"):
        check_values(planned.facts.graphs, planned.graphs)


@pytest.mark.parametrize("half", ["forward", "backward"])
def test_an_output_of_another_shape(planned: Planned, half: str) -> None:
    module = getattr(planned.graphs, half)
    node = next(n for n in outputs_of(module.graph) if n is not None)
    node.meta = {**node.meta, "val": torch.empty(3, 5, device="meta")}
    with pytest.raises(VerificationError, match=r"output \d+ changed"):
        check(planned)


def test_gradients_in_another_order(planned: Planned) -> None:
    assert planned.graphs.backward is not None
    output = planned.graphs.backward.graph.output_node()
    gradients = list(outputs_of(planned.graphs.backward.graph))
    first, second = (next(i for i, g in enumerate(gradients) if g is not None and g.meta["val"].dim() == dim) for dim in (1, 2))
    gradients[first], gradients[second] = gradients[second], gradients[first]
    output.args = (tuple(gradients),)
    with pytest.raises(VerificationError, match="changed"):
        check(planned)


def test_inputs_of_the_forward(planned: Planned) -> None:
    placeholder = planned.graphs.forward.graph.find_nodes(op="placeholder")[0]
    placeholder.target = "something_else"
    with pytest.raises(VerificationError, match="inputs changed"):
        check(planned)


def test_a_node_without_a_fake_value(planned: Planned) -> None:
    node = next(n for n in planned.graphs.forward.graph.nodes if n.op == "call_function")
    del node.meta["val"]
    with pytest.raises(VerificationError, match=f"{node.name} .*no fake value"):
        check_shapes(planned.graphs.forward)


def test_a_broken_graph(planned: Planned) -> None:
    """Use before definition: what FX's own lint finds arrives as its error."""
    graph = planned.joint.module.graph
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    used = next(n for n in nodes if any(user.op == "call_function" for user in n.users))
    nodes[-1].append(used)
    with pytest.raises(RuntimeError, match="used before"):
        check(planned)


def test_the_plan_is_what_is_verified(planned: Planned) -> None:
    """A plan for other facts is not a plan for these."""
    shorter = dataclasses.replace(planned.facts.problem, ops=planned.facts.problem.ops[:-1])
    facts = dataclasses.replace(planned.facts, problem=shorter)
    with pytest.raises(ValueError, match="there is no op"):
        check(dataclasses.replace(planned, facts=facts))
