"""What no pass may change: what a graph takes and returns, and what it does beside. Shares no code with the passes."""

from __future__ import annotations

from memcompile.passes.base import Captured, Made
from memcompile.step.facts import StepGraphs
from memcompile.step.verify_effects import check_effects, effects_of
from memcompile.step.verify_graph import check_inputs, check_outputs, check_shapes


def check_unchanged(before: Captured | StepGraphs | Made, after: Captured | StepGraphs | Made) -> None:
    """Compare a graph with what a pass made of it. Raises VerificationError."""
    if isinstance(before, Captured) and isinstance(after, Captured):
        after.gm.graph.lint()
        check_inputs(before.gm.graph, after.gm.graph)
        check_outputs(before.gm.graph, after.gm.graph)
        check_shapes(after.gm)
        check_effects(effects_of(before.gm.graph), after.gm.graph)
    elif isinstance(before, StepGraphs) and isinstance(after, StepGraphs):
        check_inputs(before.forward.graph, after.forward.graph)
        check_outputs(before.forward.graph, after.forward.graph, before.num_user_outputs)
        if before.backward is not None and after.backward is not None:
            check_outputs(before.backward.graph, after.backward.graph)
        for half in (after.forward, after.backward):
            if half is not None:
                half.graph.lint()
                check_shapes(half)
