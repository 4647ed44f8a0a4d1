"""The rows of the patch benchmark, and their tables in benchmarks/README.md: a line for each way, or each planned network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.markdown import form, markdown, mib, percent
from benchmarks.patch_published import PUBLISHED

START, END = "<!-- results: written by patch.py -->", "<!-- end of patch results -->"
PLAIN = "compile"


@dataclass(frozen=True)
class Row:
    """What one way did on one case. Empty fields do not apply, or were not measured.

    ``status``: "ok", "planned" (nothing ran), "infeasible" (a budget that memcompile refused) or "failed", where ``note`` says
    how. ``scale`` divided the sides of the image. ``entry_bytes``: parameters, buffers and image; ``transient_bytes``: what the
    measured peak is above them. ``patch_*``: the pass's own count, of activations alone, with and without patches; ``macs`` and
    ``base_macs``: multiply-adds. Ratios are to plain torch.compile in the same round, median and quartiles. ``max_error``: the
    largest |a - b| over the largest |a|, to eager.
    """

    date: str
    device: str
    threads: int
    torch: str
    code: str
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
    def key(self) -> tuple[object, ...]:
        """A newer row with the same key takes the older one's place."""
        return *self.setting, self.case, self.dtype, self.scale, self.way

    @property
    def setting(self) -> tuple[object, ...]:
        """Where it was measured."""
        return self.device, self.threads, self.torch

    @property
    def mac_factor(self) -> float | None:
        """Multiply-adds as a multiple of those without patches."""
        return None if self.macs is None or not self.base_macs else self.macs / self.base_macs


def table(rows: Sequence[Row]) -> str:
    """For each device: the cases that ran, then those that were planned."""
    parts = []
    for device, threads, version in dict.fromkeys(row.setting for row in rows):
        here = [row for row in rows if row.setting == (device, threads, version)]
        dates = sorted(row.date for row in here)
        parts += [f"### {device}, {threads} threads, torch {version}, {dates[0]} to {dates[-1]}", ""]
        cases: dict[tuple[object, ...], dict[str, Row]] = {}
        for row in here:
            cases.setdefault((row.case, row.dtype, row.scale), {})[row.way] = row
        ran = [line for ways in cases.values() if PLAIN in ways for line in _lines(ways)]
        parts += [markdown(HEAD, ran), ""] if ran else []
        parts += _planned([ways for ways in cases.values() if PLAIN not in ways])
    return "\n".join(parts)


HEAD = [
    "case",
    "way",
    "transient",
    "planned",
    "extra multiply-adds",
    "time",
    "quartiles",
    "first call",
    "error",
    "stages",
]


def _lines(ways: Mapping[str, Row]) -> Iterator[list[str]]:
    plain = ways[PLAIN]
    yield [
        _title(plain),
        PLAIN,
        f"{mib(plain.transient_bytes)} MiB",
        "-",
        "-",
        form(plain.seconds, ".3f", " s"),
        "-",
        form(plain.first_call_seconds, ".0f", " s"),
        form(plain.max_error, ".0e"),
        "-",
    ]
    for row in ways.values():
        if row.way != PLAIN:
            yield ["", row.way, *(_cells(row, plain) if row.status == "ok" else [row.status, *["-"] * 7])]


def _cells(row: Row, plain: Row) -> list[str]:
    share = None
    if row.transient_bytes is not None and plain.transient_bytes:
        share = row.transient_bytes / plain.transient_bytes
    planned = None
    if row.planned_peak_bytes is not None and row.entry_bytes is not None:
        planned = row.planned_peak_bytes - row.entry_bytes
    extra = None if row.mac_factor is None else row.mac_factor - 1
    return [
        f"{mib(row.transient_bytes)} MiB ({percent(share)})",
        mib(planned),
        percent(extra, ".1f"),
        form(row.ratio, ".3f", before="x "),
        "-" if row.ratio is None else f"{form(row.ratio_q1, '.3f')} to {form(row.ratio_q3, '.3f')}",
        form(row.first_call_ratio, ".2f", before="x "),
        form(row.max_error, ".0e"),
        row.stages or "-",
    ]


def _planned(cases: Sequence[Mapping[str, Row]]) -> list[str]:
    """Peaks of activations at their multiple of multiply-adds."""
    if not cases:
        return []
    columns = list(dict.fromkeys(way for ways in cases for way in ways))
    head = ["network, planned", "layer by layer", *(way.removeprefix("memcompile ") for way in columns), "published"]
    return [markdown(head, [_planned_line(ways, columns) for ways in cases]), ""]


def _planned_line(ways: Mapping[str, Row], columns: Sequence[str]) -> list[str]:
    first = next(iter(ways.values()))
    base = next((row.patch_base_bytes for row in ways.values() if row.patch_base_bytes is not None), None)
    cells = [_planned_cell(ways.get(column)) for column in columns]
    published = [str(each) for each in PUBLISHED if f"int8-{each.net}" == first.case]
    return [_title(first), _size(base), *cells, "; ".join(published) or "-"]


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
