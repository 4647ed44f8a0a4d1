"""One captured graph on its way through the compiler, and the callable that comes out."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from memcompile.codegen.fused import fuse
from memcompile.codegen.inductor.dynamo import capture_info, debug_folder
from memcompile.codegen.inductor.lowering import compile_graph, real_code
from memcompile.codegen.inductor.partition import default_partition
from memcompile.codegen.inductor.scheduled import Scheduling
from memcompile.codegen.inductor.surface import raised_by_inductor, surface, wrapped
from memcompile.codegen.inductor.trial import KeepsBudget, lower_graphs
from memcompile.codegen.streamed import compile_block, streaming_refusal
from memcompile.compiling import explain
from memcompile.compiling.compiled_graph import CompiledGraph
from memcompile.compiling.gate import placed_peak
from memcompile.compiling.repro import repro_script
from memcompile.errors import BudgetInfeasibleError, MemcompileError, PassError
from memcompile.logs import get_logger
from memcompile.machine.device import device_model
from memcompile.options import Options
from memcompile.passes.arena.allocate import ArenaPlan
from memcompile.passes.arena.check import check_places
from memcompile.passes.arena.placing import Placing
from memcompile.passes.residuals.kernels import Inverted
from memcompile.passes.rows.low_rank import LowRank, Tools, rewrite_inference, rewrite_training
from memcompile.passes.schedule.fit import Outcome, fit
from memcompile.passes.schedule.tiers import measured, usable
from memcompile.passes.tiles.choose import Tiled
from memcompile.passes.tiles.shrinking import Shrinking
from memcompile.passes.weights.search import Tools as WeightTools
from memcompile.passes.weights.search import WeightPlan, plan_weights
from memcompile.passes.weights.stream import read_again, supply
from memcompile.report.data import ArenaReport, GraphReport
from memcompile.report.scratchpad_data import ScratchpadReport
from memcompile.runtime.ledger import (
    LEDGER,
    GraphEntry,
    Ledger,
    Profile,
    gradients_of,
    storages,
)
from memcompile.runtime.room import Room
from memcompile.runtime.transfers.held import is_ticket
from memcompile.runtime.workspace import measuring
from memcompile.step.cost import CostModel
from memcompile.step.facts import UNPLANNED, Planned, StepGraphs
from memcompile.step.fxutil import outputs_of
from memcompile.step.lowered import Lowered, Lowering
from memcompile.step.parts import storage_bytes
from memcompile.step.trace import GraphTrace, StepPeak
from memcompile.step.verify_effects import check_effects, effects_of
from memcompile.step.verify_values import VerificationError

log = get_logger(__name__)

LOSS_COPIES = 2
"""A graph that ends at a graph break leaves room for what follows: this many times what it returns, in fp32. A loss over logits
needs their log-softmax, and its gradient."""


class _MissedError(BaseException):
    """A plan that was taken on trust takes more than its budget. Not an Exception: Inductor would wrap it."""


class Session:
    """Compiles one graph under ``options`` on ``device``. ``example_inputs``: the real inputs, parameters among them.

    ``tangents_held``: whether gradients arrive for more than a scalar loss; None: not when the graph returns one. ``ledger``
    and ``lowering`` are others in a dry run. ``trust``: see ``pipeline.fit``.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        example_inputs: Sequence[Any],
        options: Options,
        device: torch.device,
        ledger: Ledger = LEDGER,
        lowering: Lowering | None = None,
        tangents_held: bool | None = None,
        trust: bool = True,
    ) -> None:
        self.tangents_held = tangents_held
        self.scheduling = Scheduling(options.enabled("schedule"), fallback=options.fallback == "inductor")
        self.lowering: Lowering = lowering or functools.partial(lower_graphs, scheduling=self.scheduling)
        self.ledger, self.trust = ledger, trust
        if lowering is None:  # the elements of a microcontroller are for dry runs
            options = dataclasses.replace(options, bytes_per_element=None)
        self.gm, self.inputs, self.options, self.device = gm, list(example_inputs), options, device
        self.tensors = [t for t in example_inputs if isinstance(t, torch.Tensor)]
        self.owned = tuple(index for index, value in enumerate(self.inputs) if _is_owned(value))
        self.capture = capture_info()
        self.graph_id = ledger.next_id()
        self.outside = ledger.outside(self.tensors)
        self.room: Room | None = None
        self.reserve_bytes = 0
        self.outcome: Outcome | None = None
        self.graphs: StepGraphs | None = None
        self.keeps = KeepsBudget(StepGraphs(gm, None, 0), None)
        self.sources: dict[str, str] = {}
        other = "it runs between the forward and the backward of another graph" if ledger.chain() else ""
        self.placing = Placing(device, options.arena, other)
        self.low_rank, self.dry = LowRank(), lowering is not None
        self.recompute, tiers = options.enabled("rematerialize"), usable(options.swap, device)
        self.tiers = functools.partial(measured, tiers, device, dry=self.dry, recompute=self.recompute)
        self.tiled: Tiled | None = None
        self.scratchpad: ScratchpadReport | None = None
        self.inverted = Inverted()
        self.weights: WeightPlan | None = None
        self.unplanned_bytes: int | None = None  # peak of a network of images before it was rewritten
        self.notes: list[str] = []
        self.arena_report: ArenaReport | None = None
        self.repro = repro_script(gm, self.inputs, options)

    def compile(self) -> CompiledGraph:
        """Lower the graph within its budget. Raises ``BudgetInfeasibleError`` and ``PassError``."""
        original = copy.deepcopy(self.gm)
        code = real_code(
            self._rewrite_inference,
            self._planned,
            self._accept,
            self._settled,
            self._on_code,
            self.placing,
            self.scheduling,
            self._resident,
        )
        function = None
        with contextlib.suppress(_MissedError), measuring():
            function = compile_graph(self.gm, self.inputs, self._partition, code, self.options.inductor)
        if function is None:
            log.info("graph %s takes more than its plan: planned again, with trial lowerings", self.graph_id)
            again = Session(original, self.inputs, self.options, self.device, tangents_held=self.tangents_held, trust=False)
            return again.compile()
        self.scheduling.problems.clear()
        lowered = self.keeps.peak()
        if self.outcome is not None:
            self.outcome.settle(self.keeps.traces.values(), lowered)
        peak, dropped = self._placed(lowered)
        entry = self._enter(peak, dropped, (self.options.dump, debug_folder()))
        return CompiledGraph(function, entry, self, original)

    def _placed(self, peak: StepPeak) -> tuple[StepPeak, StepPeak]:
        """Place the buffers of the compiled code in an arena: in no more than it takes now, and within a budget that it keeps.

        Exact peaks: with all that the forward returns alive to the end, and dropped before the backward.
        """
        if self.placing.refused or not self.placing.traces:
            if self.placing.scope != "off":
                self.arena_report = ArenaReport(self.placing.scope, self.placing.refused or "nothing is lowered")
            return peak, self.keeps.peak(returned_held=False)
        traces = self.placing.traces
        step, dropped = self.keeps.peak(traces), self.keeps.peak(traces, returned_held=False)
        limit = self._limit_bytes()
        limit = limit if limit is not None and peak.peak_bytes <= limit else None
        slack = 0 if self.weights is None else self.weights.slack_bytes
        plan = self.placing.place(step, limit, peak.held_bytes if self.capture.graph_break else None, slack)
        self._check_places(plan)
        self.arena_report = self.placing.report(plan, step, peak)
        arena = plan.offsets, plan.height, plan.relays
        return placed_peak(step, *arena), placed_peak(dropped, *arena)

    def _check_places(self, plan: ArenaPlan) -> None:
        """Against the lowered code. Raises ``PassError``."""
        traces = self.placing.traces
        forward, backward = traces.get("inference") or traces["forward"], traces.get("backward")
        try:
            check_places(forward, backward, plan.offsets, plan.height, plan.relays)
        except VerificationError as error:
            reason = f"{error}; options={{'arena': 'off'}} does without"
            raise surface(PassError("allocate", reason)) from error

    def _enter(self, peak: StepPeak, dropped: StepPeak, folders: Iterable[Path | None]) -> GraphEntry:
        """The last gate; then report the graph, save the report, and enter the graph into the ledger.

        ``peak``, ``dropped``: of the code that was compiled, see ``_placed``. Raises ``BudgetInfeasibleError``.
        """
        profile = self._profile(peak, dropped)
        self._pass_gate(peak, profile)
        report = self._report(peak)
        for folder in folders:
            if folder is not None:
                explain.save(report, folder)
        entry = GraphEntry(
            profile,
            report,
            self.owned,
            unplanned=self._unplanned(profile),
            steady_bytes=self._steady_bytes(),
            reserve_bytes=self.reserve_bytes,
        )
        self.ledger.add(entry, self.inputs)
        return entry

    def _report(self, peak: StepPeak) -> GraphReport:
        return explain.graph_report(self, peak)

    def _pass_gate(self, peak: StepPeak, profile: Profile) -> None:
        """What was compiled against the budget, whatever was planned: this graph, and the step with the graphs before it."""
        room = self._resolved(lambda: (peak.peak_bytes, peak.entry_bytes))
        if room is None:
            return
        needed = self._needed(self._counted(peak), profile)
        if needed <= room.total_bytes:
            return
        if self.options.on_infeasible == "raise":
            traces = tuple(self.keeps.traces.values())
            raise surface(self._infeasible(Lowered(self.keeps.graphs, traces, peak, peak), needed, profile))
        self.notes.append(f"the budget of {room.total_bytes} bytes is not kept: the compiled code takes {needed} bytes")

    def _needed(self, peak_bytes: int, profile: Profile) -> int:
        """What this graph takes with all that is alive beside it; or the step so far, at any of its graphs."""
        own = peak_bytes + self.outside.bytes
        return max(own, self.ledger.peak_with(profile)) if self.ledger.chain() else own

    def _unplanned(self, profile: Profile) -> Profile:
        """Of the graph without a plan; ``profile``: with it."""
        return profile if self.outcome is None else self._profile(self.outcome.base.peak, self.outcome.base.peak)

    def _steady_bytes(self) -> float:
        """Up to which budget the graph stays as it is: where it has no plan, or the smallest."""
        outcome = self.outcome
        if outcome is None or outcome.chosen is None:
            return 0 if outcome is not None and outcome.is_tight else float("inf")
        return outcome.steady_bytes + self.outside.bytes if outcome.steady_bytes else 0

    def _counted(self, peak: StepPeak) -> int:
        """The peak in what the budget counts: on a microcontroller, the elements that the layout of images counts."""
        return self.tiled.report.peak_bytes if self.counts_elements and self.tiled is not None else peak.peak_bytes

    @property
    def counts_elements(self) -> bool:
        """Whether the budget is that of a microcontroller, for images in elements of another size."""
        counted = self.options.bytes_per_element is not None and self.tiled is not None
        return counted and not self.tiled.report.refused  # type: ignore[union-attr]

    def _partition(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        self._stream(gm, rewrite_training)
        if self.options.max_overhead is not None or self.options.bytes_per_element is not None:
            self.notes.append("patches are for inference (torch.no_grad()): a training graph is left as it is")
        read_again(gm.graph)
        graphs = default_partition(gm, joint_inputs, num_fwd_outputs, **kwargs)
        held = not graphs.returns_loss() if self.tangents_held is None else self.tangents_held
        self.graphs = self._fit(dataclasses.replace(graphs, tangents_held=held))
        assert self.graphs.backward is not None
        return self.graphs.forward, self.graphs.backward

    def _rewrite_inference(self, gm: fx.GraphModule) -> fx.GraphModule:
        self._stream(gm, rewrite_inference)
        effects = effects_of(gm.graph)
        gm = self._fetch(gm) or self._shrink(gm)
        with self._named("patch" if self.weights is None else "weights"):
            check_effects(effects, gm.graph)
        planned = UNPLANNED if self.weights is None else self.weights.streamed.planned
        self.graphs = self._fit(StepGraphs(gm, None, len(outputs_of(gm.graph)), planned))
        return self.graphs.forward

    def _fetch(self, gm: fx.GraphModule) -> fx.GraphModule | None:
        """Reads of offloaded weights ahead of time, within the budget; None where there are none."""
        plan = None
        with self._named("weights"):
            room = None if self.options.memory_budget.to_option() is None else self._room_of
            tools = WeightTools(self.lowering, room, lambda: CostModel(device_model(self.device)), self.device, self.dry)
            self.weights = plan = plan_weights(gm, tools)
            if plan is None:
                return None
            if plan.base is not None and plan.lowered is not None and plan.room_bytes is not None:
                self.unplanned_bytes = plan.base.peak.peak_bytes
                self.outcome = outcome = Outcome(plan.lowered, plan.room_bytes)
                outcome.floor_bytes = None if plan.fits else plan.lowered.peak.peak_bytes
                self._refuse(outcome)
        return None if plan is None else plan.streamed.gm

    def _room_of(self, base: Lowered) -> int:
        """What a budget leaves to this graph; ``base``: without a plan, all weights in memory."""
        room = self._resolved(lambda: (base.peak.peak_bytes, base.peak.entry_bytes))
        assert room is not None
        return room.graph_bytes

    def _resolved(self, unplanned: Callable[[], tuple[int, int]]) -> Room | None:
        """The room, resolved by whoever first knows the peak without a plan and what is alive at entry."""
        if self.room is None:
            self.room = Room.of(self.options.memory_budget, unplanned, self.outside, self.device)
        return self.room

    def _resident(self) -> list[torch.Tensor]:
        """Weights that the compiled graph takes beside its inputs, at each call."""
        return [] if self.weights is None else supply(self.weights.streamed, self.device)

    def _stream(self, gm: fx.GraphModule, rewrite: Callable[[fx.GraphModule, Tools], LowRank]) -> None:
        """Rows of low-rank chains block by block, before anything is planned."""
        if not self.options.enabled("low_rank"):
            return
        with self._named("low_rank"):
            effects = effects_of(gm.graph)
            if refusal := streaming_refusal():
                self.low_rank = LowRank(refused=(("graph", "", refusal),))
                return
            run = not self.dry
            compiler, fuser = functools.partial(compile_block, run=run), functools.partial(fuse, run=run)
            self.low_rank = rewrite(gm, Tools(compiler, fuser, self.options.low_rank_kernel, self.dry))
            check_effects(effects, gm.graph)

    def _shrink(self, gm: fx.GraphModule) -> fx.GraphModule:
        """A network of images with inverted residuals as kernels and stages tile by tile, as the options ask for."""
        shrinking = Shrinking(self.options, self.device, self.lowering, self._resolved, self.dry)
        with self._named("patch"):
            shrunk = shrinking.shrink(gm)
            self.inverted, self.tiled = shrinking.inverted, shrinking.tiled
            self.unplanned_bytes = shrinking.unplanned_bytes
            return shrunk
        return gm

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """A bug of ours in a pass: named, with its cause, unless the user chose the fallback.

        What Inductor cannot compile by itself stays an error of Inductor's.
        """
        try:
            yield
        except MemcompileError:
            raise
        except Exception as error:
            if (own := wrapped(error)) is not None:
                raise surface(own) from None
            if raised_by_inductor(error):
                raise
            if self.options.fallback != "inductor":
                raise surface(PassError(name, f"{type(error).__name__}: {error}")) from error
            log.warning("%s failed, Inductor compiles the graph as it is: %s", name, error)

    def _fit(self, graphs: StepGraphs) -> StepGraphs:
        """Plan within the budget; the unplanned graphs where there is nothing to plan."""
        if self.options.memory_budget.to_option() is None or self.counts_elements or self.weights is not None:
            return graphs
        with self._named("rematerialize"):
            base = self.lowering(graphs, None)
            self.outcome = self._fit_within(base, self._room_of(base))
        if self.outcome is None:
            return graphs
        self._refuse(self.outcome)
        return self.outcome.final.graphs

    def _fit_within(self, base: Lowered, room_bytes: int) -> Outcome:
        """Plan within ``room_bytes``, and spare what graphs after a graph break may need where that can be spared."""
        if self.capture.graph_break:
            self.reserve_bytes = LOSS_COPIES * 4 * base.graphs.num_tangent_elements()
        return fit(
            base,
            room_bytes,
            costs=lambda: CostModel(device_model(self.device)),
            time_limit_s=self.options.solver_time_limit_s,
            lowering=self.lowering,
            trust=self.trust,
            tiers=self.tiers,
            may_change=bool(self.recompute or self.options.swap),
            between_bytes=self.reserve_bytes,
        )

    def _refuse(self, outcome: Outcome) -> None:
        """Raise what is known before anything is compiled."""
        if outcome.fits or self.options.on_infeasible != "raise":
            return
        peak = outcome.final.peak
        profile = self._profile(peak, peak)
        raise surface(
            self._infeasible(outcome.final, self._needed(peak.peak_bytes, profile), profile, outcome.lower_bound_bytes)
        )

    def _infeasible(self, lowered: Lowered, needed: int, profile: Profile, bound_bytes: int = 0) -> BudgetInfeasibleError:
        """``needed``: what the step takes at the least with the graphs before it as they are. A budget is advised that leaves
        those their plans; where there is none, one that needs no plans."""
        assert self.room is not None
        if any(graph.steady_bytes < needed for graph in self.ledger.chain()):
            needed = max(needed, self.ledger.unplanned_peak_with(self._unplanned(profile)))
        proven = bound_bytes + self.outside.certain_bytes if bound_bytes else 0
        return BudgetInfeasibleError(
            self.room.total_bytes,
            needed,
            min(proven, needed),
            explain.contributors(lowered),
            explain.next_lever(self, lowered),
            self.capture.graph_break,
        )

    def _limit_bytes(self) -> int | None:
        """What the code of this graph may take; None where nobody named a limit, or where it is a share that nobody knows."""
        if self.outcome is not None:
            return self.outcome.budget_bytes
        budget = self.options.memory_budget
        room = self.room or (None if budget.needs_unplanned_peak or budget.auto else self._resolved(lambda: (0, 0)))
        return None if room is None or self.counts_elements else room.graph_bytes

    def _planned(self) -> Planned:
        return self.graphs.planned if self.graphs is not None else UNPLANNED

    def _accept(self, trace: GraphTrace, kind: str) -> bool:
        """Whether the real lowering may hold dead buffers for later ones to the extent that made this trace."""
        if not self.keeps.traces and self.graphs is not None:
            self.keeps = KeepsBudget(self.graphs, self._limit_bytes())
        return self.keeps(trace, kind)

    def _settled(self, accepted: bool) -> None:
        """A plan that was taken on trust and does not hold is not compiled."""
        if not accepted and self.outcome is not None and self.outcome.chosen is not None and self.outcome.chosen.trusted:
            raise _MissedError

    def _on_code(self, source: str, kind: str) -> None:
        self.sources[kind] = source

    def _profile(self, peak: StepPeak, dropped: StepPeak) -> Profile:
        """``dropped``: where what the forward returns is dropped before the backward."""
        around = self.outside.around_bytes  # traces count of an input what it spans
        return Profile(
            storages(self.tensors),
            peak.held_bytes,
            peak.forward_peak_bytes + around,
            peak.backward_peak_bytes + around if peak.backward_peak_bytes else 0,
            storage_bytes(t for t in (self.inputs[index] for index in self.owned) if t.requires_grad),
            peak.returned_bytes,
            dropped.backward_peak_bytes + around if dropped.backward_peak_bytes else 0,
            gradients_of(self.tensors),
        )


def _is_owned(value: object) -> bool:
    """Whether an input is a parameter: it outlives the step."""
    return isinstance(value, torch.Tensor) and (isinstance(value, torch.nn.Parameter) or is_ticket(value))
