"""Trial lowering: graphs through Inductor up to the kernels, for their exact peak. Nothing is compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from memcompile.codegen.inductor.compile import UNCACHED
from memcompile.codegen.inductor.lowering import REUSE_SHARES, Accept, attribute, planned, recording
from memcompile.codegen.inductor.scheduled import Scheduling
from memcompile.step.facts import UNPLANNED, Planned, StepGraphs
from memcompile.step.fxutil import copied, hint, output_names, outputs_of
from memcompile.step.lowered import Lowered
from memcompile.step.parts import storage_keys
from memcompile.step.trace import GraphTrace, StepPeak, step_peak

_SCALAR = {"cpp.simdlen": 1}
"""A trial writes scalar code: vector and tail variants of each loop triple its time and allocate nothing else."""


def _trial_settings(graph: fx.Graph) -> dict[str, object]:
    """Kernels that Inductor fills in from templates are other ones without vectors, or none."""
    from torch._inductor import config

    calls = {str(node.target) for node in graph.nodes if isinstance(node.target, torch._ops.HigherOrderOperator)}
    templates = config.max_autotune or config.max_autotune_gemm or any(name.startswith("flex_attention") for name in calls)
    return {**UNCACHED} if templates else {**UNCACHED, **_SCALAR}


class _TraceReady(BaseException):
    """Ends a trial lowering as soon as the trace is known. Not an Exception: Inductor would wrap it."""


def lower_graphs(graphs: StepGraphs, budget_bytes: int | None = None, scheduling: Scheduling | None = None) -> Lowered:
    """Trial lowering of a step (or of an inference graph) and its exact peak.

    With a budget, dead buffers are held for reuse as far as it allows. Without one, ``peak`` is that of plain
    ``torch.compile``, in the order of kernels that ``scheduling`` finds.
    """
    keeps = KeepsBudget(graphs, budget_bytes or 0)
    shares = REUSE_SHARES if budget_bytes else (1.0, 0.0)
    if graphs.backward is None:
        lower(graphs.forward, kind="inference", plan=graphs.planned, accept=keeps, shares=shares, scheduling=scheduling)
    else:
        lower_step(
            graphs.forward, graphs.backward, graphs.num_user_outputs, graphs.planned, keeps, shares, scheduling=scheduling
        )
    tight = keeps.peak()
    return Lowered(graphs, tuple(keeps.traces.values()), tight if budget_bytes else keeps.peak(keeps.first), tight)


class KeepsBudget:
    """Whether what was lowered so far keeps a budget; remembers the first and the last trace of each half.

    Without a budget everything does.
    """

    def __init__(self, graphs: StepGraphs, budget_bytes: int | None) -> None:
        self.graphs, self.budget_bytes = graphs, budget_bytes
        self.first: dict[str, GraphTrace] = {}
        self.traces: dict[str, GraphTrace] = {}

    def __call__(self, trace: GraphTrace, kind: str) -> bool:
        self.first.setdefault(kind, trace)
        self.traces[kind] = trace
        return self.budget_bytes is None or self.peak().peak_bytes <= self.budget_bytes

    def peak(self, traces: dict[str, GraphTrace] | None = None, *, returned_held: bool = True) -> StepPeak:
        """Exact peak of the halves seen so far. ``returned_held``: see ``step_peak``."""
        return peak_of(self.graphs, self.traces if traces is None else traces, returned_held=returned_held)


def peak_of(graphs: StepGraphs, traces: Mapping[str, GraphTrace], *, returned_held: bool = True) -> StepPeak:
    """Exact peak of the halves that were lowered, by kind of graph. ``returned_held``: see ``step_peak``."""
    forward = traces.get("inference") or traces.get("forward")
    if forward is None:
        return StepPeak(0, 0, 0, 0, 0, 0, (), ())
    held = graphs.tangents_held
    return step_peak(forward, traces.get("backward"), tangents_held=held, returned_held=returned_held)


def lower(
    gm: fx.GraphModule,
    *,
    kind: str,
    num_user_outputs: int | None = None,
    input_strides: dict[int, tuple[int, ...]] | None = None,
    donated: Sequence[int] = (),
    plan: Planned = UNPLANNED,
    accept: Accept | None = None,
    shares: Sequence[float] = REUSE_SHARES,
    scheduling: Scheduling | None = None,
) -> GraphTrace:
    """Lower and schedule ``gm`` as the real compilation will, stop before any kernel is compiled, return its trace.

    ``kind``: "forward", "backward" or "inference". ``input_strides``: strides that replace those of the placeholders
    (saved tensors whose layout the lowered forward chose). ``donated``: indices of backward inputs that die in the backward.
    ``plan``: see ``planned``. ``accept``, ``shares``, ``scheduling``: see ``recording``.
    """
    from torch._inductor import config
    from torch._inductor import graph as inductor_graph
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.cudagraph_utils import BoxedDeviceIndex
    from torch._inductor.utils import BoxedBool, count_tangents

    caught: list[GraphTrace] = []

    def stop(_accepted: bool) -> None:
        raise _TraceReady

    def catch(trace: GraphTrace, kind: str) -> bool:
        caught[:] = [trace]
        return accept is None or accept(trace, kind)

    trial = copied(gm)
    placeholders = trial.graph.find_nodes(op="placeholder")
    inputs = [node.meta["val"] for node in placeholders]
    for index, stride in (input_strides or {}).items():
        if isinstance(inputs[index], torch.Tensor) and tuple(map(hint, inputs[index].stride())) != stride:
            inputs[index] = inputs[index].as_strided(inputs[index].size(), stride)
    output = trial.graph.output_node()
    count = len(outputs_of(trial.graph)) if kind != "forward" or num_user_outputs is None else num_user_outputs
    visible = [i for i, out in enumerate(outputs_of(trial.graph)[:count]) if isinstance(out, fx.Node)]
    output.meta["user_visible_output_idxs"] = visible
    static = list(range(count_tangents(trial))) if kind == "backward" else []
    with contextlib.ExitStack() as stack:
        scheduled = (scheduling or Scheduling(enabled=False)).when(plan is UNPLANNED)
        stack.enter_context(recording(output_names(trial.graph), catch, stop, shares, scheduling=scheduled))
        stack.enter_context(planned(plan))
        stack.enter_context(config.patch(_trial_settings(trial.graph)))
        stack.enter_context(attribute(inductor_graph, "get_donated_idxs", lambda: list(donated)))
        with contextlib.suppress(_TraceReady):
            compile_fx_inner(
                trial,
                inputs,
                static_input_idxs=static,
                cudagraphs=BoxedBool(False),
                is_backward=kind == "backward",
                is_inference=kind == "inference",
                graph_id=None,
                boxed_forward_device_index=BoxedDeviceIndex(None),
            )
    if not caught:  # a graph without any call is not lowered at all
        outputs = output_names(trial.graph)
        catch(GraphTrace(tuple((n.name, 0) for n in placeholders), outputs, outputs, (None,) * len(outputs), (), {}), kind)
    return caught[0]


def lower_step(
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    num_user_outputs: int,
    plan: Planned = UNPLANNED,
    accept: Accept | None = None,
    shares: Sequence[float] = REUSE_SHARES,
    scheduling: Scheduling | None = None,
) -> tuple[GraphTrace, GraphTrace]:
    """Trial lowering of both halves, the backward with the layouts that the lowered forward gives its saved tensors."""
    common = {"plan": plan, "accept": accept, "shares": shares, "scheduling": scheduling}
    forward_trace = lower(forward, kind="forward", num_user_outputs=num_user_outputs, **common)  # type: ignore[arg-type]
    saved = {name: index for index, name in enumerate(forward_trace.output_nodes) if name}
    strides = {
        position: stride
        for position, node in enumerate(backward.graph.find_nodes(op="placeholder"))
        if (index := saved.get(node.name)) is not None and (stride := forward_trace.output_strides[index]) is not None
    }
    backward_trace = lower(
        backward,
        kind="backward",
        input_strides=strides,
        donated=donated_inputs(forward, backward, num_user_outputs),
        **common,  # type: ignore[arg-type]
    )
    return forward_trace, backward_trace


def donated_inputs(forward: fx.GraphModule, backward: fx.GraphModule, num_user_outputs: int) -> list[int]:
    """Indices of backward inputs that nobody else holds: saved tensors that alias no input, user output or gradient."""
    from torch._functorch import config

    if not config.donated_buffer:
        return []
    outputs = outputs_of(forward.graph)
    others = (*forward.graph.find_nodes(op="placeholder"), *outputs[:num_user_outputs], *outputs_of(backward.graph))
    held = {key for node in others if isinstance(node, fx.Node) for key in _storage_keys(node)}
    saved = {node.name: node for node in outputs[num_user_outputs:] if isinstance(node, fx.Node)}
    return [
        position
        for position, node in enumerate(backward.graph.find_nodes(op="placeholder"))
        if (source := saved.get(node.name)) is not None
        and isinstance(source.meta.get("val"), torch.Tensor)
        and held.isdisjoint(_storage_keys(source))
    ]


def _storage_keys(node: fx.Node) -> list[int]:
    value = node.meta.get("val")
    return storage_keys(value) if isinstance(value, torch.Tensor) else []
