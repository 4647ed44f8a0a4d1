"""What a pass is. ``compiling/pipeline.py`` has the list of them and the loop that runs them.

A pass is a folder and a line in that list. What is known of it elsewhere follows from its class: its options and their
documentation, its part of the report, its refusals, what has to live as long as the code that it made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import fx

from memcompile.codegen.inductor.hooks import Hook
from memcompile.machine.device import device_model
from memcompile.options import Option, Options
from memcompile.report.data import DecisionRow, KernelInfo, PassReport, Status
from memcompile.report.figure import Figure
from memcompile.runtime.room import Rooms
from memcompile.solvers.calls.choose import Share
from memcompile.step.cost import CostModel
from memcompile.step.facts import UNPLANNED, Planned, StepGraphs
from memcompile.step.lowered import Fitted, Lowering
from memcompile.step.trace import GraphTrace, StepPeak

Stage = Literal["capture", "step", "lowered"]
"""When a pass runs: on a `Captured` graph, on forward and backward (`StepGraphs`), or on what was `Made` of them."""
Refusal = tuple[str, str, str]
"""(name of the FX node, "model.py:61", why)."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a graph is compiled for. ``dry``: nothing is compiled. ``trust``: see ``passes/schedule/fit.py``.

    ``graph_break``: the step goes on after this graph; ``inside``: it runs between forward and backward of another one.
    ``weights``: which of its inputs are parameters or buffers. ``share``: of a step with several calls; None: it has the room
    to itself.
    """

    options: Options
    device: torch.device
    dry: bool = False
    trust: bool = True
    graph_break: bool = False
    inside: bool = False
    weights: frozenset[int] = frozenset()
    share: Share | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What passes plan with. ``lower``: graphs and a budget to their exact peak; in a dry run it may be a model of that.
    ``rooms``: what the budget leaves to the graph."""

    request: Request
    lower: Lowering
    rooms: Rooms

    @property
    def options(self) -> Options:
        """What the user chose."""
        return self.request.options

    @property
    def device(self) -> torch.device:
        """Where the step runs."""
        return self.request.device

    @property
    def dry(self) -> bool:
        """Whether nothing is compiled."""
        return self.request.dry

    @property
    def has_budget(self) -> bool:
        """Whether the user named one."""
        return self.options.memory_budget.to_option() is not None

    def costs(self) -> CostModel:
        """Of the device, measured once a machine."""
        return CostModel(device_model(self.device))


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph as Dynamo captured it: the joint graph of a training step, or one for inference. ``planned``: what lowering must
    keep of what passes did."""

    gm: fx.GraphModule
    training: bool
    planned: Planned = UNPLANNED


@dataclass(frozen=True, slots=True)
class Made:
    """A step as it was lowered for good. ``traces``: of its code, by kind of graph; ``peak``: with all that the forward returns
    alive to the end, ``dropped``: without it. ``limit_bytes``: what it may take; ``slack_bytes``: what an arena may take above.
    ``sources``: the generated modules. ``outside_bytes``: alive beside it. ``hooks``: of the passes that took part."""

    graphs: StepGraphs
    traces: Mapping[str, GraphTrace]
    peak: StepPeak
    dropped: StepPeak
    limit_bytes: int | None = None
    slack_bytes: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)
    outside_bytes: int = 0
    hooks: Mapping[str, Hook] = field(default_factory=dict)


class Plan:
    """What a pass decided about one graph. A subclass says what of this holds for it."""

    __slots__ = ()

    @property
    def keeps(self) -> Sequence[object]:
        """What must live as long as the compiled graph: its code finds it by name."""
        return ()

    @property
    def fitted(self) -> Fitted | None:
        """What became of the budget, from the pass that plans within it."""
        return None

    @property
    def settles(self) -> bool:
        """Whether the passes that follow, up to lowering, leave the graph alone."""
        return False

    @property
    def unplanned_bytes(self) -> int | None:
        """Peak of the graph before this pass, where that is no longer known from what is lowered later."""
        return None

    @property
    def counted_bytes(self) -> int | None:
        """The peak in what the budget counts, where that is not what the device allocates."""
        return None

    @property
    def hides_base(self) -> bool:
        """Whether what is lowered later without a plan is no longer the graph as it was."""
        return False

    @property
    def arena_slack_bytes(self) -> int:
        """What an arena may take above the plan."""
        return 0

    def supply(self, device: torch.device) -> list[torch.Tensor]:
        """Tensors that the compiled graph takes beside its inputs, at each call."""
        return []

    def settle(self, traces: Mapping[str, GraphTrace], peak: StepPeak) -> None:
        """Told what the code that was compiled takes."""


@dataclass(frozen=True, slots=True)
class Refused(Plan):
    """Nothing is done, and why. ``rows``: of single nodes."""

    rows: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a step by the cost model: as planned, at least, and without a plan; and how sure the plan is."""

    planned_seconds: float
    lower_bound_seconds: float
    base_seconds: float
    status: Status = "none"
    solver: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """What a report shows of a pass: what it did to the peak, decisions and refusals, notes, kernels, times, what it adds to
    plan.json, texts of graphs by stage, and figures."""

    passes: tuple[PassReport, ...] = ()
    decisions: tuple[DecisionRow, ...] = ()
    notes: tuple[str, ...] = ()
    kernels: tuple[KernelInfo, ...] = ()
    times: Times | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    graphs: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()


def refusals(rows: Sequence[Refusal]) -> tuple[DecisionRow, ...]:
    """Rows of a report."""
    return tuple(DecisionRow("refused", name, source, None, None, why) for name, source, why in rows)


G = TypeVar("G", Captured, StepGraphs, Made)
P = TypeVar("P", bound=Plan)


class Pass(Generic[G, P]):
    """One pass, without state. ``name``: as users, errors and reports call it."""

    name: ClassVar[str]
    stage: ClassVar[Stage]
    options: ClassVar[tuple[Option, ...]] = ()

    def hook(self, request: Request) -> Hook | None:
        """What takes part in lowering one graph; None: nothing."""
        return None

    def plan(self, graph: G, ctx: Context) -> P | Refused | None:
        """What to do to a graph, which stays as it is; None: nothing."""
        raise NotImplementedError

    def apply(self, graph: G, plan: P) -> G:
        """Another graph, by the plan."""
        raise NotImplementedError

    def check(self, before: G, after: G, plan: P) -> None:
        """Whether ``after`` still does what ``before`` did, beyond what the loop checks of every pass. Raises
        ``VerificationError``. Shares no code with ``plan``."""

    def section(self, plan: P, made: Made) -> Section:
        """Its part of the report, once the graph is compiled."""
        raise NotImplementedError
