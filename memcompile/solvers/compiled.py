"""Functions that numba compiles on their first call. Import it, and what uses it, where it is needed: numba loads slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compiled on its first call, and kept for later processes where there is a folder to write to."""
    try:
        return cast(_Function, njit(cache=True)(function))
    except RuntimeError:
        return cast(_Function, njit(function))
