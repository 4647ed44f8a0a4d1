"""Bytes and seconds, read and written the way people do. No torch here."""

from __future__ import annotations

import re
from fractions import Fraction

BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_UNIT_BYTES = {
    "": 1,
    "b": 1,
    **{unit.lower(): 1024**power for power, unit in enumerate(BINARY_UNITS) if power},
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb", "pb"), start=1)},
}
_QUANTITY = re.compile(r"\s*(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*(?P<unit>[a-zA-Z]*)\s*", re.ASCII)

BYTES_FORMS = "a positive whole number of bytes, or a size such as '6GiB', '1.5 GiB' or '512MB'"


def parse_bytes(text: str | int) -> int:
    """Number of bytes that ``text`` names: ``parse_bytes("1.5 GiB") == 1610612736``.

    KiB, MiB, GiB, TiB, PiB are powers of 1024; KB, MB, GB, TB, PB are powers of 1000; upper or lower case; a bare number is
    bytes. Fractions of a byte are dropped. Raises `ValueError`, whose message says what is wrong, for anything else.
    """
    if isinstance(text, bool):
        raise ValueError("a truth value is not a size")
    if isinstance(text, int):
        if text < 0:
            raise ValueError("a size is not negative")
        return text
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("a size is not negative" if text.strip().startswith("-") else "not a number with a unit")
    unit = match["unit"].lower()
    if unit not in _UNIT_BYTES:
        letter = unit[0].upper()
        hint = f"write {match['number']}{letter}iB or {match['number']}{letter}B" if letter in "KMGTP" else "known: KiB to PiB"
        raise ValueError(f"unknown unit {match['unit']!r}: {hint}")
    return int(Fraction(match["number"].replace("_", "")) * _UNIT_BYTES[unit])


def format_bytes(size_bytes: float) -> str:
    """``size_bytes`` with a binary unit and four or so significant digits: "7.94 GiB", "768.0 MiB", "512 B"."""
    value, sign = abs(size_bytes), "-" if size_bytes < 0 else ""
    for unit in BINARY_UNITS:
        text = f"{value:.0f}" if unit == "B" else f"{value:.{1 if value >= 99.995 else 2}f}"
        if float(text) < 1024 or unit == BINARY_UNITS[-1]:
            return f"{sign}{text} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit takes everything")


def format_pair(before_bytes: float, after_bytes: float) -> str:
    """Two sizes in the unit of the larger: "24.10 -> 21.84 GiB"."""
    largest = max(abs(before_bytes), abs(after_bytes))
    power = 0
    while power < len(BINARY_UNITS) - 1 and largest / 1024**power >= 1024:
        power += 1
    digits = 0 if power == 0 else 2
    scale = 1024**power
    return f"{before_bytes / scale:.{digits}f} -> {after_bytes / scale:.{digits}f} {BINARY_UNITS[power]}"


def format_count(count: float) -> str:
    """A number with three or so significant digits and a metric letter: "23.5 M", "1.20 G", "812"."""
    for letter in ("", "k", "M", "G", "T"):
        text = f"{count:.0f}" if not letter else f"{count:.{2 if count < 9.995 else 1 if count < 99.95 else 0}f} {letter}"
        if float(text.split()[0]) < 1000 or letter == "T":
            return text
        count /= 1000
    raise AssertionError("unreachable: the last letter takes everything")


def format_seconds(duration_s: float) -> str:
    """A duration with three or so significant digits: "1.24 s", "0.21 ms", "18.00 µs"."""
    if abs(duration_s) >= 0.99995:
        value, unit = duration_s, "s"
    elif abs(duration_s) >= 1e-4:
        value, unit = duration_s * 1e3, "ms"
    else:
        value, unit = duration_s * 1e6, "µs"
    return f"{value:.{1 if abs(value) >= 99.995 else 2}f} {unit}"


def format_change(before: float, after: float) -> str:
    """Relative change in percent, "+6.1 %"; a dash when there is nothing to compare with."""
    if before <= 0:
        return "-"
    change = 100 * (after - before) / before
    return "0.0 %" if abs(change) < 0.05 else f"{change:+.1f} %"
