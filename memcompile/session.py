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

from memcompile import explain
from memcompile.codegen.dynamo import capture_info, debug_folder
from memcompile.codegen.fused import fuse
from memcompile.codegen.inductor import compile_graph, real_code
from memcompile.codegen.partition import default_partition
from memcompile.codegen.repro import repro_script
from memcompile.codegen.scheduled import Scheduling
from memcompile.codegen.streamed import compile_block, streaming_refusal
from memcompile.codegen.surface import surface, wrapped
from memcompile.codegen.trace import GraphTrace, StepPeak
from memcompile.compiled_graph import CompiledGraph
from memcompile.cost import CostModel
from memcompile.device import device_model, free_bytes
from memcompile.errors import BudgetInfeasibleError, MemcompileError, PassError
from memcompile.facts import UNPLANNED, Planned, StepGraphs
from memcompile.fxutil import outputs_of
from memcompile.logs import get_logger
from memcompile.offload.modules import is_ticket
from memcompile.offload.planning import Tools as WeightTools
from memcompile.offload.planning import WeightPlan, plan_weights
from memcompile.options import Options
from memcompile.passes.allocate import ArenaPlan
from memcompile.passes.inverted import Inverted
from memcompile.passes.low_rank import LowRank, Tools, rewrite_inference, rewrite_training
from memcompile.passes.weights import read_again, supply
from memcompile.patching.choose import Tiled
from memcompile.pipeline import KeepsBudget, Lowered, Lowering, Outcome, fit, lower_graphs
from memcompile.placing import Placing
from memcompile.report.data import ArenaReport, GraphReport
from memcompile.report.scratchpad_data import ScratchpadReport
from memcompile.runtime.ledger import LEDGER, GraphEntry, Ledger, Profile, storages
from memcompile.runtime.workspace import measuring
from memcompile.shrinking import Shrinking
from memcompile.swapping import measured, usable
from memcompile.verify_arena import check_places
from memcompile.verify_effects import check_effects, effects_of
from memcompile.verify_values import VerificationError

log = get_logger(__name__)

LOSS_RESERVE = 4
"""A graph that ends at a graph break leaves room for what follows: this many times the bytes that it returns. A loss in fp32
over logits needs a cast, its log-softmax, and their gradients."""


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
        self.gm, self.inputs, self.options, self.device = gm, list(example_inputs), options, device
        self.tensors = [t for t in example_inputs if isinstance(t, torch.Tensor)]
        self.capture = capture_info()
        self.graph_id = ledger.next_id()
        self.outside_bytes = ledger.outside_bytes(self.tensors)
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
        peak = self._placed(lowered)
        entry = self._enter(explain.graph_report(self, peak), peak, (self.options.dump, debug_folder()))
        return CompiledGraph(function, entry, self, original)

    def _placed(self, peak: StepPeak) -> StepPeak:
        """Place the buffers of the compiled code in an arena: in no more than it takes now, and within a plan's budget."""
        if self.placing.refused or not self.placing.traces:
            if self.placing.scope != "off":
                self.arena_report = ArenaReport(self.placing.scope, self.placing.refused or "nothing is lowered")
            return peak
        step = self.keeps.peak(self.placing.traces)
        limit = self.outcome.budget_bytes if self.outcome is not None and self.outcome.fits else None
        slack = 0 if self.weights is None else self.weights.slack_bytes
        plan = self.placing.place(step, limit, peak.held_bytes if self.capture.graph_break else None, slack)
        self._check_places(plan)
        self.arena_report = self.placing.report(plan, step, peak)
        return dataclasses.replace(
            step,
            peak_bytes=plan.peak_bytes,
            forward_peak_bytes=plan.forward_peak_bytes,
            backward_peak_bytes=plan.backward_peak_bytes,
            held_bytes=plan.held_bytes,
        )

    def _check_places(self, plan: ArenaPlan) -> None:
        """Against the lowered code. Raises ``PassError``."""
        traces = self.placing.traces
        forward, backward = traces.get("inference") or traces["forward"], traces.get("backward")
        try:
            check_places(forward, backward, plan.offsets, plan.height, plan.relays)
        except VerificationError as error:
            reason = f"{error}; options={{'arena': 'off'}} does without"
            raise surface(PassError("allocate", reason)) from error

    def _enter(self, report: GraphReport, peak: StepPeak, folders: Iterable[Path | None]) -> GraphEntry:
        """Save the report, and enter the graph into the ledger."""
        for folder in folders:
            if folder is not None:
                explain.save(report, folder)
        owned = tuple(index for index, value in enumerate(self.inputs) if self._is_owned(value))
        entry = GraphEntry(self._profile(peak), report, owned)
        self.ledger.add(entry, self.inputs)
        return entry

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
            room = None if self.options.memory_budget.to_option() is None else self._room
            tools = WeightTools(self.lowering, room, lambda: CostModel(device_model(self.device)), self.device, self.dry)
            self.weights = plan = plan_weights(gm, tools)
            if plan is None:
                return None
            if plan.base is not None and plan.lowered is not None and plan.room_bytes is not None:
                self.unplanned_bytes = plan.base.peak.peak_bytes
                self.outcome = outcome = Outcome(plan.lowered, plan.room_bytes)
                outcome.floor_bytes = None if plan.fits else plan.lowered.peak.peak_bytes
                if not plan.fits and self.options.on_infeasible == "raise":
                    raise surface(self._infeasible(outcome, plan.room_bytes + self.outside_bytes))
        return None if plan is None else plan.streamed.gm

    def _room(self, base: Lowered) -> int:
        """What a budget leaves to this graph; ``base``: with all weights in memory."""
        total = self.options.memory_budget.resolve(
            unplanned_peak_bytes=base.peak.peak_bytes + self.outside_bytes,
            free_bytes=free_bytes(self.device),
            entry_bytes=0,
        )
        assert total is not None
        return max(1, total - self.outside_bytes)

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
        shrinking = Shrinking(self.options, self.device, self.lowering, self.outside_bytes, self.dry)
        with self._named("patch"):
            shrunk = shrinking.shrink(gm)
            self.inverted, self.tiled = shrinking.inverted, shrinking.tiled
            self.unplanned_bytes = shrinking.unplanned_bytes
            return shrunk
        return gm

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """A bug of ours in a pass: named, with its cause, unless the user chose the fallback."""
        try:
            yield
        except MemcompileError:
            raise
        except Exception as error:
            if (own := wrapped(error)) is not None:
                raise surface(own) from None
            if self.options.fallback != "inductor":
                raise surface(PassError(name, f"{type(error).__name__}: {error}")) from error
            log.warning("%s failed, Inductor compiles the graph as it is: %s", name, error)

    def _fit(self, graphs: StepGraphs) -> StepGraphs:
        """Plan within the budget; the unplanned graphs where there is nothing to plan."""
        budget = self.options.memory_budget
        elsewhere = self.options.bytes_per_element is not None or self.weights is not None
        if budget.to_option() is None or elsewhere or not (self.recompute or self.options.swap):
            return graphs
        with self._named("rematerialize"):
            base = self.lowering(graphs, None)
            total = budget.resolve(
                unplanned_peak_bytes=(self.unplanned_bytes or base.peak.peak_bytes) + self.outside_bytes,
                free_bytes=free_bytes(self.device),
                entry_bytes=base.peak.entry_bytes,
            )
            assert total is not None
            self.outcome = self._fit_within(base, max(1, total - self.outside_bytes))
        if self.outcome is None:
            return graphs
        if not self.outcome.fits and self.options.on_infeasible == "raise":
            raise surface(self._infeasible(self.outcome, total))
        return self.outcome.final.graphs

    def _fit_within(self, base: Lowered, room_bytes: int) -> Outcome:
        """Plan within ``room_bytes``, less what graphs after a graph break may need, where that can be spared."""
        reserve = LOSS_RESERVE * (base.peak.held_bytes - base.peak.saved_bytes) if self.capture.graph_break else 0
        costs, limit_s = (lambda: CostModel(device_model(self.device))), self.options.solver_time_limit_s
        plan = functools.partial(
            fit, base, costs=costs, time_limit_s=limit_s, lowering=self.lowering, trust=self.trust, tiers=self.tiers
        )
        outcome = plan(max(1, room_bytes - reserve))
        return outcome if outcome.fits or not reserve else plan(room_bytes)

    def _infeasible(self, outcome: Outcome, total: int) -> BudgetInfeasibleError:
        beside = total - (outcome.budget_bytes or 0)
        floor = (outcome.floor_bytes or outcome.final.peak.peak_bytes) + beside
        lever = explain.next_lever(outcome, explain.batch_of(self.gm, self.inputs))
        return BudgetInfeasibleError(total, floor, outcome.lower_bound_bytes + beside, explain.contributors(outcome), lever)

    def _planned(self) -> Planned:
        return self.graphs.planned if self.graphs is not None else UNPLANNED

    def _accept(self, trace: GraphTrace, kind: str) -> bool:
        """Whether the real lowering may hold dead buffers for later ones to the extent that made this trace."""
        if not self.keeps.traces and self.graphs is not None:
            self.keeps = KeepsBudget(self.graphs, self.outcome.budget_bytes if self.outcome is not None else None)
        return self.keeps(trace, kind)

    def _settled(self, accepted: bool) -> None:
        """A plan that was taken on trust and does not hold is not compiled."""
        if not accepted and self.outcome is not None and self.outcome.chosen is not None and self.outcome.chosen.trusted:
            raise _MissedError

    def _on_code(self, source: str, kind: str) -> None:
        self.sources[kind] = source

    def _profile(self, peak: StepPeak) -> Profile:
        return Profile(
            storages(self.tensors),
            peak.held_bytes,
            peak.forward_peak_bytes,
            peak.backward_peak_bytes,
            sum(t.untyped_storage().nbytes() for t in self.tensors if self._is_owned(t) and t.requires_grad),
        )

    def _is_owned(self, value: object) -> bool:
        """Whether an input is a parameter: it outlives the step."""
        return isinstance(value, torch.Tensor) and (isinstance(value, torch.nn.Parameter) or is_ticket(value))
