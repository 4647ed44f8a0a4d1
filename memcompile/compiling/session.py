"""One captured graph on its way through the compiler: request, captured, planned, lowered, compiled."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from memcompile.codegen.inductor.compile import InnerCompile, compile_graph, real_code
from memcompile.codegen.inductor.dynamo import capture_info, debug_folder
from memcompile.codegen.inductor.hooks import Hook, together
from memcompile.codegen.inductor.partition import default_partition
from memcompile.codegen.inductor.resized import Resized, resized
from memcompile.codegen.inductor.trial import KeepsBudget, lower_graphs
from memcompile.compiling import explain
from memcompile.compiling.compiled_graph import CompiledGraph
from memcompile.compiling.pipeline import Done, fitted_in, hooks_of, run
from memcompile.compiling.repro import repro_script
from memcompile.errors import BudgetInfeasibleError
from memcompile.logs import get_logger
from memcompile.options import Options
from memcompile.passes.base import Captured, Context, Made, Request
from memcompile.report.data import GraphReport
from memcompile.runtime.ledger import LEDGER, GraphEntry, Ledger, gradients_of, owner_of, storages
from memcompile.runtime.profile import Profile
from memcompile.runtime.region import model_under_way
from memcompile.runtime.room import Rooms
from memcompile.runtime.transfers.held import is_ticket
from memcompile.runtime.workspace import measuring
from memcompile.solvers.calls.choose import LEAST, Share
from memcompile.step.facts import UNPLANNED, Planned, StepGraphs
from memcompile.step.fxutil import outputs_of
from memcompile.step.lowered import Fitted, Lowered, Lowering
from memcompile.step.parts import storage_bytes
from memcompile.step.symbols import symbols_of
from memcompile.step.trace import GraphTrace, StepPeak, step_peak

log = get_logger(__name__)


class _MissedError(BaseException):
    """A plan that was taken on trust takes more than its budget. Not an Exception: Inductor would wrap it."""


def on_trial(hook: Hook) -> Lowering:
    """Through Inductor up to the kernels."""
    return functools.partial(lower_graphs, scheduling=hook.scheduling)


class Session:
    """Compiles one graph under ``options`` on ``device``. ``example_inputs``: the real inputs, parameters among them.

    ``tangents_held``: whether gradients arrive for more than a scalar loss; None: not when the graph returns one. ``ledger``
    and ``lowering`` are others in a ``dry`` run. ``code``: see ``real_code``. ``trust``: see ``passes/schedule/fit.py``.
    ``weights``: which inputs are parameters or buffers. ``share``: see ``runtime/room.py``; None: the graph has the room to
    itself, or nobody knows yet. ``resized``: its inputs with sizes that are symbols, outside of Dynamo.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        example_inputs: Sequence[Any],
        options: Options,
        device: torch.device,
        ledger: Ledger = LEDGER,
        *,
        lowering: Callable[[Hook], Lowering] = on_trial,
        code: Callable[..., InnerCompile] = real_code,
        tangents_held: bool | None = None,
        trust: bool = True,
        dry: bool = False,
        weights: frozenset[int] = frozenset(),
        share: Share | None = None,
        resized: Resized | None = None,
    ) -> None:
        self.gm, self.inputs, self.options, self.device = gm, list(example_inputs), options, device
        self.ledger, self.tangents_held = ledger, tangents_held
        self.resized = resized
        self.ways: dict[str, Any] = {"lowering": lowering, "code": code}
        self.tensors = [t for t in example_inputs if isinstance(t, torch.Tensor)]
        self.owned = tuple(index for index, value in enumerate(self.inputs) if _is_owned(value))
        self.symbols = symbols_of(gm.graph)
        self.graph_id = ledger.next_id()
        self.outside = ledger.outside(self.tensors)
        model, inside = model_under_way(), ledger.waiting
        self.model = None if model is None else weakref.ref(model)
        self.request = Request(options, device, dry, trust, capture_info().graph_break, inside, weights, share)
        self.hooks = hooks_of(self.request)
        self.hook = together(self.hooks.values())
        total = ledger.total_of(model, options.memory_budget)
        rooms = Rooms(options.memory_budget, self.outside, device, share, total)
        self.ctx = Context(self.request, lowering(self.hook), rooms)
        self.done: list[Done] = []
        self.graphs: StepGraphs | None = None
        self.keeps = KeepsBudget(StepGraphs(gm, None, 0), None)
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []
        self.repro = repro_script(gm, self.inputs, options)

    def compile(self) -> CompiledGraph:
        """Lower the graph within its budget. Raises ``BudgetInfeasibleError`` and ``PassError``."""
        original = copy.deepcopy(self.gm)
        again = functools.partial(_again, original, self.options, self.device, self.ways)
        code = self.ways["code"](
            self.inference, self._planned, self._accept, self._settled, self._on_code, hook=self.hook, supply=self._supply
        )
        function = None
        inputs = self.inputs if self.resized is None else self.resized.inputs
        symbolic: Any = contextlib.nullcontext() if self.resized is None else self.resized.compiling()
        with contextlib.suppress(_MissedError), measuring(), symbolic:
            function = compile_graph(self.gm, inputs, self.partition, code, self.options.inductor)
        if function is None:
            log.info("graph %s takes more than its plan: planned again, with trial lowerings", self.graph_id)
            sizes = () if self.resized is None else tuple(self.inputs[place] for place in self.symbols)
            return again(self.inputs, self.tangents_held, self.request.share, sizes, trust=False)
        entry, made = self.finish((self.options.dump, debug_folder()))
        kept = [kept for each in self.done for kept in each.plan.keeps]
        anew = again if self.ctx.has_budget else None
        compiled = CompiledGraph(function, entry, kept, self.tensors, made.graphs.tangents_held, self.options, anew)
        compiled.holds = None if self.resized is None else self.resized.holds()
        self.inputs, self.tensors = [], []  # code that asks for weights at each call keeps this session
        return compiled

    def partition(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Forward and backward of a joint graph, planned."""
        captured = self._captured(gm, training=True)
        graphs = default_partition(captured.gm, joint_inputs, num_fwd_outputs, **kwargs)
        held = not graphs.returns_loss() if self.tangents_held is None else self.tangents_held
        graphs = self._within_budget(dataclasses.replace(graphs, tangents_held=held))
        assert graphs.backward is not None
        return graphs.forward, graphs.backward

    def inference(self, gm: fx.GraphModule) -> fx.GraphModule:
        """A graph without a backward, planned."""
        captured = self._captured(gm, training=False)
        graphs = StepGraphs(captured.gm, None, len(outputs_of(captured.gm.graph)), captured.planned)
        return self._within_budget(graphs).forward

    def _captured(self, gm: fx.GraphModule, *, training: bool) -> Captured:
        """Through the passes on what AOT Autograd made. A size that is settled by now is an input that nobody reads."""
        for node in gm.graph.find_nodes(op="placeholder"):
            if not node.users:
                node.meta.setdefault("val", 0)
        return run("capture", Captured(gm, training), self.ctx, self.done, self._refuse)

    def _within_budget(self, graphs: StepGraphs) -> StepGraphs:
        self.graphs = run("step", graphs, self.ctx, self.done, self._refuse)
        return self.graphs

    @property
    def fitted(self) -> Fitted | None:
        """What became of the budget, as it stands."""
        return fitted_in(self.done)

    @property
    def counted_bytes(self) -> int | None:
        """The peak in what the budget counts, where that is not what the device allocates."""
        return next((counted for each in self.done if (counted := each.plan.counted_bytes) is not None), None)

    def _planned(self) -> Planned:
        return self.graphs.planned if self.graphs is not None else UNPLANNED

    def _supply(self) -> list[torch.Tensor]:
        """What the compiled graph takes beside its inputs, at each call."""
        return [tensor for each in self.done for tensor in each.plan.supply(self.device)]

    def _accept(self, trace: GraphTrace, kind: str) -> bool:
        """Whether the real lowering may hold dead buffers for later ones to the extent that made this trace."""
        if not self.keeps.traces and self.graphs is not None:
            self.keeps = KeepsBudget(self.graphs, self.limit_bytes())
        return self.keeps(trace, kind)

    def _settled(self, accepted: bool) -> None:
        """A plan that was taken on trust and does not hold is not compiled."""
        if not accepted and self.fitted is not None and self.fitted.trusted:
            raise _MissedError

    def _on_code(self, source: str, kind: str) -> None:
        self.sources[kind] = source

    def limit_bytes(self) -> int | None:
        """What the code of this graph may take; None where nobody named a limit, or where it is a share that nobody knows."""
        if self.fitted is not None:
            return self.fitted.budget_bytes
        room = self.ctx.rooms.known()
        return None if room is None or self.counted_bytes is not None else room.graph_bytes

    def finish(
        self,
        folders: Iterable[Path | None],
        final: Lowered | None = None,
        also: Callable[[GraphReport], GraphReport] = lambda report: report,
    ) -> tuple[GraphEntry, Made]:
        """What was lowered for good: the passes that took part, the last gate, the report, the books.

        ``final``: in the place of what was seen while it was compiled. ``also``: adds to the report.
        """
        peak = self.keeps.peak() if final is None else final.peak
        for each in self.done if final is None else ():
            each.plan.settle(self.keeps.traces, peak)
        made = run("lowered", self._made(peak), self.ctx, self.done, self._refuse)
        profile = self._profile(made.peak, made.dropped)
        self._pass_gate(made, profile)
        report = also(explain.graph_report(self, made))
        for folder in folders:
            if folder is not None:
                explain.save(report, folder)
        fitted = self.fitted
        entry = GraphEntry(
            profile,
            report,
            self.owned,
            unplanned=profile if fitted is None else self._profile(fitted.base.peak, fitted.base.peak),
            share=self.request.share,
            extra_seconds=report.planned_seconds - report.base_seconds,
            front=tuple if fitted is None else fitted.front,
            model=self.model,
            budget=self.options.memory_budget,
            places=tuple(self.symbols),
            sized=self._sized(made.traces, made),
            unplanned_sized=None if fitted is None else self._sized(fitted.base.by_half(), made),
        )
        self.ledger.add(entry, self.inputs)
        return entry, made

    def _sized(self, traces: Mapping[str, GraphTrace], made: Made) -> Callable[[tuple[int, ...]], Profile] | None:
        """What code takes with other sizes of its inputs; None where it takes the same."""
        if not any(trace.formulas for trace in traces.values()):
            return None
        symbols, held = tuple(self.symbols.values()), made.graphs.tangents_held
        compiled_for = [max(1, self.inputs[place]) for place in self.symbols]
        like = self._profile(made.peak, made.dropped)

        @functools.cache
        def profile(sizes: tuple[int, ...]) -> Profile:
            growth = max((size / before for size, before in zip(sizes, compiled_for, strict=True)), default=1.0)
            values = dict(zip(symbols, sizes, strict=True))
            forward, *backward = (trace.at(values, growth) for trace in traces.values())
            peak, dropped = (
                step_peak(forward, *backward, tangents_held=held, returned_held=returned) for returned in (True, False)
            )
            return _resized(like, peak, dropped)

        return profile

    def _made(self, peak: StepPeak) -> Made:
        return Made(
            self.graphs or StepGraphs(self.gm, None, 0),
            self.keeps.traces,
            peak,
            self.keeps.peak(returned_held=False),
            limit_bytes=self.limit_bytes(),
            slack_bytes=sum(each.plan.arena_slack_bytes for each in self.done),
            sources=self.sources,
            outside_bytes=self.outside.bytes,
            hooks=self.hooks,
        )

    def _pass_gate(self, made: Made, profile: Profile) -> None:
        """What was compiled against the budget, whatever was planned: this graph, and the step with the graphs before it."""
        peak = made.peak
        room = self.ctx.rooms.resolve(lambda: (peak.peak_bytes, peak.entry_bytes))
        if room is None:
            return
        if self.request.share is None and "backward" in made.traces:
            model = None if self.model is None else self.model()
            self.ledger.raise_total(model, self.options.memory_budget, room.total_bytes)
        counted = self.counted_bytes
        needed = self._needed(peak.peak_bytes if counted is None else counted, profile)
        if needed <= room.total_bytes or self._is_compared_later:
            return
        if self.options.on_infeasible == "raise":
            raise self._infeasible(Lowered(made.graphs, tuple(made.traces.values()), peak, peak), needed, profile)
        self.notes.append(f"the budget of {room.total_bytes} bytes is not kept: the compiled code takes {needed} bytes")

    @property
    def _is_compared_later(self) -> bool:
        """Whether what this graph takes is compared by those who plan its step: as they plan, or once they know what a share of
        the step's peak comes to."""
        share, rooms = self.request.share, self.ctx.rooms
        if share is None:
            return rooms.budget.needs_unplanned_peak and rooms.total_bytes is None and self._may_train_yet()
        return share != LEAST or self.budget_is_open

    @property
    def budget_is_open(self) -> bool:
        """Whether nobody knows yet what it comes to: a share of the peak of a step that is not over."""
        return self.request.share == LEAST and self.ctx.rooms.budget.needs_unplanned_peak

    def _may_train_yet(self) -> bool:
        """Whether this is a graph for inference of a model that can be trained: the share is one of a step of training, too."""
        trains = "backward" in self.keeps.traces or (self.graphs is not None and self.graphs.backward is not None)
        return not trains and any(self.inputs[index].requires_grad for index in self.owned)

    def _needed(self, peak_bytes: int, profile: Profile) -> int:
        """What this graph takes with all that is alive beside it; or the step so far, at any of its graphs."""
        own = peak_bytes + self.outside.bytes
        return max(own, self.ledger.peak_with(profile)) if self.ledger.chain() else own

    def _refuse(self, fitted: Fitted) -> None:
        """Raise what is known before anything is compiled."""
        if fitted.fits or self.options.on_infeasible != "raise" or self._is_compared_later:
            return
        peak = fitted.final.peak
        profile = self._profile(peak, peak)
        raise self._infeasible(fitted.final, self._needed(peak.peak_bytes, profile), profile, fitted)

    def _infeasible(
        self, lowered: Lowered, needed: int, profile: Profile, fitted: Fitted | None = None
    ) -> BudgetInfeasibleError:
        """``needed``: what the step takes at the least with the graphs before it as they are. A budget is advised that leaves
        those their plans; where there is none, one that needs no plans. ``fitted``: what was planned just now."""
        room = self.ctx.rooms.room
        assert room is not None
        base = fitted or self.fitted
        if any(graph.share is None for graph in self.ledger.chain()):
            unplanned = profile if base is None else self._profile(base.base.peak, base.base.peak)
            needed = max(needed, self.ledger.unplanned_peak_with(unplanned))
        bound = 0 if fitted is None else fitted.lower_bound_bytes
        proven = bound + self.outside.certain_bytes if bound else 0
        return BudgetInfeasibleError(
            room.total_bytes,
            needed,
            min(proven, needed),
            explain.contributors(lowered),
            explain.next_lever(self, lowered, "" if base is None else base.lever),
            self.request.graph_break,
        )

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
            owner_of(value for index in self.owned if isinstance(value := self.inputs[index], torch.Tensor)),
        )


def _resized(like: Profile, peak: StepPeak, dropped: StepPeak) -> Profile:
    """A profile for other sizes, with all inputs as one storage."""
    return dataclasses.replace(
        like,
        entry={0: peak.entry_bytes},
        held_bytes=peak.held_bytes,
        forward_peak_bytes=peak.forward_peak_bytes,
        backward_peak_bytes=peak.backward_peak_bytes,
        returned_bytes=peak.returned_bytes,
        dropped_backward_peak_bytes=dropped.backward_peak_bytes,
    )


def _again(
    original: fx.GraphModule,
    options: Options,
    device: torch.device,
    ways: Mapping[str, Any],
    inputs: Sequence[Any],
    tangents_held: bool | None,
    share: Share | None,
    sizes: Sequence[int] = (),
    trust: bool = True,
) -> CompiledGraph:
    """The graph compiled once more: its plan did not hold, or a step differs from what it was planned for. ``sizes``: those to
    plan for, as symbols where that can be."""
    gm, inputs = copy.deepcopy(original), list(inputs)
    places = dict(zip(symbols_of(gm.graph), sizes, strict=False))
    others = resized(gm, inputs, places) if places else None
    for place, size in places.items() if others is not None else ():
        inputs[place] = size
    more = {"tangents_held": tangents_held, "share": share, "trust": trust, "resized": others, **ways}
    return Session(gm, inputs, options, device, **more).compile()


def _is_owned(value: object) -> bool:
    """Whether an input is a parameter: it outlives the step."""
    return isinstance(value, torch.Tensor) and (isinstance(value, torch.nn.Parameter) or is_ticket(value))
