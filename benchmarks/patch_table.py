"""The rows of the patch benchmark, and their tables in benchmarks/README.md: a line for each way, or each planned network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.core.rows import StepRow
from benchmarks.core.table import Columns, by_case, by_setting, difference, form, mib, percent, quotient, span, table
from benchmarks.core.ways import PLAIN
from benchmarks.patch_published import PUBLISHED


@dataclass(frozen=True)
class Row(StepRow):
    """What one way did on one case.

    ``status``: "ok", "planned" (nothing ran), "infeasible" (a budget that memcompile refused) or "failed", where ``note`` says
    how. ``scale`` divided the sides of the image. ``entry_bytes``: parameters, buffers and image; ``transient_bytes``: what the
    measured peak is above them. ``patch_*``: the pass's own count, of activations alone, with and without patches; ``macs`` and
    ``base_macs``: multiply-adds. Ratios are to plain torch.compile in the same round, median and quartiles. ``max_error``: the
    largest |a - b| over the largest |a|, to eager.
    """

    KEY: ClassVar = ("device", "threads", "torch", "case", "dtype", "scale", "way")

    case: str
    dtype: str
    scale: int
    way: str
    status: str = "ok"
    entry_bytes: int | None = None
    budget_bytes: int | None = None
    peak_bytes: int | None = None
    transient_bytes: int | None = None
    planned_peak_bytes: int | None = None
    patch_peak_bytes: int | None = None
    patch_base_bytes: int | None = None
    macs: int | None = None
    base_macs: int | None = None
    plan_seconds: float | None = None
    stages: str = ""
    seconds: float | None = None
    ratio: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    first_call_seconds: float | None = None
    first_call_ratio: float | None = None
    max_error: float | None = None
    note: str = ""

    @property
    def mac_factor(self) -> float | None:
        """Multiply-adds as a multiple of those without patches."""
        return quotient(self.macs, self.base_macs)


Ways = Mapping[str, Row]


def said(row: Row) -> str:
    """A row as it comes."""
    return (
        f"{row.case:22} {row.way:20} {row.status:8} transient {_kib(row.transient_bytes):>10} KiB"
        f"  patches {_kib(row.patch_base_bytes)} -> {_kib(row.patch_peak_bytes)} KiB at x {form(row.mac_factor, '.3f')}"
        f"  step {form(row.seconds, '.4f')} s x{form(row.ratio, '.3f')}"
        f" [{form(row.ratio_q1, '.3f')}, {form(row.ratio_q3, '.3f')}]"
        f"  first call {form(row.first_call_seconds, '.1f')} s  error {form(row.max_error, '.1e')}  {row.stages} {row.note}"
    )


def tables(rows: Sequence[Row]) -> str:
    """For each device: the cases that ran, then those that were planned."""
    return by_setting(rows, _tables)


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    cases = by_case(rows, "case", "dtype", "scale")
    ran = [Beside(row, ways[PLAIN.name]) for ways in cases if PLAIN.name in ways for row in _plain_first(ways)]
    if ran:
        yield table(COLUMNS, ran, lambda item: () if item.plain or item.row.status == "ok" else (item.row.status,), leading=2)
    planned = [ways for ways in cases if PLAIN.name not in ways]
    if planned:
        yield _planned(planned)


def _plain_first(ways: Ways) -> list[Row]:
    return [ways[PLAIN.name], *(row for row in ways.values() if row.way != PLAIN.name)]


@dataclass(frozen=True)
class Beside:
    """A row, and plain torch.compile's of the same case."""

    row: Row
    reference: Row

    @property
    def plain(self) -> bool:
        """Whether the row is the reference."""
        return self.row is self.reference

    def transient(self) -> str:
        """Bytes, and their share of plain's."""
        share = quotient(self.row.transient_bytes, self.reference.transient_bytes)
        return f"{mib(self.row.transient_bytes)} MiB" + ("" if self.plain else f" ({percent(share)})")

    def extra(self) -> str:
        """Multiply-adds beside those without patches."""
        return percent(None if self.row.mac_factor is None else self.row.mac_factor - 1, ".1f")

    def time(self) -> str:
        """Seconds of plain's, else a multiple of them."""
        return form(self.row.seconds, ".3f", " s") if self.plain else form(self.row.ratio, ".3f", before="x ")

    def first_call(self) -> str:
        """The same of the first call."""
        plain = form(self.row.first_call_seconds, ".0f", " s")
        return plain if self.plain else form(self.row.first_call_ratio, ".2f", before="x ")

    def quartiles(self) -> str:
        """Of the time."""
        return "-" if self.plain or self.row.ratio is None else span(self.row.ratio_q1, self.row.ratio_q3)


COLUMNS: Columns[Beside] = (
    ("case", lambda item: _title(item.row) if item.plain else ""),
    ("way", lambda item: item.row.way),
    ("transient", Beside.transient),
    ("planned", lambda item: mib(difference(item.row.planned_peak_bytes, item.row.entry_bytes))),
    ("extra multiply-adds", Beside.extra),
    ("time", Beside.time),
    ("quartiles", Beside.quartiles),
    ("first call", Beside.first_call),
    ("error", lambda item: form(item.row.max_error, ".0e")),
    ("stages", lambda item: item.row.stages or "-"),
)


def _planned(cases: Sequence[Ways]) -> str:
    """Peaks of activations at their multiple of multiply-adds."""

    def planned(way: str) -> tuple[str, Callable[[Ways], str]]:
        return way.removeprefix("memcompile "), lambda ways: _planned_cell(ways.get(way))

    columns: Columns[Ways] = (
        ("network, planned", lambda ways: _title(_first(ways))),
        ("layer by layer", lambda ways: _size(_base_bytes(ways))),
        *map(planned, dict.fromkeys(way for ways in cases for way in ways)),
        (
            "published",
            lambda ways: "; ".join(str(each) for each in PUBLISHED if f"int8-{each.net}" == _first(ways).case) or "-",
        ),
    )
    return table(columns, cases)


def _first(ways: Ways) -> Row:
    return next(iter(ways.values()))


def _base_bytes(ways: Ways) -> int | None:
    return next((row.patch_base_bytes for row in ways.values() if row.patch_base_bytes is not None), None)


def _planned_cell(row: Row | None) -> str:
    if row is None or row.status != "planned":
        return "-" if row is None else row.status
    return f"{_size(row.patch_peak_bytes)} at {form(row.mac_factor, '.3f', before='x ')}"


def _title(row: Row) -> str:
    dtype = "" if row.dtype in ("float32", "") else f", {row.dtype}"
    return f"{row.case}{dtype}" + (f", sides / {row.scale}" if row.scale != 1 else "")


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "-"
    return f"{size_bytes / 2**10:.1f} KiB" if size_bytes < 2**22 else f"{size_bytes / 2**20:.1f} MiB"


def _kib(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 2**10:.1f}"
