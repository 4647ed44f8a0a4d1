"""The pass of scratchpads, of dry runs alone: order, replacement and offsets of a graph in front of a small memory."""

from __future__ import annotations

from dataclasses import dataclass

from memcompile.errors import ScratchpadError
from memcompile.options import Option
from memcompile.passes.base import Captured, Context, Made, Pass, Plan, Refused, Section
from memcompile.scratchpad.figure import ScratchpadReport
from memcompile.scratchpad.memories import Memories

NO_GRAD = "Plan it under torch.no_grad(), or with parameters that require no gradient: model.requires_grad_(False)."


@dataclass(frozen=True, slots=True)
class ScratchpadPlan(Plan):
    """``report``: all there is to know; nothing runs by it."""

    report: ScratchpadReport


class ScratchpadPlans(Pass[Captured, ScratchpadPlan]):
    """Plans the graph as it was captured, and leaves it as it is."""

    name = "scratchpad"
    stage = "capture"
    options = (
        Option(
            "scratchpad",
            Memories.parse,
            None,
            'for `memcompile.plan`: order, replacement and offsets for a small fast memory, `"512KiB"`, or for '
            'several, `{"sram": "512KiB", "dram": "8MiB @ 2GB/s", "flash": "@ 80MB/s"}`',
            lambda memories: None if memories is None else memories.to_option(),
        ),
    )

    def plan(self, graph: Captured, ctx: Context) -> ScratchpadPlan | Refused | None:
        """Raises ``ScratchpadError`` for a training graph, and where an operator or a tensor does not fit."""
        memories: Memories | None = ctx.options["scratchpad"]
        if memories is None:
            return None
        if not ctx.dry:
            raise ScratchpadError(
                "nothing that is compiled runs in a scratchpad", "Plan it: memcompile.plan(model, *args, options=...)"
            )
        if graph.training:
            raise ScratchpadError("a training graph was captured, and it is for inference", NO_GRAD)
        from memcompile.scratchpad.choose import planned_graph  # OR-tools loads slowly

        given = graph.gm.graph.find_nodes(op="placeholder")
        weights = {node for index, node in enumerate(given) if index in ctx.request.weights}
        return ScratchpadPlan(planned_graph(graph.gm.graph, weights, memories, ctx.options["bytes_per_element"]))

    def apply(self, graph: Captured, plan: ScratchpadPlan) -> Captured:
        """As it is."""
        return graph

    def section(self, plan: ScratchpadPlan, made: Made) -> Section:
        """The picture of what lies where."""
        return Section(figures=(plan.report,))
