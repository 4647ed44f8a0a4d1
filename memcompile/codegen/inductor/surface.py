"""Let memcompile's errors reach the user as what they are.

Dynamo and Inductor wrap what a backend raises: `BudgetInfeasibleError` would arrive as `BackendCompilerFailed` or
`InductorError`, and ``except BudgetInfeasibleError`` would not catch it. Both let subclasses of their own `ShortenTraceback`
through (and cut their own frames from its traceback). So the error is given a class that is both, and all that Dynamo reads of
its own exceptions: with ``torch._dynamo.config.suppress_errors`` it then logs the error and runs the frame without compiling.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch._dynamo.exc import BackendCompilerFailed, ShortenTraceback

from memcompile.errors import MemcompileError, restored

E = TypeVar("E", bound=MemcompileError)
P = ParamSpec("P")
R = TypeVar("R")


def surfacing(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as Dynamo may call it: memcompile's errors leave it unwrapped, also those that Inductor had wrapped.

    The traceback that the user sees starts here (the whole one with TORCHDYNAMO_VERBOSE=1).
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except MemcompileError as error:
            raise surface(error) from None
        except BackendCompilerFailed as error:
            if (own := wrapped(error)) is None:
                raise
            raise surface(own) from None

    return call


def wrapped(error: Exception) -> MemcompileError | None:
    """The error of memcompile that Inductor wrapped into ``error``, if that is what it is."""
    inner: Any = error
    while isinstance(inner, BackendCompilerFailed):
        inner = inner.inner_exception
    return inner.with_traceback(error.__traceback__) if isinstance(inner, MemcompileError) and inner is not error else None


def raised_by_inductor(error: Exception) -> bool:
    """Whether Inductor failed by itself, as it would under plain ``torch.compile``: the last frame is none of memcompile's."""
    inner: Any = error
    while isinstance(inner, BackendCompilerFailed):
        inner = inner.inner_exception
    frames = list(traceback.walk_tb(inner.__traceback__))
    return inner is not error and bool(frames) and not frames[-1][0].f_globals.get("__name__", "").startswith("memcompile.")


def surface(error: E) -> E:
    """``error`` itself, now of a subclass of its class that passes through Dynamo and Inductor unwrapped.

    Raise it in the frame that calls: ``except MemcompileError as error: raise surface(error)``.
    """
    caller = inspect.currentframe()
    frame = caller.f_back if caller else None
    if isinstance(error, ShortenTraceback):
        error.first_useful_frame = frame
        return error
    plain = error.args, dict(error.__dict__)
    cls: Any = type(error)  # mypy does not follow an instance whose class changes
    error.__class__ = _passing(cls)
    ShortenTraceback.__init__(error, *error.args, first_useful_frame=frame)  # type: ignore[arg-type]
    error.plain_message, error.plain = str(cls.__str__(error)), plain  # type: ignore[attr-defined]
    return error


@functools.cache
def _passing(cls: Any) -> Any:
    # The same name and module: the traceback shows the class that users know. And the same text: Dynamo appends hints to
    # `args` that speak of internal stack traces and of bugs in PyTorch, of no use to whom only the budget is too small.
    members = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__str__": lambda error: error.plain_message,
        "__reduce__": lambda error: (restored, (cls, *error.plain)),
    }
    return type(cls.__name__, (cls, ShortenTraceback), members)
