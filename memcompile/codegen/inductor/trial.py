"""Trial lowering: a step through Inductor up to the kernels, for its exact peak. Nothing is compiled."""

from __future__ import annotations

from memcompile.codegen.inductor.lowering import REUSE_SHARES, lower, lower_step
from memcompile.codegen.inductor.scheduled import Scheduling
from memcompile.step.facts import StepGraphs
from memcompile.step.lowered import Lowered
from memcompile.step.trace import GraphTrace, StepPeak, step_peak


def lower_graphs(graphs: StepGraphs, budget_bytes: int | None = None, scheduling: Scheduling | None = None) -> Lowered:
    """Trial lowering of a step (or of an inference graph) and its exact peak.

    With a budget, dead buffers are held for reuse as far as it allows. Without one, ``peak`` is that of plain
    ``torch.compile``, in the order of kernels that ``scheduling`` finds.
    """
    keeps = KeepsBudget(graphs, budget_bytes or 0)
    shares = REUSE_SHARES if budget_bytes else (1.0, 0.0)
    if graphs.backward is None:
        lower(graphs.forward, kind="inference", plan=graphs.planned, accept=keeps, shares=shares, scheduling=scheduling)
    else:
        lower_step(
            graphs.forward, graphs.backward, graphs.num_user_outputs, graphs.planned, keeps, shares, scheduling=scheduling
        )
    tight = keeps.peak()
    return Lowered(graphs, tuple(keeps.traces.values()), tight if budget_bytes else keeps.peak(keeps.first), tight)


class KeepsBudget:
    """Whether what was lowered so far keeps a budget; remembers the first and the last trace of each half.

    Without a budget everything does.
    """

    def __init__(self, graphs: StepGraphs, budget_bytes: int | None) -> None:
        self.graphs, self.budget_bytes = graphs, budget_bytes
        self.first: dict[str, GraphTrace] = {}
        self.traces: dict[str, GraphTrace] = {}

    def __call__(self, trace: GraphTrace, kind: str) -> bool:
        self.first.setdefault(kind, trace)
        self.traces[kind] = trace
        return self.budget_bytes is None or self.peak().peak_bytes <= self.budget_bytes

    def peak(self, traces: dict[str, GraphTrace] | None = None, *, returned_held: bool = True) -> StepPeak:
        """Exact peak of the halves seen so far. ``returned_held``: see ``step_peak``."""
        traces = self.traces if traces is None else traces
        forward = traces.get("inference") or traces.get("forward")
        if forward is None:
            return StepPeak(0, 0, 0, 0, 0, 0, (), ())
        return step_peak(
            forward,
            traces.get("backward"),
            tangents_held=self.graphs.tangents_held,
            returned_held=returned_held,
        )
