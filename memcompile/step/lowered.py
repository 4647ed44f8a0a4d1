"""A step as it is lowered, what lowers one, and how one fits a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memcompile.solvers.calls.choose import Point, Share
from memcompile.step.facts import StepGraphs
from memcompile.step.fxutil import readable
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


Front = Callable[[], Sequence[tuple[Share, Point]]]
"""Plans of a step beside others: what each is planned for, and what it takes."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A step within a budget. ``base``: without a plan; ``final``: what is compiled. ``floor_bytes``, ``lower_bound_bytes``:
    known where the smallest plan was searched; neither depends on the budget.

    ``trusted``: its peak is that of a model, and still to be compared. ``lever``: what would let it take less. ``front``: what
    else the step could be, by the model.
    """

    base: Lowered
    budget_bytes: int | None
    final: Lowered
    floor_bytes: int | None = None
    lower_bound_bytes: int = 0
    trusted: bool = False
    lever: str = ""
    front: Front = tuple

    @property
    def fits(self) -> bool:
        """Whether the exact peak keeps the budget."""
        return self.budget_bytes is None or self.final.peak.peak_bytes <= self.budget_bytes


def texts_of(stage: str, lowered: Lowered) -> dict[str, str]:
    """Both halves to be read, by what a report calls them."""
    texts = {f"forward {stage}": readable(lowered.graphs.forward)}
    if lowered.graphs.backward is not None:
        texts[f"backward {stage}"] = readable(lowered.graphs.backward)
    return texts
