"""What a report holds: plain frozen data, no torch, and its way to JSON and back.

Sizes are bytes, durations are seconds. Renderers (`terminal`, `html`, `folder`) read these classes and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from memcompile.machine.codec import decode, encode
from memcompile.report.figure import Figure

GraphKind = Literal["train", "inference"]
Status = Literal["optimal", "bounded", "heuristic", "none"]
Language = Literal["cpp", "python"]

SCHEMA_VERSION = 3


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """One generated kernel. ``source_lines``: the user's lines it came from, "model.py:61". Triton is "python"."""

    name: str
    source_lines: tuple[str, ...]
    code: str
    language: Language = "python"


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did to the peak and to the time of a step. ``summary`` fits on a line."""

    name: str
    peak_before_bytes: int
    peak_after_bytes: int
    seconds_before: float
    seconds_after: float
    compile_seconds: float
    summary: str


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """The fate of one storage. ``kind``: "recompute", "move", "tile", "pack", "keep", "rewrite", or "refused" with the reason
    in ``why``.

    ``size_bytes`` and ``seconds``: what it saves and what it costs; None where there is nothing to say.
    """

    kind: str
    storage: str
    source: str
    size_bytes: int | None
    seconds: float | None
    why: str


@dataclass(frozen=True, slots=True)
class PeakPoint:
    """Where the peak lies. ``breakdown``: bytes alive there by category ("activations", "parameters", "gradients", ...)."""

    op: str
    source: str
    breakdown: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """Bytes alive while ``op`` runs, everything alive at entry included."""

    op: str
    live_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphReport:
    """One compiled graph. Peaks include what is alive as the graph is entered (``entry_bytes``).

    ``lower_bound_bytes``: no plan has a smaller peak; ``lower_bound_seconds``: no plan within the budget is faster;
    ``base_seconds``: the step without a plan. ``saved_bytes``: what the forward leaves for the backward.
    ``graphs``: readable text by stage, in order ("joint", "after rematerialize", ...). ``plan``: JSON-able.
    ``figures``: what passes show beside; ``graph["arena"]`` is that of a pass. ``base_timeline``: the whole step without a
    plan, where it is known. ``repro``: a script that compiles this graph again.
    """

    graph_id: str
    kind: GraphKind
    device: str
    planned_peak_bytes: int
    unplanned_peak_bytes: int
    budget_bytes: int | None = None
    lower_bound_bytes: int = 0
    entry_bytes: int = 0
    saved_bytes: int = 0
    planned_seconds: float = 0.0
    lower_bound_seconds: float = 0.0
    base_seconds: float = 0.0
    status: Status = "none"
    solver: str = ""
    peak_at: PeakPoint | None = None
    passes: tuple[PassReport, ...] = ()
    decisions: tuple[DecisionRow, ...] = ()
    kernels: tuple[KernelInfo, ...] = ()
    graphs: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    forward_timeline: tuple[TimelinePoint, ...] = ()
    backward_timeline: tuple[TimelinePoint, ...] = ()
    base_timeline: tuple[TimelinePoint, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    repro: str | None = None

    def __getitem__(self, name: str) -> Any:
        """The figure of a pass; None where it shows none."""
        return next((figure for figure in self.figures if figure.name == name), None)

    @property
    def fits(self) -> bool:
        """Whether the planned peak keeps the budget (always, without one)."""
        return self.budget_bytes is None or self.planned_peak_bytes <= self.budget_bytes


@dataclass(frozen=True, slots=True)
class StepReport:
    """Graphs of one step: their forwards in order, their backwards in reverse. Those of other models may be among them.

    ``budget_bytes``: the largest that any of them has to keep: a share of the peak is more for the last graph of a step than
    for the first.
    """

    graph_ids: tuple[str, ...]
    planned_peak_bytes: int
    budget_bytes: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the planned peak keeps the budget (always, without one)."""
        return self.budget_bytes is None or self.planned_peak_bytes <= self.budget_bytes


@dataclass(slots=True)
class Report:
    """Everything known about one compiled model: a `GraphReport` for each compiled graph, in the order they run.

    ``steps``: which of them make a step together; training, evaluation and a short last batch are steps of their own. Without
    them, each graph is one. ``measured_peak_bytes`` and ``measured_seconds`` are None until a step was measured
    (`memcompile.runtime.measure`).
    """

    graphs: list[GraphReport] = field(default_factory=list)
    steps: tuple[StepReport, ...] = ()
    measured_peak_bytes: int | None = None
    measured_seconds: float | None = None
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_one_graph(self) -> bool:
        """Whether there is one graph, and nothing else in its steps."""
        names = {name for step in self.steps for name in step.graph_ids}
        return len(self.graphs) == 1 and len(self.steps) <= 1 and names <= {self.graphs[0].graph_id}

    @property
    def telling(self) -> StepReport:
        """The step that speaks for all: the one that misses its budget by most, else the one with the highest planned peak."""
        alone = [StepReport((g.graph_id,), g.planned_peak_bytes, g.budget_bytes) for g in self.graphs]
        missed = [step for step in (*self.steps, *alone) if not step.fits]
        if missed:
            return max(missed, key=lambda step: step.planned_peak_bytes - (step.budget_bytes or 0))
        return max(self.steps or alone, key=lambda step: step.planned_peak_bytes, default=StepReport((), 0))

    @property
    def planned_peak_bytes(self) -> int:
        """The highest peak of a step as planned, over all of its graphs; 0 before anything was compiled."""
        return max((each.planned_peak_bytes for each in self.steps or self.graphs), default=0)

    @property
    def unplanned_peak_bytes(self) -> int:
        """Peak of the step without a plan: the highest of the graphs."""
        return max((graph.unplanned_peak_bytes for graph in self.graphs), default=0)

    @property
    def budget_bytes(self) -> int | None:
        """The budget in bytes of the `telling` step; None without one."""
        return self.telling.budget_bytes

    @property
    def lower_bound_bytes(self) -> int:
        """No plan of this step has a smaller peak."""
        return max((graph.lower_bound_bytes for graph in self.graphs), default=0)

    @property
    def planned_seconds(self) -> float:
        """Modelled time of the step as planned."""
        return sum(graph.planned_seconds for graph in self.graphs)

    @property
    def base_seconds(self) -> float:
        """Modelled time of the step without a plan."""
        return sum(graph.base_seconds for graph in self.graphs)

    @property
    def lower_bound_seconds(self) -> float:
        """No plan within the budget is faster, in the cost model's seconds."""
        return sum(graph.lower_bound_seconds for graph in self.graphs)

    @property
    def passes(self) -> tuple[PassReport, ...]:
        """The passes of all graphs."""
        return tuple(item for graph in self.graphs for item in graph.passes)

    @property
    def kernels(self) -> tuple[KernelInfo, ...]:
        """The generated kernels of all graphs."""
        return tuple(item for graph in self.graphs for item in graph.kernels)

    @property
    def decisions(self) -> tuple[DecisionRow, ...]:
        """The decisions and refusals of all graphs."""
        return tuple(item for graph in self.graphs for item in graph.decisions)

    @property
    def fits(self) -> bool:
        """Whether each graph and each step keeps its own budget (always, without one)."""
        return self.telling.fits

    def __str__(self) -> str:
        from memcompile.report.terminal import render_text

        return render_text(self)

    def save(self, folder: str | Path) -> Path:
        """Write report.json, report.html, plan.json, graphs/, kernels/ and repro.py into ``folder``, made when missing.

        Passes add what their figures name: of networks of images that run in stages patch.json and a picture, patch.svg; of
        scratchpads scratchpad.json and .svg.
        """
        from memcompile.report.folder import save_report

        return save_report(self, Path(folder))

    def to_dict(self) -> dict[str, Any]:
        """Plain data with stable keys; the sums that users ask for come first, `from_dict` derives them again."""
        return {
            "schema": SCHEMA_VERSION,
            "budget_bytes": self.budget_bytes,
            "planned_peak_bytes": self.planned_peak_bytes,
            "unplanned_peak_bytes": self.unplanned_peak_bytes,
            "lower_bound_bytes": self.lower_bound_bytes,
            "planned_seconds": self.planned_seconds,
            "base_seconds": self.base_seconds,
            "lower_bound_seconds": self.lower_bound_seconds,
            **encode(self),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report that `to_dict` wrote. Raises `ValueError` for data of another schema."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA_VERSION:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"not a memcompile report of schema {SCHEMA_VERSION} (found: {found!r})")
        return decode(cls, data)

    def to_json(self) -> str:
        """`to_dict` as indented JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote. Raises `ValueError` when ``text`` is something else."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a saved report: its folder, or the report.json inside."""
        path = Path(path)
        return cls.from_json((path / "report.json" if path.is_dir() else path).read_text(encoding="utf-8"))
