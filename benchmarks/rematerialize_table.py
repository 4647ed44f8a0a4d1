"""The rows of the benchmark of models and budgets, and their tables in benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.core.rows import StepRow
from benchmarks.core.table import Columns, by_setting, form, mib, percent, span, table
from benchmarks.core.ways import EAGER, PLAIN

WRONG_GRADIENT = 1e-2
"""A gap above this is no rounding: the peer's dropout masks differ between forward and backward."""


@dataclass(frozen=True)
class Row(StepRow):
    """What one way did on one model.

    `status`: "ok", "infeasible" (memcompile refused: `floor_bytes` says what is reachable), or "failed" (`note` says how).
    Ratios are to plain torch.compile; `ratio*` are quartiles over interleaved rounds.
    `planned_overhead` and `bound_overhead` are shares of the step's modelled time without a plan.
    `gradient_gap`: |g - g'| / |g| of the worst parameter against plain torch.compile from the same random state.
    """

    KEY: ClassVar = ("device", "threads", "model", "way")

    model: str
    way: str
    status: str = "ok"
    budget_share: float | None = None
    budget_bytes: int | None = None
    planned_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    peak_share: float | None = None
    entry_bytes: int | None = None
    floor_bytes: int | None = None
    lower_bound_bytes: int | None = None
    step_seconds: float | None = None
    ratio: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    first_call_seconds: float | None = None
    first_call_ratio: float | None = None
    plan_seconds: float | None = None
    planned_overhead: float | None = None
    bound_overhead: float | None = None
    nodes: int | None = None
    gradient_gap: float | None = None
    loss: float | None = None
    note: str = ""


def said(row: Row) -> str:
    """A row as it comes."""
    return (
        f"{row.model:14} {row.way:26} {row.status:10} peak {mib(row.measured_peak_bytes, '8.2f')} MiB"
        f" {form(row.peak_share, '.3f'):>5}  step {form(row.step_seconds, '.3f')} s x{form(row.ratio, '.3f')}"
        f" [{form(row.ratio_q1, '.3f')}, {form(row.ratio_q3, '.3f')}]  first call {form(row.first_call_seconds, '.1f')} s"
        f"  gradients {form(row.gradient_gap, '.1e')}  {row.note}"
    )


def tables(rows: Sequence[Row]) -> str:
    """For each device: the peers, one model a line; then memcompile, one budget a line."""
    return by_setting(rows, lambda here: (_peer_table(here), _budget_table(here)))


def best_peer(rows: Iterable[Row], model: str, budget_bytes: int) -> Row | None:
    """The fastest way without memcompile whose measured peak keeps the budget."""
    fitting = [
        row
        for row in rows
        if row.model == model and row.budget_bytes is None and row.ratio is not None and row.way != EAGER.name
        if row.measured_peak_bytes is not None and row.measured_peak_bytes <= budget_bytes
    ]
    return min(fitting, key=lambda row: row.ratio or 0.0, default=None)


def _peer_table(rows: Sequence[Row]) -> str:
    by_key = {(row.model, row.way): row for row in rows}
    ways = dict.fromkeys(row.way for row in rows if row.budget_bytes is None and row.way != PLAIN.name)

    def peer(way: str) -> tuple[str, Callable[[Row], str]]:
        return way, lambda plain: _peer_cell(by_key.get((plain.model, way)))

    columns: Columns[Row] = (
        ("model", lambda row: row.model),
        ("nodes", lambda row: form(row.nodes, "d")),
        ("peak", lambda row: f"{mib(row.measured_peak_bytes)} MiB"),
        ("step", lambda row: f"{form(row.step_seconds, '.2f')} s"),
        ("first call", lambda row: f"{form(row.first_call_seconds, '.0f')} s"),
        *map(peer, ways),
    )
    caption = "Peers: share of plain torch.compile's peak, at its step time times. † gradients differ (dropout masks)."
    return f"{caption}\n\n{table(columns, (row for row in rows if row.way == PLAIN.name))}"


def _peer_cell(row: Row | None) -> str:
    if row is None or row.status != "ok":
        return "-" if row is None else row.status
    wrong = " †" if (row.gradient_gap or 0) > WRONG_GRADIENT else ""
    return f"{form(row.peak_share, '.2f')} at {form(row.ratio, '.2f')}{wrong}"


def _budget_table(rows: Sequence[Row]) -> str:
    def best(row: Row) -> str:
        peer = best_peer(rows, row.model, row.budget_bytes or 0)
        return "none" if peer is None else f"{peer.way}: {_peer_cell(peer)}"

    columns: Columns[Row] = (
        ("model", lambda row: row.model),
        ("budget", _budget),
        ("planned", lambda row: mib(row.planned_peak_bytes)),
        ("measured", lambda row: mib(row.measured_peak_bytes)),
        ("time", lambda row: f"x {form(row.ratio, '.3f')}"),
        ("quartiles", lambda row: span(row.ratio_q1, row.ratio_q3)),
        (
            "planned overhead (bound)",
            lambda row: f"{percent(row.planned_overhead, '.2f')} ({percent(row.bound_overhead, '.2f')})",
        ),
        ("first call", lambda row: f"x {form(row.first_call_ratio, '.2f')}"),
        ("gradients", lambda row: form(row.gradient_gap, ".0e")),
        ("best peer that fits", best),
    )
    ours = sorted((row for row in rows if row.budget_bytes is not None), key=lambda row: (row.model, -(row.budget_share or 0)))
    caption = "memcompile: peaks in MiB; times and first calls as multiples of plain torch.compile's."
    return f"{caption}\n\n{table(columns, ours, _failed, leading=2)}"


def _budget(row: Row) -> str:
    size = "best effort" if row.way.endswith("best effort") else f"{mib(row.budget_bytes)} MiB"
    return f"{percent(row.budget_share)} {size}"


def _failed(row: Row) -> Sequence[str]:
    if row.status == "ok":
        return ()
    return row.status, f"floor {mib(row.floor_bytes)} MiB" if row.status == "infeasible" else row.note
