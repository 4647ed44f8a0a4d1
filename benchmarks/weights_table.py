"""The rows of the benchmark of weights that do not fit, and their table in benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.core.rows import StepRow
from benchmarks.core.table import Columns, by_case, by_setting, form, mib, percent, quotient, table


@dataclass(frozen=True)
class Row(StepRow):
    """What one way did on one case.

    ``peak_bytes``: measured, of torch's allocator and what is alive at entry; a mapped file counts there with all it maps.
    ``anonymous_bytes`` and ``file_bytes``: resident in the process after a step. ``read_bytes``: in a step, by plan;
    ``resident_bytes``: weights that stay. ``bound_bytes_per_s``: the disk alone, direct sequential reads, the best of the run.
    ``max_error``: the largest |a - b| over the largest |a|, to plain torch.compile; ratios are to it too.
    """

    KEY: ClassVar = ("device", "threads", "case", "scale", "way")

    case: str
    scale: int
    tokens: int
    way: str
    status: str = "ok"
    weight_bytes: int | None = None
    budget_bytes: int | None = None
    peak_bytes: int | None = None
    planned_peak_bytes: int | None = None
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    read_bytes: int | None = None
    resident_bytes: int | None = None
    seconds: float | None = None
    ratio: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    link_bytes_per_s: float | None = None
    bound_bytes_per_s: float | None = None
    first_call_seconds: float | None = None
    max_error: float | None = None
    note: str = ""

    @property
    def read_bytes_per_s(self) -> float | None:
        """Over a whole step."""
        return quotient(self.read_bytes, self.seconds)

    @property
    def bound_share(self) -> float | None:
        """Of what the disk can do alone."""
        return quotient(self.read_bytes_per_s, self.bound_bytes_per_s)

    @property
    def process_bytes(self) -> int | None:
        """Resident in the process."""
        return None if self.anonymous_bytes is None else self.anonymous_bytes + (self.file_bytes or 0)


def said(row: Row) -> str:
    """A row as it comes."""
    return (
        f"{row.case:20} {row.way:24} {row.status:8} peak {row.peak_bytes} of {row.budget_bytes}, planned "
        f"{row.planned_peak_bytes}, step {row.seconds} s, reads {row.read_bytes} at {row.read_bytes_per_s} B/s, disk "
        f"{row.bound_bytes_per_s}, share {form(row.bound_share, '.2f')}, error {row.max_error} {row.note}"
    )


def tables(rows: Sequence[Row]) -> str:
    """For each device one table, cases in their order."""
    return by_setting(rows, lambda here: [_table(by_case(here, "case", "scale"))])


def _table(cases: Sequence[dict[str, Row]]) -> str:
    first = [next(iter(ways.values())) for ways in cases]

    def title(row: Row) -> str:
        trial = "" if row.scale == 1 else f" / {row.scale}"
        return f"{row.case}{trial} ({mib(row.weight_bytes)} MiB)" if row in first else ""

    columns: Columns[Row] = (
        ("case", title),
        ("way", lambda row: row.way),
        ("budget", lambda row: mib(row.budget_bytes)),
        ("planned", lambda row: mib(row.planned_peak_bytes)),
        ("measured", lambda row: mib(row.peak_bytes) if row.status == "ok" else row.status),
        ("process", lambda row: mib(row.process_bytes)),
        ("step", lambda row: form(row.seconds, ".3f", " s")),
        ("tokens/s", lambda row: form(quotient(row.tokens, row.seconds), ".1f")),
        ("read in a step", lambda row: mib(row.read_bytes)),
        ("GB/s", lambda row: form(quotient(row.read_bytes_per_s, 1e9), ".2f")),
        ("disk alone", lambda row: form(None if row.bound_share is None else quotient(row.bound_bytes_per_s, 1e9), ".2f")),
        ("share", lambda row: percent(row.bound_share)),
        ("error", lambda row: form(row.max_error, ".0e")),
    )
    return table(columns, (row for ways in cases for row in ways.values()))
