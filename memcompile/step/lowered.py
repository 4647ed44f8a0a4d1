"""A step as it is lowered, and what lowers one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memcompile.step.facts import StepGraphs
from memcompile.step.trace import GraphTrace, StepPeak


@dataclass(frozen=True, slots=True)
class Lowered:
    """A step as Inductor schedules it, with its exact peak.

    ``traces`` and ``tight_peak`` belong to the variant that holds the fewest dead buffers for reuse.
    """

    graphs: StepGraphs
    traces: tuple[GraphTrace, ...]
    peak: StepPeak
    tight_peak: StepPeak

    def by_half(self) -> dict[str, GraphTrace]:
        """Traces as "forward" and "backward"."""
        return dict(zip(("forward", "backward"), self.traces, strict=False))


Lowering = Callable[[StepGraphs, int | None], Lowered]
"""From graphs and a budget to their schedule: ``lower_graphs``, or a model of it."""
