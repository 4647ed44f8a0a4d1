"""Where the order of kernels enters Inductor: in place of its own last reordering, ``memory.reorder_for_peak_memory``.

Passes before it (loop merging, combo kernels) make new kernels and sort them anew; what comes after works from its order. It is
not called for graphs with a recompute plan, whose order is set earlier (``order.py``), nor where the user's Inductor settings
switch it off.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from memcompile.codegen.inductor import ordering as schedule
from memcompile.codegen.inductor.kernels import KernelGraph
from memcompile.codegen.inductor.lines import kind_of
from memcompile.codegen.inductor.ordering import Ordering
from memcompile.codegen.inductor.surface import surface
from memcompile.errors import PassError
from memcompile.logs import get_logger
from memcompile.solvers.order.ordering import OrderProblem
from memcompile.solvers.order.ordering_solve import STEPS
from memcompile.step.trace import Event, GraphTrace, step_peak

log = get_logger(__name__)


class _CrashedError(BaseException):
    """This pass crashed. Not an Exception: Inductor would wrap it."""


class Scheduling:
    """Orders the kernels of the top-level graphs that are lowered. ``orderings``: the last one of each kind; a graph that is
    lowered once more, with the same kernels, keeps it. ``traces``: what was lowered last, of each kind. ``entry``: what is
    alive at first and dies in a graph.

    ``enabled``: without it everything stays as Inductor has it. ``fallback``: so does a graph on which this crashes;
    without it, that is a `PassError`.
    """

    def __init__(self, enabled: bool = True, steps: int = STEPS, *, fallback: bool = False) -> None:
        self.enabled, self.steps, self.fallback = enabled, steps, fallback
        self.orderings: dict[str, Ordering] = {}
        self.traces: dict[str, GraphTrace] = {}
        self.entry: dict[str, tuple[Event, ...]] = {}
        self.apart: set[Any] = set()
        self.problems: dict[str, OrderProblem] = {}

    def when(self, unplanned: bool) -> Scheduling:
        """This, for a graph without a recompute plan. For one with a plan, which sets the order itself: nothing."""
        if unplanned:
            return self
        self.orderings.clear()
        self.problems.clear()
        return Scheduling(enabled=False)

    def within(self, trace: GraphTrace, kind: str) -> bool:
        """Whether dead buffers that lowered code holds for later ones leave a better order its smaller peak."""
        ordering = self.orderings.get(kind)
        if ordering is None or not ordering.changed:
            return True
        return own_peak(trace, self.entry[kind]) <= ordering.order.peak_bytes

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While active, Inductor orders kernels by this."""
        import torch._inductor.memory as memory
        from torch._inductor.codegen.cpp import CppScheduling

        if not self.enabled:
            yield
            return
        reorder: Callable[..., list[Any]] = memory.reorder_for_peak_memory
        ready_to_flush: Callable[..., bool] = CppScheduling.ready_to_flush

        def ordered(nodes: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
            chosen = reorder(nodes, *args, **kwargs)
            try:
                return self._ordered(nodes, chosen, *args)
            except Exception as error:  # a bug of ours: named, with its cause, unless the user chose the fallback
                if not self.fallback:
                    raise _CrashedError from error
                log.warning("schedule failed, Inductor's order of kernels stays: %s", error)
                return chosen

        def ready(scheduling: Any) -> bool:
            return ready_to_flush(scheduling) or scheduling.scheduler.current_node in self.apart

        memory.reorder_for_peak_memory = ordered
        CppScheduling.ready_to_flush = ready  # type: ignore[method-assign]
        try:
            yield
        except _CrashedError as crash:
            cause = crash.__cause__
            raise surface(PassError("schedule", f"{type(cause).__name__}: {cause}")) from cause
        finally:
            memory.reorder_for_peak_memory = reorder
            CppScheduling.ready_to_flush = ready_to_flush  # type: ignore[method-assign]
            self.apart.clear()

    def _ordered(
        self, before: list[Any], chosen: list[Any], buffers: dict[str, Any], _fused: object, inputs: Any, outputs: Any
    ) -> list[Any]:
        import torch._inductor.memory as memory
        from torch._inductor.graph import SubgraphLowering
        from torch._inductor.virtualized import V

        graph = V.graph
        if isinstance(graph, SubgraphLowering) or _has_streams(graph.scheduler):
            return chosen
        kind = kind_of(graph)
        kernels = KernelGraph(chosen, graph, self.traces.get("forward") if kind == "backward" else None)
        if self.problems.get(kind) != kernels.problem:
            freeable = memory.get_freeable_input_buf(before, inputs)
            known = {
                "graph order": before,
                "LPMF": memory.topological_sort_lpmf(before, freeable, buffers, outputs),
                "BFS": memory.topological_sort_bfs(before),
                "DFS": memory.topological_sort_dfs(before),
            }
            orders = {name: kernels.order_of(nodes) for name, nodes in known.items()}
            self.orderings[kind] = schedule.plan_order(kind, kernels.problem, orders, self.steps)
            self.problems[kind] = kernels.problem
        found = self.orderings[kind]
        self.entry[kind] = kernels.entry
        if not found.changed:
            return chosen
        self.apart |= {node for k in found.order.apart for node in kernels.units[k]}
        return kernels.nodes_of(found.order.sequence)


def own_peak(trace: GraphTrace, entry: Sequence[Event]) -> int:
    """Exact peak of one lowered graph by itself: its own buffers, and those of its inputs that die in it (``entry``)."""
    return step_peak(dataclasses.replace(trace, inputs=(), events=(*entry, *trace.events))).peak_bytes


def _has_streams(scheduler: Any) -> bool:
    """Whether kernels run on several streams: their order then is not one sequence."""
    return bool(getattr(scheduler, "_multi_stream_nodes", False))
