"""The books of the process: what graphs hold, which graphs make one step, and the peak of the whole."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from memcompile.errors import NoReportError
from memcompile.report.data import GraphReport, Report, StepReport
from memcompile.report.html import render_html
from memcompile.runtime.ledger import GraphEntry, Ledger, Outside, gradient_bytes, storages
from memcompile.runtime.profile import Profile, chain_peak
from memcompile.runtime.reports import last_report, report_over
from memcompile.runtime.tape import Course, Tape
from memcompile.solvers.calls.choose import Share


def report(name: str = "0", planned_peak_bytes: int = 1, budget_bytes: int | None = None) -> GraphReport:
    peaks: dict[str, Any] = {"planned_peak_bytes": planned_peak_bytes, "unplanned_peak_bytes": planned_peak_bytes}
    return GraphReport(graph_id=name, kind="train", device="cpu", budget_bytes=budget_bytes, **peaks)


def entry(profile: Profile | None = None, **of_report: Any) -> GraphEntry:
    return GraphEntry(profile or Profile({1: 10}, 5, 20, 30), report(**of_report))


def output(size: int = 4) -> Any:
    """A tensor with an autograd node, as a compiled forward returns it."""
    return torch.ones(size, requires_grad=True) * 2


def call(ledger: Ledger, graph: GraphEntry) -> Any:
    """A graph is compiled and runs forward, as one call of a step. Returns what waits for its backward."""
    ledger.add(graph)
    out = output()
    tape, number = ledger.begin(graph, (graph.report.graph_id,), None)
    tape.calls[number].ran_as(graph, ledger.ran(graph, ()))
    tape.note("returned", number)
    ledger.hold(graph, [out], call=(tape, number))
    return out


class TestChainPeak:
    """``Profile(entry, held, forward peak, backward peak, gradients)``; peaks include the entry."""

    def test_one_graph(self) -> None:
        assert chain_peak([Profile({1: 10}, 5, 20, 30)]) == 30
        assert chain_peak([Profile({1: 10}, 5, 40, 30)]) == 40

    def test_nothing(self) -> None:
        assert chain_peak([]) == 0

    def test_the_second_forward_runs_beside_what_the_first_holds(self) -> None:
        first, second = (
            Profile({1: 10}, held_bytes=50, forward_peak_bytes=70, backward_peak_bytes=70),
            Profile({2: 7}, 1, 90, 30),
        )
        assert chain_peak([first, second]) == 10 + 7 + 50 + (90 - 7)

    def test_the_first_backward_runs_beside_the_gradients_of_the_second(self) -> None:
        first = Profile({1: 10}, 50, 70, backward_peak_bytes=100, gradient_bytes=3)
        assert chain_peak([first, Profile({2: 7}, 1, 8, 9, gradient_bytes=20)]) == 10 + 7 + 20 + (100 - 10)

    def test_shared_storages_count_once(self) -> None:
        first, second = Profile({1: 10}, 0, 10, 0), Profile({1: 10, 2: 5}, 0, 15, 0)
        assert chain_peak([first, second]) == 15

    def test_what_a_graph_passes_on_is_what_it_holds(self) -> None:
        """A negative key is a result of the graph before: it is in that graph's ``held_bytes`` already."""
        first = Profile({1: 10}, held_bytes=8, forward_peak_bytes=18, backward_peak_bytes=18)
        assert chain_peak([first, Profile({-9: 8}, 0, forward_peak_bytes=20, backward_peak_bytes=0)]) == 10 + 8 + (20 - 8)

    def test_an_inference_graph_has_no_backward(self) -> None:
        assert chain_peak([Profile({1: 10}, 100, 20, 0)]) == 20

    def test_gradients_that_accumulate_are_there_from_the_start_and_not_twice(self) -> None:
        first = Profile({1: 10}, 50, 70, backward_peak_bytes=100, gradient_bytes=3, existing={5: 3})
        second = Profile({2: 7}, 1, 8, 9, gradient_bytes=20, existing={6: 20})
        assert chain_peak([first, second]) == 10 + 7 + 3 + 20 + (100 - 10)

    def test_a_graph_that_runs_twice_holds_twice(self) -> None:
        layer = Profile({1: 10}, held_bytes=5, forward_peak_bytes=16, backward_peak_bytes=18)
        assert chain_peak([layer, layer, layer]) == 10 + 2 * 5 + (18 - 10)

    def test_what_the_forward_returned_counts_while_it_is_there(self) -> None:
        profile = Profile({1: 10}, 50, 60, 100, returned_bytes=40, dropped_backward_peak_bytes=70)
        assert [chain_peak([profile.keeping(kept)]) for kept in (None, 0, 8, 40)] == [100, 70, 78, 100]


class TestHolds:
    def test_from_the_forward_to_the_backward(self) -> None:
        ledger, graph, out = Ledger(), entry(), output()
        ledger.hold(graph, [None, out])
        assert ledger.chain() == (graph,)
        out.sum().backward()
        assert ledger.chain() == ()

    def test_until_the_autograd_graph_dies(self) -> None:
        ledger, graph, out = Ledger(), entry(), output()
        ledger.hold(graph, [out])
        assert ledger.chain() == (graph,)
        del out
        gc.collect()
        assert ledger.chain() == ()

    def test_a_step_that_only_a_cycle_keeps_is_not_counted(self) -> None:
        """A traceback holds the frames of a step that failed, and they hold its outputs."""
        ledger = Ledger()
        lost: list[Any] = []
        lost += [lost, output()]
        ledger.hold(entry(), [lost[1]])
        del lost
        assert ledger.outside([]) == Outside()

    def test_a_graph_that_runs_twice_holds_twice(self) -> None:
        ledger, graph, outs = Ledger(), entry(), [output(), output()]
        for out in outs:
            ledger.hold(graph, [out])
        assert ledger.chain() == (graph, graph)
        outs[0].sum().backward()
        assert ledger.chain() == (graph,)
        outs[1].sum().backward()
        assert ledger.chain() == ()

    def test_what_is_returned_is_looked_at_as_the_backward_begins(self) -> None:
        ledger, graph, out, dropped = Ledger(), entry(), output(4), output(100)
        total = out.sum() + dropped.sum()
        ledger.hold(graph, [out, dropped])
        del dropped
        total.backward()
        assert graph.seen.kept_bytes == 16

    def test_outputs_without_gradient_hold_nothing(self) -> None:
        ledger = Ledger()
        ledger.hold(entry(), [torch.ones(2), None, 3])
        assert ledger.chain() == ()

    def test_the_gradients_that_arrived_are_told(self) -> None:
        ledger, out = Ledger(), output()
        told: list[Any] = []
        ledger.hold(entry(), [out], told.append)
        (out * 3).sum().backward()
        assert torch.equal(told[0][0], torch.full((4,), 3.0))


class TestOutside:
    def test_nothing_runs(self) -> None:
        assert Ledger().outside([torch.ones(8)]) == Outside()

    def test_gradients_that_the_inputs_have(self) -> None:
        parameter = nn.Parameter(torch.ones(8))
        parameter.grad = torch.ones(8)
        assert gradient_bytes([parameter]) == 32
        assert Ledger().outside([parameter]) == Outside(certain_bytes=32)

    def test_what_earlier_graphs_read_return_and_save(self) -> None:
        """What was returned and is gone is no longer counted; the parameters of others are there whatever is planned."""
        ledger, out, gone = Ledger(), output(16), output(32)
        shared, own, batch = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(25)), torch.ones(3)
        own.grad = torch.ones(25)
        profile = Profile(storages([shared, own]), 40 + 64 + 128, 300, 300, returned_bytes=64 + 128)
        graph = GraphEntry(profile, report(), owned=(0, 1))
        ledger.add(graph, [shared, own])
        ledger.hold(graph, [out, gone], given=[batch])
        assert ledger.outside([shared, out]) == Outside(100 + 100, 128 + 40 + 12)
        del gone
        assert ledger.outside([shared, out]) == Outside(100 + 100, 40 + 12)

    @pytest.mark.parametrize(
        ("part", "around"),
        [
            (lambda x: [x], 0),
            (lambda x: [x[:2]], 4 * 24),
            (lambda x: [x[:2], x[5:]], 4 * 12),
            (lambda x: list(x.split(2)), 0),
            (lambda x: [x.t(), x.view(-1)], 0),
            (lambda x: [x[:, :2]], 4 * 2),
            (lambda x: [x[3:3]], 4 * 32),
            (lambda x: [x[0].expand(9, 4)], 4 * 28),
        ],
    )
    def test_what_lies_around_a_view_is_alive_too(
        self, part: Callable[[torch.Tensor], list[torch.Tensor]], around: int
    ) -> None:
        given = part(torch.ones(8, 4))
        assert Ledger().outside(given) == Outside(certain_bytes=around, around_bytes=around)

    def test_what_two_runs_save_counts_twice(self) -> None:
        ledger, outs = Ledger(), [output(4), output(4)]
        graph = entry(Profile({}, 40 + 16, 100, 100, returned_bytes=16))
        for out in outs:
            ledger.hold(graph, [out])
        assert ledger.outside([]) == Outside(0, 2 * (40 + 16))


class TestStale:
    """What somebody keeps, and gives no backward, is alive and no part of later steps."""

    def test_a_result_that_is_kept(self) -> None:
        ledger, first, second = Ledger(), entry(name="a"), entry(name="b")
        kept = call(ledger, first)
        for number in range(3):
            out = call(ledger, second)
            assert ledger.waiting
            out.sum().backward()
            assert ledger.waiting is (number == 0), "the first step may still go on"
            assert ledger.chain() == (first,)
        assert [len(tape.calls) for tape in ledger.tapes.steps()][-1] == 1
        del kept
        assert ledger.chain() == () and not ledger.stale

    def test_calls_that_go_on_are_one_step(self) -> None:
        ledger, graph = Ledger(), entry()
        outs = [call(ledger, graph) for _ in range(3)]
        assert ledger.tapes.open is not None and len(ledger.tapes.open.calls) == 3 and not ledger.stale
        torch.autograd.backward([out.sum() for out in outs])
        assert not ledger.waiting and ledger.tapes.open is None


class TestCourses:
    """Steps that begin alike: each is planned once, whichever was expected."""

    def test_a_step_that_was_not_expected_is_planned_once(self) -> None:
        ledger, first, second = Ledger(), entry(name="a"), entry(name="b")
        planned: list[int] = []

        def plan(tape: Tape) -> Course:
            planned.append(len(tape.calls))
            names, events = tuple(c.name for c in tape.calls), tuple(tape.events)
            shares: list[Share | None] = [Share(len(names), 1)] * len(names)
            return Course(names, events, ((),) * len(names), shares, tape, None)

        def step(*graphs: GraphEntry) -> None:
            outs = []
            for graph in graphs:
                tape, number = ledger.begin(graph, (graph.report.graph_id,), plan)
                tape.calls[number].ran_as(graph, ledger.ran(graph, ()))
                tape.note("returned", number)
                outs.append(output())
                ledger.hold(graph, outs[-1:], call=(tape, number))
            torch.autograd.backward([out.sum() for out in reversed(outs)])

        for _ in range(5):
            step(first, second)
            step(first, second, second)
        assert sorted(planned) == [2, 3] and not ledger.tapes.fresh
        assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]


class TestSteps:
    """What ran together, and what of it keeps which budget; peaks in bytes."""

    def test_graphs_of_one_step(self) -> None:
        ledger, first, second = Ledger(), entry(name="a"), entry(Profile({2: 7}, 1, 90, 30), name="b")
        outs = [call(ledger, first), call(ledger, second)]
        report = last_report(ledger)
        del outs
        assert [graph.graph_id for graph in report.graphs] == ["a", "b"]
        assert report.steps == (StepReport(("a", "b"), 10 + 7 + 5 + 83),)

    @pytest.mark.parametrize(
        ("steps", "fits", "budget", "planned"),
        [
            ([[("train", 60, 59)], [("eval", 12, 11)]], True, 60, 59),
            ([[("train", 60, 59)], [("short batch", 30, 29)]], True, 60, 59),
            ([[("train", 60, 59)], [("eval", 12, 13)]], False, 12, 13),
            ([[("train", 60, 70)], [("eval", 12, 20)]], False, 60, 70),
            ([[("before the break", 6, 5), ("after", 12, 11)]], True, 12, 11),
            ([[("generator", 6, 5), ("critic", 12, 11)], [("critic", 8, 8)]], True, 12, 11),
            ([[("planned", None, 59)], [("eval", 12, 11)]], True, None, 59),
            ([[("planned", None, 59)], [("eval", 12, 13)]], False, 12, 13),
            ([[("none", None, 59)]], True, None, 59),
        ],
    )
    def test_each_against_its_own_budget(
        self, steps: list[list[tuple[str, int | None, int]]], fits: bool, budget: int | None, planned: int
    ) -> None:
        """(graph, budget, planned peak) by steps; what the report says of them."""
        ledger, kept = Ledger(), []
        for step in steps:
            outs = []
            for name, budget_bytes, peak in step:
                graph = entry(Profile({}, 0, peak, peak), name=name, planned_peak_bytes=peak, budget_bytes=budget_bytes)
                outs.append(call(ledger, graph))
                kept.append(graph)
            del outs
        runs = [run for graph in kept for run in graph.runs.values()]
        report = report_over(runs, ledger.tapes.steps())
        assert (report.fits, report.budget_bytes, report.telling.planned_peak_bytes) == (fits, budget, planned)
        assert [len(step.graph_ids) for step in report.steps] == [len(step) for step in steps]
        assert ("does not fit" in str(report)) is not fits
        assert ("does not fit" in render_html(report)) is not fits
        assert Report.from_json(report.to_json()) == report

    def test_the_last_report_is_that_of_the_model_compiled_last(self) -> None:
        ledger = Ledger()
        with pytest.raises(NoReportError):
            last_report(ledger)
        ledger.add(entry(name="x"))
        assert last_report(ledger).graphs[0].graph_id == "x"

    def test_a_graph_that_nothing_runs_is_forgotten_but_the_last(self) -> None:
        ledger = Ledger()
        for name in "abc":
            ledger.add(entry(name=name))
            gc.collect()
        assert [graph.report.graph_id for graph in ledger.entries] == ["c"]
        ledger.reset()
        assert not ledger.entries and last_report(ledger).graphs[0].graph_id == "c"


def test_distinct_storages() -> None:
    a = torch.ones(8)
    result = torch.ones(8, requires_grad=True) * 2
    found = storages([a, a.view(2, 4), a[3:], result])
    assert sorted(found.values()) == [32, 32]
    assert sorted(key < 0 for key in found) == [False, True]
