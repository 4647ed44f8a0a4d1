"""One way of running a step in a process of its own, as its user runs it: own heap, own threads, own compiler.

Ways that share a process share the C library's heap, and a step's time depends on whether that heap keeps the memory that
the step frees or asks the kernel for it again. Here only the turns are shared: one worker steps, the others wait.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import torch
import torch._dynamo
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.utils import fresh_cache

from memcompile.errors import BudgetInfeasibleError, MemcompileError

ERRORS = (MemcompileError, TorchDynamoException, RuntimeError, ValueError, TypeError, LookupError, AssertionError, ImportError)
"""What a failing way may raise: it becomes a row, and the other ways go on."""
QUIET: Mapping[str, str] = {"KINETO_LOG_LEVEL": "99", "TRANSFORMERS_VERBOSITY": "error"}
COLD: Mapping[str, str] = {**QUIET, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
"""The first call's seconds are those of compiling."""


class WayFailedError(Exception):
    """A way raised, or its process died. With `floor_bytes`, memcompile refused its budget."""

    def __init__(self, message: str, floor_bytes: int | None = None, lower_bound_bytes: int | None = None) -> None:
        super().__init__(message, floor_bytes, lower_bound_bytes)
        self.message = message
        self.floor_bytes = floor_bytes
        self.lower_bound_bytes = lower_bound_bytes


class Remote:
    """An object at the other end of a pipe: ``make`` builds it there, at the first request. Raises `WayFailedError` where the
    object raises; `close` ends its process. ``environment``: of the process, unless it is set outside. ``warm``: whether its
    compiler is started first, for times of first calls."""

    environment: ClassVar[Mapping[str, str]] = COLD
    warm: ClassVar[bool] = True

    def __init__(self, name: str, make: Callable[[], object], threads: int = 0) -> None:
        self.name = name
        for variable, value in self.environment.items():
            os.environ.setdefault(variable, value)
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

    def ask(self, what: str, *arguments: object) -> Any:
        """What the object's method of that name returns."""
        try:
            self._pipe.send((what, arguments))
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=10)
            raise WayFailedError(f"its process ended with exit code {self._process.exitcode}") from error
        if isinstance(answer, WayFailedError):
            raise answer
        return answer


class Quick(Remote):
    """One whose first call nobody times: it finds what others compiled."""

    environment = QUIET
    warm = False


def prepare_process(threads: int = 0, *, warm: bool = True) -> None:
    """Settings that the comparison needs: no silent fall back to eager, and a ``warm`` compiler."""
    if threads:
        torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 64  # one entry for each way and graph
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    if not warm:
        return
    with fresh_cache():  # the first compilation of a process starts workers and builds headers: no way should pay for that
        total: torch.Tensor = torch.compile(lambda x: (x * 2).relu().sum())(torch.ones(64, requires_grad=True))
        torch.autograd.backward(total)


def _serve(pipe: Connection, make: Callable[[], object], threads: int, warm: bool) -> None:
    """Answer one request after the other until the pipe closes."""
    prepare_process(threads, warm=warm)
    made: object | None = None
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        try:
            made = made or make()
            answer = getattr(made, what)(*arguments)
        except ERRORS as error:
            answer = failure(error)
        pipe.send(answer)


def failure(error: BaseException) -> WayFailedError:
    """An error as what a row says of it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, BudgetInfeasibleError):
        cause = getattr(cause, "inner_exception", None) or cause.__cause__ or cause.__context__
    first_line = str(error).strip().splitlines()[:1] or [""]
    message = f"{type(error).__name__}: {first_line[0]}"[:200]
    if cause is None:
        return WayFailedError(message)
    return WayFailedError(message, cause.floor_bytes, cause.lower_bound_bytes)
