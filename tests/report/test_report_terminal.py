"""The report as people see it in a terminal."""

from expecttest import TestCase

from memcompile.report import GraphReport, Report, StepReport
from memcompile.report.terminal import render_text
from tests import report_samples


def in_ascii(report: Report) -> str:
    """The text with bars as digits and dots as plus signs: expecttest writes ASCII alone."""
    return str(report).translate(str.maketrans("▁▂▃▄▅▆▇█·", "12345678+"))


def small(name: str, budget: int, planned: int) -> GraphReport:
    """A graph of a few bytes."""
    return GraphReport(
        graph_id=name, kind="train", device="cpu", planned_peak_bytes=planned, unplanned_peak_bytes=99, budget_bytes=budget
    )


class TestTerminal(TestCase):
    def test_one_graph(self) -> None:
        self.assertExpectedInline(
            in_ascii(report_samples.single()),
            """\
memcompile  graph 0/0  train  H200  budget 8.00 GiB   fits: 7.94 GiB planned, 7.97 GiB measured

 pass             peak before -> after    step time    compile    what
 rematerialize       24.10 -> 7.94 GiB       +6.1 %      0.8 s    38 storages recomputed (bound 5.9 %)

 peak at           bwd/mul_17  model.py:88   4.10 GiB activations + 2.60 GiB parameters + 1.20 GiB gradients
 without a plan    24.10 GiB peak
 alive             2.60 GiB at entry, 4.10 GiB saved for the backward
 lowest peak       proven: no plan goes below 5.20 GiB
 step time         modelled 106.1 ms, +6.1 % over 100.0 ms without a plan; no plan within the budget is below +5.9 %
                   (optimal, frontier MILP)
 memory            3344444555556666677777888887777766666555554444433

 decision     storage    source             saves      costs    why
 recompute    mm_2       model.py:60     1.50 GiB    3.10 ms    largest storage at the peak
 recompute    gelu_4     model.py:61    768.0 MiB    0.21 ms    cheapest second per byte
 refused      drop_2     model.py:63            -          -    random state not replayable""",
        )

    def test_several_graphs(self) -> None:
        self.assertExpectedInline(
            in_ascii(report_samples.several()),
            """\
memcompile  step of 2 graphs  budget 8.00 GiB   fits: 7.99 GiB planned

memcompile  graph 0/0  train  H200  budget 8.00 GiB   fits: 7.94 GiB planned

 pass             peak before -> after    step time    compile    what
 rematerialize       24.10 -> 7.94 GiB       +6.1 %      0.8 s    38 storages recomputed (bound 5.9 %)

 peak at           bwd/mul_17  model.py:88   4.10 GiB activations + 2.60 GiB parameters + 1.20 GiB gradients
 without a plan    24.10 GiB peak
 alive             2.60 GiB at entry, 4.10 GiB saved for the backward
 lowest peak       proven: no plan goes below 5.20 GiB
 step time         modelled 106.1 ms, +6.1 % over 100.0 ms without a plan; no plan within the budget is below +5.9 %
                   (optimal, frontier MILP)
 memory            3344444555556666677777888887777766666555554444433

 decision     storage    source             saves      costs    why
 recompute    mm_2       model.py:60     1.50 GiB    3.10 ms    largest storage at the peak
 recompute    gelu_4     model.py:61    768.0 MiB    0.21 ms    cheapest second per byte
 refused      drop_2     model.py:63            -          -    random state not replayable

memcompile  graph 1/0  inference  cpu  no budget   300.0 MiB planned

 without a plan    300.0 MiB peak
 alive             100.0 MiB at entry
 note: the graph is empty: nothing to plan""",
        )

    def test_several_steps(self) -> None:
        """Of a model that ends at a graph break, is evaluated, and is part of another model's step."""
        graphs = [small("0", 60, 59), small("1", 90, 88), small("2", 12, 11)]
        steps = (StepReport(("0", "1"), 88, 90), StepReport(("2",), 11, 12), StepReport(("0", "1", "7"), 95, 99))
        lines = str(Report(graphs, steps)).splitlines()
        self.assertExpectedInline(
            "\n".join(line for line in lines if "memcompile" in line or "step of" in line),
            """\
memcompile  3 graphs, 3 steps  budget 99 B   fits: 95 B planned
 step of graphs 0, 1  budget 90 B   fits: 88 B planned
 step of graphs 0, 1, 7 (another model's)  budget 99 B   fits: 95 B planned
memcompile  graph 0  train  cpu  budget 60 B   fits: 59 B planned
memcompile  graph 1  train  cpu  budget 90 B   fits: 88 B planned
memcompile  graph 2  train  cpu  budget 12 B   fits: 11 B planned""",
        )

    def test_one_of_two_models_of_a_step(self) -> None:
        lines = str(Report([small("0", 60, 59)], (StepReport(("0", "7"), 95, 99),))).splitlines()
        self.assertExpectedInline(
            "\n".join(line for line in lines if "memcompile" in line or "step of" in line),
            """\
memcompile  step of 2 graphs  budget 99 B   fits: 95 B planned
 step of graphs 0, 7 (another model's)  budget 99 B   fits: 95 B planned
memcompile  graph 0  train  cpu  budget 60 B   fits: 59 B planned""",
        )

    def test_the_step_that_misses_its_budget_is_named(self) -> None:
        graphs = [small("0", 60, 59), small("1", 12, 13)]
        steps = (StepReport(("0",), 59, 60), StepReport(("1",), 13, 12))
        lines = str(Report(graphs, steps, measured_peak_bytes=59)).splitlines()
        self.assertExpectedInline(
            "\n".join(line for line in lines if "memcompile" in line or "step of" in line),
            """\
memcompile  2 graphs, 2 steps  budget 12 B   does not fit: 13 B planned
memcompile  graph 0  train  cpu  budget 60 B   fits: 59 B planned
memcompile  graph 1  train  cpu  budget 12 B   does not fit: 13 B planned""",
        )

    def test_nothing(self) -> None:
        self.assertExpectedInline(str(Report()), """memcompile  nothing compiled yet""")


def test_over_budget_is_said() -> None:
    graph = GraphReport(
        graph_id="0/0", kind="train", device="cpu", planned_peak_bytes=200, unplanned_peak_bytes=300, budget_bytes=100
    )
    assert "does not fit: 200 B planned" in str(Report([graph]))
    assert not Report([graph]).fits


def test_markup_in_names_is_not_interpreted() -> None:
    report = report_samples.single()
    text = render_text(report)
    assert "[" not in text
    graph = GraphReport(
        graph_id="0/0", kind="train", device="cpu", planned_peak_bytes=1, unplanned_peak_bytes=1, notes=("x[red]y[/red]",)
    )
    assert "x[red]y[/red]" in str(Report([graph]))


def test_long_decision_lists_end_with_the_rest() -> None:
    graph = report_samples.train_graph()
    rows = graph.decisions[:1] * 30 + graph.decisions[2:] * 9
    many = GraphReport(graph_id="0/0", kind="train", device="cpu", planned_peak_bytes=1, unplanned_peak_bytes=1, decisions=rows)
    text = str(Report([many]))
    assert text.count("recompute ") == 8
    assert text.count("refused ") == 4
    assert "and 27 more decisions" in text
