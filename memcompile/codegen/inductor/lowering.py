"""Inductor as the base that lowers everything: the one place that touches PyTorch's private compile pipeline.

Seams in use (present in PyTorch 2.11 to 2.15): ``compile_fx`` with configuration patches and an inner compile function,
``custom_partitioner_fn``, the wrapper class per device (``device_codegens``) whose ``run_wrapper_ir_passes`` sees every
allocation of the scheduled code, and ``force_non_lazy_backward_lowering``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from memcompile.codegen.inductor.accumulate import in_place
from memcompile.codegen.inductor.fusion import PlannedFusion, origins_of
from memcompile.codegen.inductor.holding import holding
from memcompile.codegen.inductor.hooks import NO_HOOK, Hook, Place
from memcompile.codegen.inductor.lines import kind_of, trace_of
from memcompile.codegen.inductor.miscompiled import CAPTURED, JOINT, respell
from memcompile.codegen.inductor.order import planned_order
from memcompile.codegen.inductor.patterns import StrictPatterns
from memcompile.codegen.inductor.scheduled import Scheduling
from memcompile.codegen.inductor.supplied import Supplied, Supply
from memcompile.codegen.inductor.tiles import sound_tiles
from memcompile.step.facts import UNPLANNED, Planned
from memcompile.step.fxutil import copied, hint, output_names, outputs_of
from memcompile.step.parts import storage_keys
from memcompile.step.trace import GraphTrace

Accept = Callable[[GraphTrace, str], bool]
Partition = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]
Settled = Callable[[bool], None]
Rewrite = Callable[[fx.GraphModule], fx.GraphModule]

InnerCompile = Callable[..., Any]


def compile_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    partition: Partition,
    inner_compile: InnerCompile,
    patches: Mapping[str, object],
) -> Callable[..., Any]:
    """Compile a Dynamo graph through Inductor's pipeline; forward and backward are compiled together, now.

    ``partition(joint, joint_inputs, num_fwd_outputs=..., **kwargs)`` splits a joint graph. ``inner_compile`` turns each half
    into code: ``real_code`` or ``dry.fake_code``. ``patches``: the user's Inductor settings. Inductor's graph caches are
    off: a cached graph would not be planned (compiled kernels are still cached by their source).
    """
    import torch._functorch.config as functorch_config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.custom_graph_pass import CustomPartitionerFn

    partitions = [partition]

    class Partitioner(CustomPartitionerFn):
        def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
            return partitions[0](gm, joint_inputs, **kwargs)

        def uuid(self) -> None:
            return None

    respell(gm.graph, CAPTURED)
    with (
        functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
        _collector_paused(),
        StrictPatterns() as strict,
        sound_tiles(),
    ):
        settings = {**patches, **_UNCACHED, "custom_partitioner_fn": Partitioner(), **_respelling(strict, patches)}
        compiled = compile_fx(gm, list(example_inputs), inner_compile=inner_compile, config_patches=settings)
    partitions.clear()  # torch's configuration remembers the last settings, and with them all that the partition knows
    return cast("Callable[..., Any]", compiled)


def _respelling(strict: StrictPatterns, patches: Mapping[str, object]) -> dict[str, object]:
    """The setting that spells ATen graphs so that Inductor compiles them right, in front of the passes that the user set."""
    from torch._inductor import config

    own: Any = patches.get(_JOINT_PASS, getattr(config, _JOINT_PASS))

    def first(graph: fx.Graph) -> None:
        strict.trace_again()
        respell(graph, JOINT)
        for own_pass in own if isinstance(own, list | tuple) else filter(None, [own]):
            own_pass(graph)

    return {_JOINT_PASS: first}


def real_code(
    rewrite_inference: Rewrite,
    plan: Callable[[], Planned],
    accept: Accept,
    settled: Settled,
    on_code: Callable[[str, str], None],
    hook: Hook = NO_HOOK,
    supply: Supply | None = None,
) -> InnerCompile:
    """The inner compile of a real compilation.

    ``rewrite_inference`` may replace an inference graph before it is lowered; inputs that it adds come from ``supply`` at each
    call. ``plan()``: what lowering must keep of the plan. ``accept``, ``settled``: see ``recording``; ``accept`` sees the final
    trace of each graph last. ``hook``: where passes take part.
    ``on_code(source, kind)`` sees the generated module of each graph.
    """
    from torch._inductor.compile_fx import compile_fx_inner

    def inner_compile(graph: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        kind = "inference" if kwargs.get("is_inference") else "backward" if kwargs.get("is_backward") else "forward"
        if kind == "inference":
            graph = rewrite_inference(graph)
        added = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")[len(inputs) :]]
        kept = plan()
        scheduled = (hook.scheduling or Scheduling(enabled=False)).when(kept is UNPLANNED)
        with recording(output_names(graph.graph), accept, settled, place=hook.place, scheduling=scheduled), planned(kept):
            code = compile_fx_inner(graph, [*inputs, *added], **kwargs)
        on_code(getattr(code, "source_code", ""), kind)
        return Supplied(code, supply) if added and supply is not None else code

    return inner_compile


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's garbage collector: it would look again and again through graphs that are all in use (a sixth of the
    time)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _TraceReady(BaseException):
    """Ends a trial lowering as soon as the trace is known. Not an Exception: Inductor would wrap it."""


REUSE_SHARES = (1.0, 0.95, 0.9, 0.8, 0.6, 0.0)
"""How much of its own peak estimate Inductor may fill by holding dead buffers for a later one of the same size."""


_JOINT_PASS = "joint_custom_pre_pass"
_UNCACHED = {"fx_graph_cache": False, "fx_graph_remote_cache": False}
_SCALAR = {"cpp.simdlen": 1}
"""A trial writes scalar code: vector and tail variants of each loop triple its time and allocate nothing else."""


def _trial_settings(graph: fx.Graph) -> dict[str, object]:
    """Kernels that Inductor fills in from templates are other ones without vectors, or none."""
    from torch._inductor import config

    calls = {str(node.target) for node in graph.nodes if isinstance(node.target, torch._ops.HigherOrderOperator)}
    templates = config.max_autotune or config.max_autotune_gemm or any(name.startswith("flex_attention") for name in calls)
    return {**_UNCACHED} if templates else {**_UNCACHED, **_SCALAR}


@contextlib.contextmanager
def recording(
    output_nodes: tuple[str, ...],
    accept: Accept,
    settled: Settled,
    shares: Sequence[float] = REUSE_SHARES,
    place: Place | None = None,
    scheduling: Scheduling | None = None,
) -> Iterator[None]:
    """While active, ``accept(trace, kind)`` is asked about each top-level graph that Inductor lowers.

    ``output_nodes``: what the graph returns, as it comes. ``kind`` is "forward", "backward" or "inference". Inductor holds a
    dead buffer for a later allocation of the same size (fresh memory costs page faults): as long as the answer is no, it does
    so less. The last trace asked about is the one that is used, and ``settled`` is told whether it was accepted. ``shares``:
    see ``REUSE_SHARES``. ``place(graph, kind)`` may then answer with a function that rewrites the lines of a wrapper that
    holds no dead buffers. ``scheduling`` orders the kernels of graphs without a plan, and says how far dead buffers may be
    held without undoing that. Wrapper classes are swapped for recording subclasses for the time of the context only; code that
    is lowered outside of it is untouched.
    """
    from torch._inductor.codegen.common import device_codegens, init_backend_registration

    init_backend_registration()
    scheduling = scheduling or Scheduling(enabled=False)
    before = dict(device_codegens)
    for device, entry in before.items():
        if entry.wrapper_codegen is not None:
            wrapper = _recording_wrapper(entry.wrapper_codegen, output_nodes, accept, settled, shares, place, scheduling)
            device_codegens[device] = dataclasses.replace(entry, wrapper_codegen=wrapper)
    try:
        with scheduling.active(), holding():
            yield
    finally:
        device_codegens.clear()
        device_codegens.update(before)


def _recording_wrapper(
    base: Any,
    output_nodes: tuple[str, ...],
    accept: Accept,
    settled: Settled,
    shares: Sequence[float],
    place: Place | None,
    scheduling: Scheduling,
) -> Any:
    from torch._inductor.virtualized import V

    inner_traces: dict[str, GraphTrace] = {}

    def read_inner(inner: Any, name: str, is_inference: bool) -> None:
        """A branch, the body of a loop: a function of its own, whose memory counts where it is called."""
        type(inner).run_wrapper_ir_passes(inner, is_inference)
        inner_traces[name] = trace_of(inner.lines, V.graph, (), inner_traces)

    class RecordingWrapper(base):  # type: ignore[misc]
        lines: list[Any]
        reuse_share = 1.0

        @staticmethod
        def create(is_subgraph: bool, subgraph_name: str | None, parent_wrapper: Any, partition_signatures: Any = None) -> Any:
            if is_subgraph:
                inner = base.create(is_subgraph, subgraph_name, parent_wrapper, partition_signatures)
                inner.run_wrapper_ir_passes = functools.partial(read_inner, inner, str(subgraph_name))
                return inner
            inner_traces.clear()
            return RecordingWrapper()

        @property
        def estimate_peak(self) -> Any:
            return self._estimate_peak

        @estimate_peak.setter
        def estimate_peak(self, estimate: Any) -> None:
            estimate.overall_peak_memory *= self.reuse_share
            self._estimate_peak = estimate

        def run_wrapper_ir_passes(self, is_inference: bool) -> None:
            kind = kind_of(V.graph)
            lines = in_place(self.lines)
            for share in shares:
                trace = scheduling.traces[kind] = self._trace(lines, share, is_inference)
                if share != shares[-1] and not scheduling.within(trace, kind):
                    continue
                if accepted := accept(trace, kind):
                    break
            settled(accepted)
            if place is not None and (rewrite := place(V.graph, kind)) is not None:
                rewrite(self, self._trace(lines, 0.0, is_inference))

        def _trace(self, lines: list[Any], share: float, is_inference: bool) -> GraphTrace:
            """Plan the lines anew, and count."""
            self.reuse_share = share
            self.lines = list(lines)
            for line in lines:
                if hasattr(line, "is_reused"):
                    line.is_reused = False
            super().run_wrapper_ir_passes(is_inference)
            return trace_of(self.lines, V.graph, output_nodes, inner_traces)

    return RecordingWrapper


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
        stack.enter_context(_attribute(inductor_graph, "get_donated_idxs", lambda: list(donated)))
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


@contextlib.contextmanager
def _attribute(target: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


_PLANNED_SETTINGS = {
    "_post_fusion_custom_pass": planned_order,
    "reorder_for_locality": False,
    "reorder_for_peak_memory": False,
}
"""Whoever reorders nodes or kernels does not know the plan."""


@contextlib.contextmanager
def planned(plan: Planned) -> Iterator[None]:
    """While active, Inductor keeps what the plan counts on. Nothing changes for a graph without a plan.

    - Kernels run in the order of their FX nodes, and nothing is fused out of its time (``fusion.py``).
    - Every storage of the plan gets a buffer: computed by its reader instead, what it is made of would live until then. A
      buffer that one fused kernel makes and reads is dropped again.
    - On the CPU, where loops between library calls become one C++ function, each loop nest of a half that recomputes has a
      function of its own, and so has what the plan keeps apart: all that a function reads and writes is alive together.
    """
    from torch._inductor import config
    from torch._inductor.codegen.cpp import CppScheduling
    from torch._inductor.graph import GraphLowering
    from torch._inductor.ir import TensorBox
    from torch._inductor.virtualized import V

    if plan is UNPLANNED:
        yield
        return
    run_node: Callable[..., Any] = GraphLowering.run_node
    ready_to_flush: Callable[..., bool] = CppScheduling.ready_to_flush

    def stored(graph: Any, node: fx.Node) -> Any:
        result = run_node(graph, node)
        if node.name in plan.stored and isinstance(result, TensorBox):
            result.realize()
        return result

    @functools.cache
    def recomputes(graph: fx.Graph) -> bool:
        return any(node.name in plan.recomputed for node in graph.nodes)

    def ready(scheduling: Any) -> bool:
        if ready_to_flush(scheduling) or recomputes(V.graph.graph):
            return True
        return any(origin.name in plan.apart for origin in origins_of(V.graph.scheduler.current_node))

    with contextlib.ExitStack() as stack:
        stack.enter_context(config.patch(_PLANNED_SETTINGS))
        stack.enter_context(V.set_choices_handler(PlannedFusion(plan.recomputed)))
        stack.enter_context(_attribute(GraphLowering, "run_node", stored))
        stack.enter_context(_attribute(CppScheduling, "ready_to_flush", ready))
        yield


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
