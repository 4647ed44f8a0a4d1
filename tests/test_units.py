"""Sizes and durations, read and written."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcompile.units import format_bytes, format_change, format_count, format_pair, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("6GiB", 6 * 1024**3),
        ("1.5 GiB", 3 * 1024**3 // 2),
        ("512MB", 512_000_000),
        (" 2 tib ", 2 * 1024**4),
        ("100", 100),
        ("1_000 B", 1000),
        (".5KiB", 512),
        (7, 7),
    ],
)
def test_parse_bytes(text: str | int, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "6G", "6 gigs", "-1GiB", "1e9", "six", "1.5.1GiB", "0x10", "1,5GiB", "٣GiB", True, -1]
)
def test_parse_bytes_refuses(text: str | int) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


def test_an_ambiguous_unit_names_both_readings() -> None:
    with pytest.raises(ValueError, match="write 6GiB or 6GB"):
        parse_bytes("6G")


@given(st.integers(min_value=0, max_value=2**60))
def test_parse_of_format_is_within_half_a_percent(size_bytes: int) -> None:
    assert abs(parse_bytes(format_bytes(size_bytes)) - size_bytes) <= 0.005 * size_bytes


@given(st.integers(min_value=0, max_value=2**60))
def test_bare_bytes_are_exact(size_bytes: int) -> None:
    assert parse_bytes(str(size_bytes)) == parse_bytes(f"{size_bytes} B") == size_bytes


@given(st.integers(min_value=0, max_value=2**60), st.integers(min_value=0, max_value=2**60))
def test_format_keeps_the_order(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert parse_bytes(format_bytes(low)) <= parse_bytes(format_bytes(high))


@given(st.text(max_size=12))
def test_parse_bytes_never_raises_anything_else(text: str) -> None:
    with suppress(ValueError):
        assert parse_bytes(text) >= 0


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (768 * 1024**2, "768.0 MiB"),
        (1024**3 - 1, "1.00 GiB"),
        (int(7.94 * 1024**3), "7.94 GiB"),
        (-2048, "-2.00 KiB"),
        (5000 * 1024**5, "5000.0 PiB"),
    ],
)
def test_format_bytes(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


def test_the_other_formats() -> None:
    assert format_pair(24.1 * 1024**3, 7.94 * 1024**3) == "24.10 -> 7.94 GiB"
    assert format_pair(10, 5) == "10 -> 5 B"
    assert [format_seconds(value) for value in (12.345, 0.1061, 0.00021, 18e-6, 0.0)] == [
        "12.35 s",
        "106.1 ms",
        "0.21 ms",
        "18.00 µs",
        "0.00 µs",
    ]
    assert [format_change(1.0, value) for value in (1.061, 0.9, 1.0)] == ["+6.1 %", "-10.0 %", "0.0 %"]
    assert format_change(0.0, 1.0) == "-"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (9_996, "10.0 k"), (99_960, "100 k"), (999_600, "1.00 M"), (23_499_152, "23.5 M"),
     (1.2e9, "1.20 G"), (3e16, "30000 T")],
)  # fmt: skip
def test_format_count(count: float, text: str) -> None:
    assert format_count(count) == text
