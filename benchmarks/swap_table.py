"""The rows of the swap benchmark, and their table in benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.markdown import form, markdown, mib, percent


@dataclass(frozen=True)
class Row:
    """What one way did on one model. Empty fields do not apply, or were not measured.

    ``status``: "ok", "infeasible" (``floor_bytes`` says what is reachable), "failed" (``note`` says how). Ratios are to plain
    torch.compile in the same round, median and quartiles. ``away_share``: bytes that are moved away at once, as a share of what
    plain's peak has above parameters and batch. ``link_seconds``: of all transfers of a step as planned; ``hidden_planned`` and
    ``hidden``: the share of them during which the step goes on; ``waited_seconds``: measured, that it does not.
    ``gradient_gap``: |g - g'| / |g| of the worst parameter against plain torch.compile from the same random state.
    """

    date: str
    device: str
    threads: int
    torch: str
    code: str
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

    @property
    def key(self) -> tuple[object, ...]:
        """A newer row with the same key takes the older one's place."""
        return self.device, self.threads, self.torch, self.model, self.way


def tables(rows: Sequence[Row]) -> str:
    """One table for each machine, a way a line."""
    parts = []
    for device, threads, version in dict.fromkeys((row.device, row.threads, row.torch) for row in rows):
        here = [row for row in rows if (row.device, row.threads, row.torch) == (device, threads, version)]
        dates = sorted(row.date for row in here)
        parts += [f"### {device}, {threads} threads, torch {version}, {dates[0]} to {dates[-1]}", "", _table(here), ""]
    return "\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    head = ["model", "way", "budget", "planned", "measured", "away", "step", "quartiles", "planned step", "hidden (planned)"]
    return markdown([*head, "gradients"], [_line(row) for row in rows])


def _line(row: Row) -> list[str]:
    name = [row.model, row.way, mib(row.budget_bytes if (row.budget_bytes or 0) > 1 else None)]
    if row.status != "ok":
        what = f"floor {mib(row.floor_bytes)}" if row.status == "infeasible" else row.note
        return [*name, row.status, what, *["-"] * 6]
    planned = None if row.planned_overhead is None else 1 + row.planned_overhead
    return [
        *name,
        mib(row.planned_peak_bytes),
        f"{mib(row.peak_bytes)} ({percent(row.peak_share)})",
        percent(row.away_share),
        form(row.ratio, ".3f", before="x "),
        f"{form(row.ratio_q1, '.3f')} to {form(row.ratio_q3, '.3f')}",
        form(planned, ".3f", before="x "),
        "-" if row.hidden is None else f"{percent(row.hidden)} ({percent(row.hidden_planned)})",
        form(row.gradient_gap, ".0e"),
    ]
