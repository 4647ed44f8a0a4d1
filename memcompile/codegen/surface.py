"""Let memcompile's errors reach the user as what they are.

Dynamo and Inductor wrap what a backend raises: `BudgetInfeasibleError` would arrive as `BackendCompilerFailed` or
`InductorError`, and ``except BudgetInfeasibleError`` would not catch it. Both let subclasses of their own `ShortenTraceback`
through (and cut their own frames from its traceback). So the error is given a class that is both.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, TypeVar

from torch._dynamo.exc import ShortenTraceback

from memcompile.errors import MemcompileError

E = TypeVar("E", bound=MemcompileError)


def surface(error: E) -> E:
    """``error`` itself, now of a subclass of its class that passes through Dynamo and Inductor unwrapped.

    Raise it in the frame that calls: ``except MemcompileError as error: raise surface(error)``. The traceback that the user
    sees starts at that frame (the whole one with TORCHDYNAMO_VERBOSE=1).
    """
    caller = inspect.currentframe()
    if not isinstance(error, ShortenTraceback):
        error.plain_message = str(error)  # type: ignore[attr-defined]
        cls: Any = type(error)  # mypy does not follow an instance whose class changes
        error.__class__ = _passing(cls)
    error.first_useful_frame = caller.f_back if caller else None  # type: ignore[attr-defined]
    return error


@cache
def _passing(cls: Any) -> Any:
    # The same name and module: the traceback shows the class that users know. And the same text: Dynamo appends hints to
    # `args` that speak of internal stack traces and of bugs in PyTorch, of no use to whom only the budget is too small.
    members = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__str__": lambda error: error.plain_message}
    return type(cls.__name__, (cls, ShortenTraceback), members)
