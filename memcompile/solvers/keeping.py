"""Where what numba compiled is kept for later processes: whoever runs the solvers says so; nowhere until then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class FunctionStore(Protocol):
    """Bytes by a key that JSON can write. What ``read`` returns is executed: it has to be what ``write`` was given."""

    def read(self, key: Mapping[str, object]) -> bytes | None: ...
    def write(self, key: Mapping[str, object], content: bytes) -> object: ...


class _Nowhere:
    def read(self, key: Mapping[str, object]) -> None: ...
    def write(self, key: Mapping[str, object], content: bytes) -> None: ...


_store: FunctionStore = _Nowhere()


def keep_in(store: FunctionStore) -> None:
    """From now on compiled functions are kept there."""
    global _store
    _store = store


def store() -> FunctionStore:
    """Where they are kept."""
    return _store
