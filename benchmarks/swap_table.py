"""The rows of the swap benchmark, and their table in benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from benchmarks.core.rows import StepRow
from benchmarks.core.table import Columns, by_setting, form, mib, percent, span, table


@dataclass(frozen=True)
class Row(StepRow):
    """What one way did on one model.

    ``status``: "ok", "infeasible" (``floor_bytes`` says what is reachable), "failed" (``note`` says how). Ratios are to plain
    torch.compile in the same round, median and quartiles. ``away_share``: bytes that are moved away at once, as a share of what
    plain's peak has above parameters and batch. ``link_seconds``: of all transfers of a step as planned; ``hidden_planned`` and
    ``hidden``: the share of them during which the step goes on; ``waited_seconds``: measured, that it does not.
    ``gradient_gap``: |g - g'| / |g| of the worst parameter against plain torch.compile from the same random state.
    """

    KEY: ClassVar = ("device", "threads", "torch", "model", "way")

    model: str
    way: str
    status: str = "ok"
    budget_bytes: int | None = None
    planned_peak_bytes: int | None = None
    peak_bytes: int | None = None
    peak_share: float | None = None
    entry_bytes: int | None = None
    floor_bytes: int | None = None
    moved_bytes: int | None = None
    away_share: float | None = None
    planned_overhead: float | None = None
    seconds: float | None = None
    ratio: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    link_seconds: float | None = None
    hidden_planned: float | None = None
    hidden: float | None = None
    waited_seconds: float | None = None
    first_call_seconds: float | None = None
    plan_seconds: float | None = None
    gradient_gap: float | None = None
    note: str = ""


def said(row: Row) -> str:
    """A row as it comes."""
    return " ".join(f"{field.name}={getattr(row, field.name)}" for field in fields(row)[5:])


def tables(rows: Sequence[Row]) -> str:
    """One table for each machine, a way a line."""
    return by_setting(rows, lambda here: [table(COLUMNS, here, _failed, leading=3)])


COLUMNS: Columns[Row] = (
    ("model", lambda row: row.model),
    ("way", lambda row: row.way),
    ("budget", lambda row: mib(row.budget_bytes if (row.budget_bytes or 0) > 1 else None)),
    ("planned", lambda row: mib(row.planned_peak_bytes)),
    ("measured", lambda row: f"{mib(row.peak_bytes)} ({percent(row.peak_share)})"),
    ("away", lambda row: percent(row.away_share)),
    ("step", lambda row: form(row.ratio, ".3f", before="x ")),
    ("quartiles", lambda row: span(row.ratio_q1, row.ratio_q3)),
    ("planned step", lambda row: form(None if row.planned_overhead is None else 1 + row.planned_overhead, ".3f", before="x ")),
    ("hidden (planned)", lambda row: "-" if row.hidden is None else f"{percent(row.hidden)} ({percent(row.hidden_planned)})"),
    ("gradients", lambda row: form(row.gradient_gap, ".0e")),
)


def _failed(row: Row) -> Sequence[str]:
    if row.status == "ok":
        return ()
    return row.status, f"floor {mib(row.floor_bytes)}" if row.status == "infeasible" else row.note
