"""Which graphs a report lists: those of the model that it is asked for, of its last compile, for as long as Dynamo has them.

Sessions run as they do, Inductor does not: graphs run as they were captured.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import memcompile
from memcompile.compiling import explain
from memcompile.errors import NoReportError
from memcompile.report.data import GraphReport
from memcompile.runtime.ledger import LEDGER

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "uncompiled")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcompile.compiling.session.compile_graph", lambda gm, *_: gm.forward)
    monkeypatch.setattr("memcompile.compiling.explain._peak_point", lambda *_: None)
    explained = explain.graph_report

    def with_kind(session: Any, peak: Any) -> GraphReport:
        trains = torch.is_grad_enabled() and any(t.requires_grad for t in session.tensors)
        return dataclasses.replace(explained(session, peak), kind="train" if trains else "inference")

    monkeypatch.setattr("memcompile.compiling.session.explain.graph_report", with_kind)


def comp(what: Any, **options: Any) -> Any:
    return torch.compile(what, backend="memcompile", options=options or None)


def ids(what: Any) -> list[int]:
    """Graphs of a report, counted from the first of the test."""
    return [int(graph.graph_id) - FIRST[0] for graph in memcompile.report(what).graphs]


FIRST = [0]


@pytest.fixture(autouse=True)
def count() -> None:
    FIRST[0] = int(LEDGER.next_id()) + 1


class Net(nn.Module):
    """``width`` x ``width``, with a graph break in the middle where it is asked for."""

    def __init__(self, breaks: bool = False, width: int = 4) -> None:
        super().__init__()
        self.first, self.last, self.breaks = nn.Linear(width, width), nn.Linear(width, width), breaks

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        if self.breaks:
            torch._dynamo.graph_break()
        out: Tensor = self.last(x).sum() if self.training else self.last(x)
        return out

    def encode(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x).exp()
        return out

    def decode(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x).exp()
        return out


class Plain(nn.Module):
    """No parameters; the second graph reads nothing of the module."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin()
        torch._dynamo.graph_break()
        return x.cos()


class Stack(nn.Module):
    def __init__(self, number: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Net().eval() for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def x(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 4))


def no_report(what: Any) -> None:
    with pytest.raises(NoReportError):
        memcompile.report(what)


# --- what a report is asked for -----------------------------------------------------------------------------------------------


def ask_module(model: Net) -> tuple[Any, ...]:
    compiled = comp(model)
    compiled(x())
    return compiled, model, copy.copy(compiled)


def ask_in_place(model: Net) -> tuple[Any, ...]:
    model.compile(backend="memcompile")
    model(x())
    return (model,)


def ask_patched_forward(model: Net) -> tuple[Any, ...]:
    model.forward = comp(model.forward)  # type: ignore[method-assign]
    model(x())
    return model, model.forward


def ask_method(model: Net) -> tuple[Any, ...]:
    compiled = comp(model.encode)
    compiled(x())
    return compiled, model.encode, model


def ask_function(model: Net) -> tuple[Any, ...]:
    def step(batch: Tensor) -> Tensor:
        out: Tensor = model(batch) * 2
        return out

    compiled = comp(step)
    compiled(x())
    return compiled, step, model, model.first


def ask_function_of_model(model: Net) -> tuple[Any, ...]:
    def step(net: Net, batch: Tensor) -> Tensor:
        out: Tensor = net(batch) * 2
        return out

    compiled = comp(step)
    compiled(model, x())
    return compiled, step, model


def ask_without_gradients(model: Net) -> tuple[Any, ...]:
    @torch.no_grad()
    def step(batch: Tensor) -> Tensor:
        out: Tensor = model(batch)
        return out

    compiled = comp(step)
    compiled(x())
    return compiled, step, model


def ask_decorated_class(_model: Net) -> tuple[Any, ...]:
    class Decorated(Net):
        @torch.compile(backend="memcompile")
        def forward(self, batch: Tensor) -> Tensor:
            out: Tensor = self.last(batch).exp()
            return out

    net = Decorated()
    net(x())
    return net, net.forward, Decorated.forward


def ask_trainer(model: Net) -> tuple[Any, ...]:
    class Trainer:
        def step(self, batch: Tensor) -> Tensor:
            out: Tensor = model(batch) * 3
            return out

    trainer = Trainer()
    trainer.step = comp(trainer.step)  # type: ignore[method-assign]
    trainer.step(x())
    return trainer.step, Trainer.step, model


def ask_submodule(model: Net) -> tuple[Any, ...]:
    """A part that is compiled: the report of the whole has it."""
    model.first = comp(model.first)
    model(x())
    return model, model.first


def ask_sequence(_model: Net) -> tuple[Any, ...]:
    """A class of PyTorch's own, which Dynamo calls through a function of its own."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    compiled = comp(model)
    compiled(x())
    return compiled, model, model[0]


WAYS: dict[str, Callable[[Net], tuple[Any, ...]]] = {
    name.removeprefix("ask_"): way for name, way in list(globals().items()) if name.startswith("ask_")
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_asked_for_is_found(way: str) -> None:
    other = Net()
    for what in WAYS[way](Net()):
        assert ids(what) == [0], what
    no_report(other)
    no_report(comp(other))
    no_report(test_whatever_is_asked_for_is_found)
    no_report("a name")


@pytest.mark.parametrize(
    ("way", "name"), [("module", "Net"), ("method", "Net.encode"), ("function", "step"), ("decorated_class", "Decorated")]
)
def test_the_model_of_a_report_has_its_name(way: str, name: str) -> None:
    assert memcompile.report(WAYS[way](Net())[0]).model == name == memcompile.last_report().model


# --- one model, several graphs ------------------------------------------------------------------------------------------------


def test_recompiles_and_evaluation_are_of_the_same_program() -> None:
    model = Net()
    compiled = comp(model)
    compiled(x()).backward()
    compiled(x(3, 4)).backward()  # a short last batch
    model.eval()
    with torch.no_grad():
        compiled(x())
    assert ids(compiled) == ids(model) == [0, 1, 2]


@pytest.mark.parametrize("training", [True, False])
def test_graphs_after_a_break_are_part_of_it(training: bool) -> None:
    model = Net(breaks=True)
    compiled = comp(model)
    with torch.set_grad_enabled(training):
        compiled(x())
    assert ids(compiled) == ids(model) == [0, 1]
    steps = memcompile.report(model).steps
    assert len(steps) == (1 if training else 2)


def test_a_module_without_parameters() -> None:
    model, other = Plain(), Plain()
    compiled = comp(model)
    compiled(x())
    assert ids(compiled) == ids(model) == [0, 1]
    no_report(other)
    comp(other)(x())
    assert ids(other) == [0, 1]


def test_several_methods_are_several_programs() -> None:
    model = Net()
    encode, decode = comp(model.encode), comp(model.decode)
    encode(x()), decode(x())
    assert (ids(encode), ids(decode), ids(model), ids(model.decode)) == ([0], [1], [0, 1], [1])


# --- compiled again -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("kept", [False, True], ids=["dropped", "kept"])
def test_after_a_reset_the_old_graphs_are_gone(breaks: bool, kept: bool) -> None:
    model = Net(breaks)
    first = comp(model)
    first(x()).backward()
    count = 1 + breaks
    torch._dynamo.reset()
    assert ids(model) == list(range(count))  # of what was compiled last
    second = first if kept else comp(model)
    second(x()).backward()
    expected = list(range(count, 2 * count))
    assert ids(model) == ids(second) == ids(first) == expected if kept else ids(model) == ids(second) == expected
    torch._dynamo.reset()
    comp(Net())(x())
    no_report(model)
    no_report(second)


def test_two_budgets_are_two_programs() -> None:
    model = Net()
    first, second = comp(model), comp(model, memory_budget="1GiB")
    first(x()).backward()
    no_report(second)
    second(x()).backward()
    assert (ids(first), ids(second), ids(model)) == ([0], [1], [1])
    first(x(3, 4)).backward()
    assert (ids(first), ids(second), ids(model)) == ([0, 2], [1], [1])


def test_the_same_options_again_share_the_graph() -> None:
    model = Net()
    first = comp(model)
    first(x())
    second = comp(model)
    no_report(second)
    second(x())
    assert ids(first) == ids(second) == ids(model) == [0]


# --- several models -----------------------------------------------------------------------------------------------------------


def test_copies() -> None:
    model = Net()
    compiled = comp(model)
    compiled(x())
    clone, compiled_clone = copy.deepcopy(model), copy.deepcopy(compiled)
    no_report(clone)
    no_report(compiled_clone)
    comp(clone)(x())
    compiled_clone(x())
    assert ids(clone) == ids(compiled_clone) == ids(compiled) == [0]


def test_blocks_with_the_same_code() -> None:
    """Each compiled by itself: one graph, which runs for each of them."""
    model = Stack()
    for block in model.blocks:
        block.compile(backend="memcompile")
    with torch.no_grad():
        model(x())
    assert [ids(block) for block in model.blocks] == [[0]] * 3
    assert ids(model) == [0]


def test_blocks_hold_memory_together() -> None:
    model = Stack()
    for block in model.blocks:
        block.compile(backend="memcompile")
    batch = x().requires_grad_()
    model(batch).sum().backward()
    (step,) = memcompile.report(model).steps
    graph = memcompile.report(model.blocks[0]).graphs[0]
    assert step.graph_ids == (graph.graph_id,)
    (tape,) = [tape for tape in LEDGER.tapes.steps() if tape.runs]
    assert [call.run.number - tape.runs[0].number for call in tape.calls if call.run is not None] == [0, 1, 2]


def test_a_generator_and_its_discriminator() -> None:
    generator, critic = Net().eval(), Net()
    compiled = comp(generator), comp(critic)
    noise = x()
    compiled[1](compiled[0](noise).detach()).backward()  # the critic's step, beside a generator whose graph is alive
    compiled[1](compiled[0](noise)).backward()
    found = [memcompile.report(each) for each in (*compiled, generator, critic)]
    assert [[int(g.graph_id) - FIRST[0] for g in each.graphs] for each in found] == [[0], [1, 2], [0], [1, 2]]
    assert [len(step.graph_ids) for step in found[0].steps] == [1, 2], "without a backward it is a step by itself"
    assert found[0].steps[1] in found[1].steps


def test_one_function_that_uses_both() -> None:
    generator, critic = Net().eval(), Net()

    def step(noise: Tensor) -> Tensor:
        out: Tensor = critic(generator(noise))
        return out

    comp(step)(x()).backward()
    assert ids(generator) == ids(critic) == ids(step) == [0]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("regional", [False, True])
def test_fully_sharded(one_process: None, regional: bool) -> None:
    """What graphs read is in the place of the parameters for the call alone."""
    model, mesh = Stack(), init_device_mesh("cpu", (1,))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    compiled: Any = None if regional else comp(model)
    for block in model.blocks if regional else ():
        block.compile(backend="memcompile")
    (model if regional else compiled)(x().requires_grad_()).sum().backward()
    expected = [0]  # one graph, for three blocks
    assert ids(model) == expected
    assert all(ids(block) == expected for block in model.blocks) if regional else ids(compiled) == expected


def test_last_report() -> None:
    first, second = comp(Net()), comp(Net(breaks=True, width=5))
    first(x()), second(x(2, 5))
    assert memcompile.last_report() == memcompile.report(second)
    first(x())
    assert memcompile.last_report() == memcompile.report(second)
    torch._dynamo.reset()
    gc.collect()
    assert [int(g.graph_id) - FIRST[0] for g in memcompile.last_report().graphs] == [1, 2]


# --- how long -----------------------------------------------------------------------------------------------------------------


def books() -> int:
    gc.collect()
    return len(LEDGER.entries)


def test_a_reset_frees_the_reports_but_the_last() -> None:
    compiled = [comp(Net(breaks, width)) for breaks in (False, True) for width in (4, 5)]
    for each, width in zip(compiled, (4, 5, 4, 5), strict=True):
        each(x(2, width)).backward()
    entries = [weakref.ref(entry) for entry in LEDGER.entries]
    torch._dynamo.reset()
    gc.collect()
    assert books() == 0
    for each in compiled[:-1]:
        no_report(each)
    assert ids(compiled[-1])
    assert sum(ref() is not None for ref in entries) <= 4


def test_the_books_keep_no_model_alive() -> None:
    model = Net()
    ref = weakref.ref(model)
    comp(model)(x()).backward()
    del model
    gc.collect()
    assert ref() is None


def test_new_parameters_at_every_call_are_not_remembered() -> None:
    model = Net()
    step = comp(lambda params, batch: torch.func.functional_call(model, params, batch))
    for _ in range(5):
        step({name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}, x())
        gc.collect()
    assert all(len(entry.runs) <= 2 for entry in LEDGER.entries)
