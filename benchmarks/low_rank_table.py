"""The rows of the low-rank benchmark, and their table in benchmarks/README.md: one case a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.core.rows import StepRow
from benchmarks.core.table import Columns, by_case, by_setting, difference, form, mib, percent, quotient, span, table

OTHERS = ("eager", "compile max-autotune", "dense", "flashsvd", "blr")
WHOLE = "memcompile low_rank=False"


@dataclass(frozen=True)
class Row(StepRow):
    """What one way did on one case.

    ``status``: "ok", "planned" (nothing ran), "missing" (a peer's package) or "failed", where ``note`` says how. ``scale``
    divided the batch; ``layers`` of whole models. ``entry_bytes``: parameters, buffers and batch; ``transient_bytes``: what the
    measured peak (a planned case's planned one) is above them, the gradients that a training step makes among it. Ratios are to
    plain torch.compile in the same round, median and quartiles. ``blocks`` and ``block_rows``: one number for each region that
    runs block by block. ``max_error``: the largest |a - b| over the largest |a|, to eager, the worst of output and gradients.
    """

    KEY: ClassVar = ("device", "threads", "torch", "case", "dtype", "scale", "layers", "way")

    case: str
    dtype: str
    scale: int
    layers: int
    way: str
    status: str = "ok"
    entry_bytes: int | None = None
    peak_bytes: int | None = None
    transient_bytes: int | None = None
    planned_peak_bytes: int | None = None
    seconds: float | None = None
    ratio: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    first_call_seconds: float | None = None
    first_call_ratio: float | None = None
    blocks: str = ""
    block_rows: str = ""
    max_error: float | None = None
    note: str = ""


Ways = Mapping[str, Row]


def said(row: Row) -> str:
    """A row as it comes."""
    return (
        f"{row.case:22} {row.dtype:8} {row.way:24} {row.status:8} transient {mib(row.transient_bytes, '9.2f')} MiB"
        f"  step {form(row.seconds, '.4f')} s x{form(row.ratio, '.3f')}"
        f" [{form(row.ratio_q1, '.3f')}, {form(row.ratio_q3, '.3f')}]"
        f"  first call {form(row.first_call_seconds, '.1f')} s  blocks {row.blocks or '-'} of {row.block_rows or '-'}"
        f"  error {form(row.max_error, '.1e')}  {row.note}"
    )


def tables(rows: Sequence[Row]) -> str:
    """For each device: the cases that ran, then those that were planned."""
    return by_setting(rows, _tables)


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    cases = by_case(rows, "case", "dtype", "scale", "layers")
    ran = [ways for ways in cases if "compile" in ways]
    others = [way for way in OTHERS if any(way in ways for ways in ran)]
    if ran:
        yield table(_columns(others), ran, _failed, leading=3 + len(others))
    planned = [ways for ways in cases if WHOLE in ways and "memcompile" in ways]
    if planned:
        yield table(PLANNED, planned, _not_planned)


def _columns(others: Sequence[str]) -> Columns[Ways]:
    def other(way: str) -> tuple[str, Callable[[Ways], str]]:
        return way, lambda ways: _beside(ways.get(way), ways["compile"])

    return (
        ("case", lambda ways: _title(ways["compile"])),
        ("compile: transient", lambda ways: f"{mib(ways['compile'].transient_bytes)} MiB"),
        ("step", lambda ways: form(ways["compile"].seconds, ".3f", " s")),
        *map(other, others),
        ("memcompile: transient", lambda ways: _transient(ways["memcompile"], ways["compile"], " MiB")),
        ("planned", lambda ways: mib(difference(ways["memcompile"].planned_peak_bytes, ways["memcompile"].entry_bytes))),
        ("time", lambda ways: form(ways["memcompile"].ratio, ".3f", before="x ")),
        ("quartiles", lambda ways: span(ways["memcompile"].ratio_q1, ways["memcompile"].ratio_q3)),
        ("blocks x rows", lambda ways: _tiles(ways["memcompile"])),
        ("first call", lambda ways: form(ways["memcompile"].first_call_ratio, ".2f", before="x ")),
        ("error", lambda ways: form(ways["memcompile"].max_error, ".0e")),
    )


def _failed(ways: Ways) -> Sequence[str]:
    ours = ways.get("memcompile")
    if ours is not None and ours.status == "ok":
        return ()
    return ("-" if ours is None else ours.status,)


PLANNED: Columns[Ways] = (
    ("case, planned", lambda ways: _title(ways["memcompile"])),
    ("entry", lambda ways: f"{mib(ways['memcompile'].entry_bytes)} MiB"),
    ("transient without streaming", lambda ways: mib(ways[WHOLE].transient_bytes)),
    ("transient", lambda ways: _transient(ways["memcompile"], ways[WHOLE])),
    ("blocks x rows", lambda ways: _tiles(ways["memcompile"])),
)


def _not_planned(ways: Ways) -> Sequence[str]:
    return [row.status for row in (ways[WHOLE], ways["memcompile"]) if row.status != "planned"][:1]


def _title(row: Row) -> str:
    dtype = "" if row.dtype == "float32" or row.dtype in row.case else f", {row.dtype}"
    return f"{row.case}{dtype}" + (f", batch / {row.scale}" if row.scale != 1 else "")


def _beside(row: Row | None, plain: Row) -> str:
    """Transient bytes as a share of plain's, and the step's time as a multiple of it."""
    if row is None or row.status != "ok":
        return "-" if row is None else row.status
    return f"{form(quotient(row.transient_bytes, plain.transient_bytes), '.2f')} at {form(row.ratio, '.2f')}"


def _transient(row: Row, whole: Row, unit: str = "") -> str:
    share = quotient(row.transient_bytes, whole.transient_bytes)
    return f"{mib(row.transient_bytes)}{unit}" + ("" if share is None else f" ({percent(share)})")


def _tiles(row: Row) -> str:
    """Each kind of region once: "25 x 1024", with how many there are of it."""
    pairs = list(zip(row.blocks.split(), row.block_rows.split(), strict=True))
    kinds = [(f"{pairs.count(pair)}: " if pairs.count(pair) > 1 else "") + " x ".join(pair) for pair in dict.fromkeys(pairs)]
    return ", ".join(kinds) or "-"
