"""Frozen dataclasses to plain JSON data and back, driven by their annotations.

Covers: dataclasses, ``X | None``, ``Literal``, ``list[X]``, ``tuple[X, ...]``, ``Mapping[str, X]``, ``Any``, the JSON scalars,
and subclasses of a class with ``tag`` and ``of_tag``: "is" says which. Keys that a class does not know are ignored, so that
derived values may stand beside fields.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def encode(value: Any) -> Any:
    """``value`` as dicts, lists and JSON scalars, with the fields of a dataclass in their order."""
    if is_dataclass(value) and not isinstance(value, type):
        tag = {"is": value.tag()} if hasattr(value, "tag") else {}
        return tag | {item.name: encode(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], data: Mapping[str, Any]) -> T:
    """An instance of the dataclass ``cls`` from what `encode` made of it. Raises `ValueError` on data of another shape."""
    key: Any = cls  # (`type[T]` is hashable, which mypy does not see)
    hints = _hints(key)
    arguments = {}
    for item in fields(cls):  # type: ignore[arg-type]
        if item.name in data:
            arguments[item.name] = _decode_value(hints[item.name], data[item.name], f"{cls.__name__}.{item.name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{cls.__name__}.{item.name} is missing")
    return cls(**arguments)


def decode_as(form: type[T], data: Any) -> T:
    """A value of any form that `encode` takes: a dataclass, or a number. Raises `ValueError` on data of another shape."""
    value: T = _decode_value(form, data, getattr(form, "__name__", str(form)))
    return value


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hasattr(hint, "of_tag"):
        _require(value, Mapping, where)
        return decode(hint.of_tag(value.get("is")), value)
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        (hint,) = (item for item in get_args(hint) if item is not type(None))
        return _decode_value(hint, value, where)
    if is_dataclass(hint):
        _require(value, Mapping, where)
        return decode(hint, value)  # type: ignore[arg-type]
    if origin in (list, tuple):
        _require(value, list, where)
        items = (_decode_value(get_args(hint)[0], item, where) for item in value)
        return origin(items)
    if origin is Mapping:
        _require(value, Mapping, where)
        return {key: _decode_value(get_args(hint)[1], item, where) for key, item in value.items()}
    if hint is not Any and isinstance(hint, type):
        _require(value, (int, float) if hint is float else hint, where)
    return value


def _require(value: Any, expected: type | tuple[type, ...], where: str) -> None:
    if not isinstance(value, expected):
        raise ValueError(f"{where}: unexpected {type(value).__name__}")
