"""The memories that a user names: a scratchpad, and what is behind it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memcompile.errors import InvalidOptionError
from memcompile.solvers.scratchpad.problem import HOME, Level
from memcompile.units import parse_bytes

FORMS = (
    "the size of a scratchpad, 524288 or '512KiB'; or memories from the fastest on, "
    "{'sram': '512KiB', 'dram': '8MiB @ 2GB/s', 'flash': '@ 80MB/s'}: size and bandwidth, of the last one without a size"
)


@dataclass(frozen=True, slots=True)
class Memories:
    """``levels``: the scratchpad first; the last one has room for all. ``option``: as the user wrote them."""

    levels: tuple[Level, ...]
    option: int | str | tuple[tuple[str, int | str], ...]

    @classmethod
    def parse(cls, value: object) -> Memories | None:
        """The memories that ``value`` names (`FORMS`); None for none. Raises `InvalidOptionError`."""
        if value is None or isinstance(value, Memories):
            return value
        try:
            if isinstance(value, Mapping):
                pairs = tuple((str(name), text) for name, text in value.items())
                return cls(_levels(pairs), pairs)
            return cls((Level("scratchpad", _size(value)), HOME), value)  # type: ignore[arg-type]
        except ValueError as error:
            raise InvalidOptionError("scratchpad", value, FORMS, hint=str(error)) from None

    def to_option(self) -> int | str | dict[str, int | str]:
        """The value that `parse` turns into these memories again."""
        return dict(self.option) if isinstance(self.option, tuple) else self.option


def level_of(name: str, text: object) -> Level:
    """A memory from "512KiB", "8MiB @ 2GB/s" or "@ 80MB/s". Raises `ValueError`."""
    if not isinstance(text, str):
        return Level(name, _size(text))
    size, at, rate = (part.strip() for part in text.partition("@"))
    bytes_per_second = 0.0
    if at:
        if not rate.endswith("/s"):
            raise ValueError(f"{name}: a bandwidth is written '2GB/s'")
        bytes_per_second = float(_size(rate.removesuffix("/s")))
    return Level(name, _size(size) if size else None, bytes_per_second)


def _levels(pairs: tuple[tuple[str, object], ...]) -> tuple[Level, ...]:
    levels = tuple(level_of(name, text) for name, text in pairs)
    if not levels:
        raise ValueError("no memory")
    for level in levels if len(levels) == 1 else levels[:-1]:
        if level.size_bytes is None:
            raise ValueError(f"{level.name}: without a size, and not the last one")
    if len(levels) > 1 and levels[-1].size_bytes is not None:
        raise ValueError(f"{levels[-1].name}: the last memory holds all, so it has no size")
    return levels if len(levels) > 1 else (*levels, HOME)


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{type(value).__name__} is not a size")
    size = parse_bytes(value)
    if size < 1:
        raise ValueError("a size is above zero")
    return size
