"""``memcompile.plan``: what compiling would plan, without a byte allocated or an operation run.

The model's parameters, its buffers and its inputs are replaced by fake tensors (shapes without memory) and Dynamo captures a
step with them, graph breaks included. Each graph goes through the real pipeline up to the kernels. Graphs that are too large to
lower while one waits are planned from ``fusion_model`` alone; the report says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils import _pytree

from memcompile.codegen.inductor.compile import compile_graph
from memcompile.codegen.inductor.dry import fake_code
from memcompile.codegen.inductor.dynamo import recompiling_freely
from memcompile.codegen.inductor.fusion_model import predict
from memcompile.codegen.inductor.hooks import Hook
from memcompile.codegen.inductor.partition import default_partition
from memcompile.codegen.inductor.seams import require_seams
from memcompile.codegen.inductor.surface import surfacing
from memcompile.codegen.inductor.trial import KeepsBudget
from memcompile.compiling.run import first_share
from memcompile.compiling.session import Session, on_trial
from memcompile.errors import DryRunError, NoReportError
from memcompile.machine.support import check_devices, check_torch
from memcompile.options import Options
from memcompile.report.data import GraphReport, Report
from memcompile.runtime.ledger import GraphEntry, Ledger, given_of
from memcompile.runtime.region import region_of
from memcompile.runtime.reports import report_over
from memcompile.step.facts import StepGraphs
from memcompile.step.fxutil import outputs_of
from memcompile.step.lowered import Lowered, Lowering

LOWERED_NODES = 4000
"""Nodes of a joint graph up to which a dry run lowers it unless told otherwise: about a minute."""
PREDICTED = "planned from a model of Inductor's fusion, without lowering: real peaks may differ by a few percent"


def plan(
    model: Callable[..., Any],
    /,
    *args: Any,
    options: Mapping[str, object] | Options | None = None,
    **kwargs: Any,
) -> Report:
    """A dry run of ``model(*args, **kwargs)``: the report that compiling with ``options`` would give, without kernels.

    Training graphs are planned where gradients are on and something requires them; the loss is what the model returns. Models
    and inputs on the meta device count as on the device of the others, or on the CPU. Raises what compiling would raise, and
    ``DryRunError`` when the step cannot go on without the values of its tensors, ``ScratchpadError`` for a scratchpad in front
    of a training graph, or one that an operator does not fit into, and ``NoReportError`` when Dynamo captures no graph.
    """
    check_torch()
    require_seams()
    parsed = options if isinstance(options, Options) else Options.from_mapping(options)
    model = getattr(model, "_orig_mod", model)
    device = _device(model, (args, kwargs))
    ledger, entries = Ledger(), list[GraphEntry]()
    fakes = _Fakes(device)
    fake_args, fake_kwargs = _pytree.tree_map_only(torch.Tensor, fakes.of, (args, kwargs))

    @surfacing
    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        with unset_fake_temporarily():
            entry, call = DryRun(gm, example_inputs, parsed, device, ledger, _weights(model)).plan()
        entries.append(entry)
        return call

    try:
        with recompiling_freely(), fakes.inside(model):
            torch.compile(_fresh(model), backend=backend)(*fake_args, **fake_kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise DryRunError(str(error)) from error
    if not entries:
        raise NoReportError()
    runs = [run for entry in entries for run in entry.runs.values()]
    report = report_over(runs, ledger.tapes.steps(), region_of(model).name)
    report.options = parsed.to_mapping()
    return report


def captured(
    model: Callable[..., Any], batch: Mapping[str, Any], *, args: Sequence[Any] = (), training: bool = True
) -> list[StepGraphs]:
    """The graphs of ``model(*args, **batch)`` as they would be lowered without a plan, in the order they run."""
    found: list[StepGraphs] = []
    fakes = _Fakes(_device(model, (args, batch)))
    fake_args, fake_batch = _pytree.tree_map_only(torch.Tensor, fakes.of, (tuple(args), dict(batch)))

    def partition(gm: fx.GraphModule, inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        found.append(default_partition(gm, inputs, num_fwd_outputs, **kwargs))
        return found[-1].forward, found[-1].backward

    def inference(gm: fx.GraphModule) -> fx.GraphModule:
        found.append(StepGraphs(gm, None, len(outputs_of(gm.graph))))
        return gm

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        with unset_fake_temporarily():
            return compile_graph(gm, example_inputs, partition, fake_code(inference), {})

    with recompiling_freely(), fakes.inside(model), torch.set_grad_enabled(training):
        torch.compile(_fresh(model), backend=backend)(*fake_args, **fake_batch)
    return found


class DryRun:
    """Plans one graph; nothing is compiled. ``weights``: the ``id`` of parameters and buffers of the model."""

    def __init__(
        self,
        gm: fx.GraphModule,
        example_inputs: Sequence[Any],
        options: Options,
        device: torch.device,
        ledger: Ledger,
        weights: Collection[int] = (),
    ) -> None:
        self.options = options
        self.nodes = 0
        self.predicted = False
        self.final: Lowered | None = None
        own = (i for i, x in enumerate(example_inputs) if id(x) in weights or isinstance(x, torch.nn.Parameter))
        self.session = Session(
            gm,
            example_inputs,
            options,
            device,
            ledger,
            lowering=self._lowering,
            trust=False,
            dry=True,
            weights=frozenset(own),
            share=first_share(options, example_inputs, ledger),
        )

    def plan(self) -> tuple[GraphEntry, Callable[..., Any]]:
        """Enter the graph's plan into the ledger; returns it, and a callable that makes fake outputs."""
        session = self.session
        function = compile_graph(session.gm, session.inputs, self._partition, fake_code(self._inference), self.options.inductor)
        entry, _ = session.finish((self.options.dump,), self.final, self._also)

        def call(*args: Any) -> Any:
            ledger = session.ledger
            tape, number = ledger.begin(call, (session.graph_id,), None)
            tape.calls[number].ran_as(entry, ledger.ran(entry, args))
            outputs = function(*args)
            tape.note("returned", number)
            if entry.report.kind == "train":
                ledger.hold(entry, outputs, given=given_of(args), call=(tape, number))
            return outputs

        return entry, call

    def _partition(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
        self._see(gm)
        halves = self.session.partition(gm, joint_inputs, **kwargs)
        self._lower()
        return halves

    def _inference(self, gm: fx.GraphModule) -> fx.GraphModule:
        self._see(gm)
        planned = self.session.inference(gm)
        self._lower()
        return planned

    def _see(self, gm: fx.GraphModule) -> None:
        """The size of the graph as it was captured, and whether to lower one of that size."""
        self.nodes, lower = len(gm.graph.nodes), self.options.lower
        if lower == "auto":
            lower = self.nodes <= LOWERED_NODES and self.options["scratchpad"] is None
        self.predicted = not lower

    def _lowering(self, hook: Hook) -> Lowering:
        trial = on_trial(hook)
        return lambda graphs, budget_bytes: (predict_graphs if self.predicted else trial)(graphs, budget_bytes)

    def _lower(self) -> None:
        """What would be compiled, where no plan has lowered it yet."""
        session, fitted = self.session, self.session.fitted
        assert session.graphs is not None
        self.final = fitted.final if fitted is not None else session.ctx.lower(session.graphs, session.limit_bytes())
        session.keeps.traces = dict(zip(_kinds(session.graphs), self.final.traces, strict=True))

    def _also(self, report: GraphReport) -> GraphReport:
        """With what a dry run knows beside: graph size, planning time, and how exact the numbers are."""
        plan = {
            "ops": sum(event.kind == "kernel" for trace in self.session.keeps.traces.values() for event in trace.events),
            "plan_seconds": 0.0,
            **report.plan,
            "nodes": self.nodes,
            "lowered": not self.predicted,
        }
        notes = (*report.notes, PREDICTED) if self.predicted else report.notes
        return dataclasses.replace(report, plan=plan, notes=notes)


def predict_graphs(graphs: StepGraphs, budget_bytes: int | None = None) -> Lowered:  # noqa: ARG001 - a Lowering
    """What ``lower_graphs`` would return, by the fusion model."""
    keeps = KeepsBudget(graphs, None)
    for kind, half in zip(_kinds(graphs), (graphs.forward, graphs.backward), strict=False):
        assert half is not None
        keeps(predict(half.graph, graphs.planned), kind)
    peak = keeps.peak()
    return Lowered(graphs, tuple(keeps.traces.values()), peak, peak)


def _kinds(graphs: StepGraphs) -> tuple[str, ...]:
    return ("inference",) if graphs.backward is None else ("forward", "backward")


class _Fakes:
    """Real (or meta) tensors -> fake ones on ``device``, each to the same one every time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The stand-in of ``tensor``."""
        if id(tensor) not in self.known:
            self.known[id(tensor)] = tensor, self._make(tensor)
        return self.known[id(tensor)][1]

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "meta":
            with self.mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)
            fake.requires_grad_(tensor.requires_grad)
        else:
            fake = self.mode.from_tensor(tensor, static_shapes=True)
        if isinstance(tensor, torch.nn.Parameter) and not isinstance(fake, torch.nn.Parameter):
            fake = torch.nn.Parameter(fake.detach(), tensor.requires_grad)
        if tensor.is_leaf and tensor.grad is not None and fake.grad is None:
            fake.grad = self.of(tensor.grad)
        return fake

    @contextlib.contextmanager
    def inside(self, model: Callable[..., Any]) -> Iterator[None]:
        """While active, the model's parameters and buffers are fake, and what runs makes fake tensors."""
        with contextlib.ExitStack() as stack:
            if isinstance(model, torch.nn.Module):
                for module in model.modules():
                    for own in (module._parameters, module._buffers):
                        stack.enter_context(_replaced(own, self.of))
            stack.enter_context(self.mode)
            yield


@contextlib.contextmanager
def _replaced(tensors: dict[str, Any], stand_in: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """``tensors`` with stand-ins for its values; the step may assign others meanwhile."""
    before = dict(tensors)
    tensors.update((name, stand_in(tensor)) for name, tensor in before.items() if tensor is not None)
    try:
        yield
    finally:
        tensors.clear()
        tensors.update(before)


def _weights(model: Callable[..., Any]) -> frozenset[int]:
    """The ``id`` of parameters and buffers; of their stand-ins while those are in their place."""
    own = itertools.chain(model.parameters(), model.buffers()) if isinstance(model, torch.nn.Module) else ()
    return frozenset(map(id, own))


def _device(model: Callable[..., Any], inputs: object) -> torch.device:
    """Where the step would run: meta tensors go where the others are."""
    own = itertools.chain(model.parameters(), model.buffers()) if isinstance(model, torch.nn.Module) else ()
    tensors = [*own, *(leaf for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor))]
    return check_devices(tensor.device for tensor in tensors if tensor.device.type != "meta")


def _fresh(model: Callable[..., Any]) -> Callable[..., Any]:
    """``model`` as a function that Dynamo has never seen: neither side finds what the other one has compiled."""

    def step(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return types.FunctionType(step.__code__.replace(), step.__globals__, "step", None, step.__closure__)
