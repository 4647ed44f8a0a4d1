"""One way of running a step in a process of its own, as its user runs it: own heap, own threads, own compiler.

Ways that share a process share the C library's heap, and a step's time depends on whether that heap keeps the memory that
the step frees or asks the kernel for it again. Here only the turns are shared: one worker steps, the others wait.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from torch._dynamo.exc import TorchDynamoException

from benchmarks.models import CASES
from benchmarks.peers import Gradients, Named, Running, Way, prepare_process
from memcompile import report as report_of
from memcompile.errors import BudgetInfeasibleError, MemcompileError
from memcompile.passes.arena.figure import ArenaReport
from memcompile.runtime.measure import Measurement
from memcompile.runtime.transfers.engine import Engine

ERRORS = (MemcompileError, TorchDynamoException, RuntimeError, ValueError, TypeError, LookupError, AssertionError, ImportError)
"""What a failing way may raise: it becomes a row, and the other ways go on."""


@dataclass(frozen=True)
class Planned:
    """What memcompile's report says about its plan: bytes, seconds of planning, shares of the step without a plan.

    ``swap``: of the first graph that moves storages, what its plan says of that, in seconds and bytes.
    """

    peak_bytes: int
    lower_bound_bytes: int
    plan_seconds: float
    overhead: float | None
    bound_overhead: float | None
    how: str
    arenas: tuple[ArenaReport, ...]
    swap: Mapping[str, float]


@dataclass(frozen=True)
class Prepared:
    """A way that is compiled and alive."""

    peak: Measurement
    first_call_seconds: float
    joint_nodes: int
    loss: float
    planned: Planned | None


class WayFailedError(Exception):
    """A way raised, or its process died. With `floor_bytes`, memcompile refused its budget."""

    def __init__(self, message: str, floor_bytes: int | None = None, lower_bound_bytes: int | None = None) -> None:
        super().__init__(message, floor_bytes, lower_bound_bytes)
        self.message = message
        self.floor_bytes = floor_bytes
        self.lower_bound_bytes = lower_bound_bytes


class Remote:
    """An object at the other end of a pipe: ``make`` builds it there, at the first request. Raises `WayFailedError` where the
    object raises; `close` ends its process. ``warm``: whether its compiler is started first, for times of first calls."""

    warm: ClassVar[bool] = True

    def __init__(self, way: Named, make: Callable[[], object], threads: int = 0) -> None:
        self.way = way
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, threads, self.warm), daemon=True)
        self._process.start()
        theirs.close()

    def warm_up(self) -> None:
        """One step that is not timed."""
        self.ask("warm_up")

    def timed_step(self) -> float:
        """Seconds of one step."""
        seconds: float = self.ask("timed_step")
        return seconds

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()

    def ask(self, what: str) -> Any:
        """What the object's method of that name returns."""
        try:
            self._pipe.send(what)
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=10)
            raise WayFailedError(f"its process ended with exit code {self._process.exitcode}") from error
        if isinstance(answer, WayFailedError):
            raise answer
        return answer


class Worker(Remote):
    """A `Running` at the other end of a pipe."""

    way: Way

    def __init__(self, case: str, way: Way, device: str = "cpu", batch_scale: int = 1, threads: int = 0) -> None:
        super().__init__(way, functools.partial(_running, case, way, device, batch_scale), threads)

    def prepare(self) -> Prepared:
        """Build, compile from an empty cache, measure the peak."""
        prepared: Prepared = self.ask("prepare")
        return prepared

    def gradients(self) -> Gradients:
        """Loss and gradients from the fixed random state."""
        gradients: Gradients = self.ask("gradients")
        return gradients

    def page_faults(self) -> int:
        """Minor page faults of a step."""
        faults: int = self.ask("page_faults")
        return faults

    def reserved_bytes(self) -> int:
        """What a GPU's allocator holds at most in a step."""
        reserved: int = self.ask("reserved_bytes")
        return reserved


def _serve(pipe: Connection, make: Callable[[], object], threads: int, warm: bool) -> None:
    """Answer one request after the other until the pipe closes."""
    prepare_process(threads, warm=warm)
    made: object | None = None
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        try:
            made = made or make()
            answer = getattr(made, what)()
        except ERRORS as error:
            answer = _failure(error)
        pipe.send(answer)


def _running(case: str, way: Way, device: str, batch_scale: int) -> _Served:
    return _Served(CASES[case], way, device, batch_scale)


class _Served(Running):
    def prepare(self) -> Prepared:
        """What `Worker.prepare` returns."""
        self.first_call()
        peak = self.peak()
        planned = _planned(self) if self.way.kind == "memcompile" else None
        return Prepared(peak, self.first_call_seconds, self.joint_nodes, self.loss, planned)

    def waited_s(self) -> float:
        """Seconds that the steps so far have waited for transfers."""
        return sum(mover.waited_s for mover in gc.get_objects() if isinstance(mover, Engine))


def _planned(running: Running) -> Planned:
    report = report_of(running.model)
    base = report.base_seconds
    return Planned(
        peak_bytes=report.planned_peak_bytes,
        lower_bound_bytes=report.lower_bound_bytes,
        plan_seconds=sum(item.compile_seconds for item in report.passes),
        overhead=report.planned_seconds / base - 1 if base else None,
        bound_overhead=report.lower_bound_seconds / base - 1 if base else None,
        how="; ".join(dict.fromkeys(f"{graph.solver} {graph.status}".strip() for graph in report.graphs)),
        arenas=tuple(graph["arena"] for graph in report.graphs if graph["arena"] is not None),
        swap=next((_numbers(graph.plan) for graph in report.graphs if "moves" in graph.plan), {}),
    )


def _numbers(plan: Mapping[str, Any]) -> dict[str, float]:
    names = ("moved_bytes", "away_bytes", "hidden_share", "link_seconds", "waited_seconds", "busy_seconds")
    return {name: plan[name] for name in names}


def _failure(error: BaseException) -> WayFailedError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, BudgetInfeasibleError):
        cause = getattr(cause, "inner_exception", None) or cause.__cause__ or cause.__context__
    first_line = str(error).strip().splitlines()[:1] or [""]
    message = f"{type(error).__name__}: {first_line[0]}"[:200]
    if cause is None:
        return WayFailedError(message)
    return WayFailedError(message, cause.floor_bytes, cause.lower_bound_bytes)
