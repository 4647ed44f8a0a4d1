"""What Inductor lowers, seen and kept to the plan: every allocation of its code, and the order and stores of a planned graph.

Seams in use (present in PyTorch 2.11 to 2.15): the wrapper class per device (``device_codegens``) whose
``run_wrapper_ir_passes`` sees every allocation of the scheduled code, ``GraphLowering.run_node``, the choices handler.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import fx

from memcompile.codegen.inductor.accumulate import in_place
from memcompile.codegen.inductor.fusion import PlannedFusion, origins_of
from memcompile.codegen.inductor.holding import holding
from memcompile.codegen.inductor.hooks import Place
from memcompile.codegen.inductor.lines import kind_of, trace_of
from memcompile.codegen.inductor.order import planned_order
from memcompile.codegen.inductor.scheduled import Scheduling
from memcompile.step.facts import UNPLANNED, Planned
from memcompile.step.trace import GraphTrace

Accept = Callable[[GraphTrace, str], bool]
Settled = Callable[[bool], None]

REUSE_SHARES = (1.0, 0.95, 0.9, 0.8, 0.6, 0.0)
"""How much of its own peak estimate Inductor may fill by holding dead buffers for a later one of the same size."""


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


@contextlib.contextmanager
def attribute(target: Any, name: str, value: Any) -> Iterator[None]:
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
        stack.enter_context(attribute(GraphLowering, "run_node", stored))
        stack.enter_context(attribute(CppScheduling, "ready_to_flush", ready))
        yield
