"""The books of the process: what graphs hold, which graphs make one step, and the peak of the whole."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import memcompile
from memcompile.errors import NoReportError
from memcompile.report.data import GraphReport
from memcompile.runtime.ledger import GraphEntry, Ledger, Profile, chain_peak, gradient_bytes, storages
from tests.steps import QUICK


def report(name: str = "0") -> GraphReport:
    return GraphReport(graph_id=name, kind="train", device="cpu", planned_peak_bytes=1, unplanned_peak_bytes=1)


def entry(profile: Profile | None = None, tensors=(), code: object = None, name: str = "0") -> GraphEntry:
    return GraphEntry(profile or Profile({1: 10}, 5, 20, 30), report(name), tuple(map(weakref.ref, tensors)), code)


def output(size: int = 4) -> torch.Tensor:
    """A tensor with an autograd node, as a compiled forward returns it."""
    return torch.ones(size, requires_grad=True) * 2


class TestChainPeak:
    """``Profile(entry, held, forward peak, backward peak, gradients)``; peaks include the entry."""

    def test_one_graph(self):
        assert chain_peak([Profile({1: 10}, 5, 20, 30)]) == 30
        assert chain_peak([Profile({1: 10}, 5, 40, 30)]) == 40

    def test_nothing(self):
        assert chain_peak([]) == 0

    def test_the_second_forward_runs_beside_what_the_first_holds(self):
        first, second = (
            Profile({1: 10}, held_bytes=50, forward_peak_bytes=70, backward_peak_bytes=70),
            Profile({2: 7}, 1, 90, 30),
        )
        assert chain_peak([first, second]) == 10 + 7 + 50 + (90 - 7)

    def test_the_first_backward_runs_beside_the_gradients_of_the_second(self):
        first = Profile({1: 10}, 50, 70, backward_peak_bytes=100, gradient_bytes=3)
        assert chain_peak([first, Profile({2: 7}, 1, 8, 9, gradient_bytes=20)]) == 10 + 7 + 20 + (100 - 10)

    def test_shared_storages_count_once(self):
        first, second = Profile({1: 10}, 0, 10, 0), Profile({1: 10, 2: 5}, 0, 15, 0)
        assert chain_peak([first, second]) == 15

    def test_what_a_graph_passes_on_is_what_it_holds(self):
        """A negative key is a result of the graph before: it is in that graph's ``held_bytes`` already."""
        first = Profile({1: 10}, held_bytes=8, forward_peak_bytes=18, backward_peak_bytes=0)
        assert chain_peak([first, Profile({-9: 8}, 0, forward_peak_bytes=20, backward_peak_bytes=0)]) == 10 + 8 + (20 - 8)

    def test_an_inference_graph_has_no_backward(self):
        assert chain_peak([Profile({1: 10}, 100, 20, 0)]) == 20


class TestHolds:
    def test_from_the_forward_to_the_backward(self):
        ledger, graph, out = Ledger(), entry(), output()
        ledger.hold(graph, [None, out])
        assert ledger.chain() == (graph,)
        out.sum().backward()
        assert ledger.chain() == ()

    def test_until_the_autograd_graph_dies(self):
        ledger, graph, out = Ledger(), entry(), output()
        ledger.hold(graph, [out])
        assert ledger.chain() == (graph,)
        del out
        gc.collect()
        assert ledger.chain() == ()

    def test_a_step_that_only_a_cycle_keeps_is_not_counted(self):
        """A traceback holds the frames of a step that failed, and they hold its outputs."""
        ledger, lost = Ledger(), []
        lost += [lost, output()]
        ledger.hold(entry(), [lost[1]])
        del lost
        assert ledger.outside_bytes([]) == 0

    def test_a_graph_that_runs_twice_is_one_link_of_the_chain(self):
        ledger, graph, outs = Ledger(), entry(), [output(), output()]
        for out in outs:
            ledger.hold(graph, [out])
        assert ledger.chain() == (graph,)
        outs[0].sum().backward()
        assert ledger.chain() == (graph,)
        outs[1].sum().backward()
        assert ledger.chain() == ()

    def test_outputs_without_gradient_hold_nothing(self):
        ledger = Ledger()
        ledger.hold(entry(), [torch.ones(2), None, 3])
        assert ledger.chain() == ()

    def test_the_gradients_that_arrived_are_told(self):
        ledger, out, told = Ledger(), output(), []
        ledger.hold(entry(), [out], told.append)
        (out * 3).sum().backward()
        assert torch.equal(told[0][0], torch.full((4,), 3.0))


class TestOutsideBytes:
    def test_nothing_runs(self):
        assert Ledger().outside_bytes([torch.ones(8)]) == 0

    def test_gradients_that_the_inputs_have(self):
        parameter = nn.Parameter(torch.ones(8))
        parameter.grad = torch.ones(8)
        assert Ledger().outside_bytes([parameter]) == gradient_bytes([parameter]) == 32

    def test_what_earlier_graphs_read_and_hold(self):
        ledger, out = Ledger(), output(16)  # 64 bytes
        shared = torch.ones(4)
        before = {**storages([shared]), 12345: 100}
        ledger.hold(entry(Profile(before, held_bytes=64 + 40, forward_peak_bytes=200, backward_peak_bytes=200)), [out])
        assert ledger.outside_bytes([shared, out]) == 100 + 40  # ``out`` is this graph's own input


class TestGroups:
    def test_graphs_of_one_step_are_one_group(self):
        ledger, first, second = Ledger(), entry(name="a"), entry(Profile({2: 7}, 1, 90, 30), name="b")
        ledger.add(first)
        out = output()
        ledger.hold(first, [out])
        ledger.add(second)
        assert [g.graph_id for g in ledger.last_report().graphs] == ["a", "b"]
        assert ledger.last_report().step_peak_bytes == 10 + 7 + 5 + 83

    def test_graphs_that_share_a_parameter_are_one_group(self):
        ledger, parameter, other = Ledger(), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        for tensors in ([parameter], [other], [parameter, other]):
            ledger.add(entry(tensors=tensors))
        assert [len(group.entries) for group in ledger.groups] == [2, 1]

    def test_the_last_report_is_that_of_the_model_compiled_last(self):
        ledger = Ledger()
        with pytest.raises(NoReportError):
            ledger.last_report()
        ledger.add(entry(tensors=[nn.Parameter(torch.ones(2))], name="x"))
        assert ledger.last_report().graphs[0].graph_id == "x"

    def test_a_module_without_parameters_is_known_by_its_code(self):
        class Plain(nn.Module):
            def forward(self, x):
                return x.sin().cos().sum()

        torch._dynamo.reset()
        model = Plain()
        torch.compile(model, backend="memcompile", options={"inductor": QUICK})(torch.randn(8))
        assert len(memcompile.report(model).graphs) == 1

        class Owning(Plain):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(8))

            def forward(self, x):
                return (x * self.weight).sum()

        torch.compile(Owning(), backend="memcompile", options={"inductor": QUICK})(torch.randn(8))
        with pytest.raises(NoReportError):
            memcompile.report(Owning())


def test_distinct_storages():
    a = torch.ones(8)
    result = torch.ones(8, requires_grad=True) * 2
    found = storages([a, a.view(2, 4), a[3:], result])
    assert sorted(found.values()) == [32, 32]
    assert sorted(key < 0 for key in found) == [False, True]
