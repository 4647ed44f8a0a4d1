"""Functions that numba compiles on their first call. Import it, and what uses it, where it is needed: numba loads slowly."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import caching, serialize
from numba.core.compiler import CompileResult

from memcompile.solvers import keeping

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compiled on its first call, and kept for later processes where there is a store (``keeping``)."""
    dispatcher = numba.njit(function)
    dispatcher._cache = _Checked(function)
    return cast(_Function, dispatcher)


def inner(function: _Function) -> _Function:
    """A part of compiled functions of the same file, which alone may call it; Python cannot."""
    without_wrappers: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(_Function, numba.njit(**without_wrappers)(function))


class _Checked(caching.NullCache):
    """In numba's place for caches of one function. Its own unpickles whatever lies beside the source, and a damaged file is an
    error in every process from then on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        source = Path(function.__code__.co_filename).read_bytes()  # what it calls stands there, too
        digest = hashlib.sha256(source).hexdigest()
        self._key = {"function": function.__qualname__, "source": digest, "numba": numba.__version__}

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The function compiled for a signature; None where it has to be compiled."""
        context.refresh()
        content = keeping.store().read(self._key_of(signature, context.codegen()))
        return None if content is None else CompileResult._rebuild(context, *pickle.loads(content))  # type: ignore[no-untyped-call]

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep what was compiled."""
        if not result.lifted and not result.library.has_dynamic_globals:
            content = serialize.dumps(result._reduce())  # type: ignore[no-untyped-call]
            keeping.store().write(self._key_of(signature, result.codegen), content)

    def _key_of(self, signature: Any, codegen: Any) -> dict[str, Any]:
        machine = [str(part) for part in codegen.magic_tuple()]
        return {**self._key, "signature": str(signature), "machine": machine}
