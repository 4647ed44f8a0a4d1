"""The rows of the scratchpad benchmark, and their tables in benchmarks/README.md."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.core.rows import SolverRow
from benchmarks.core.table import Columns, mib, percent, table


@dataclass(frozen=True)
class Row(SolverRow):
    """One network in one scratchpad. ``*_bytes`` are non-compulsory unless said otherwise.

    ``needed_bytes``: M_R; ``peak_bytes``: M_P. ``bound_bytes``: no order moves fewer, ``order_bound_bytes``: none of this
    order. ``default_belady`` and so on: order, and what leaves the scratchpad. ``ilp_status``: "optimal", "timeout", "too
    large", or "" without a run; ``ilp_bytes``: of its best solution, empty without one. ``seconds``: wall clock;
    ``cpu_seconds``: of the process.
    """

    KEY: ClassVar = ("net", "size")

    net: str
    size: str
    ops: int
    size_bytes: int
    needed_bytes: int
    peak_bytes: int
    compulsory_bytes: int
    moved_bytes: int
    order_bound_bytes: int
    bound_bytes: int
    status: str
    method: str
    seconds: float
    cpu_seconds: float
    default_belady: int
    default_greedy: int
    peak_belady: int
    peak_greedy: int
    ilp_status: str
    ilp_bytes: int | None
    ilp_bound_bytes: int | None
    ilp_variables: int | None
    ilp_seconds: float | None


def tables(rows: Sequence[Row]) -> str:
    """A line for each row, those with M_R = M_P in a table of their own, and the averages."""
    apart = [row for row in rows if row.needed_bytes == row.peak_bytes]
    others = [row for row in rows if row.needed_bytes < row.peak_bytes]
    parts = [table(COLUMNS, others)] if others else []
    if apart:
        parts += [
            "M_R = M_P: one order needs no more than its largest operator.",
            table(COLUMNS, apart),
        ]
    return "\n\n".join([*parts, *_averages(others, rows)])


def reduction(rows: Sequence[Row], baseline: str, moved: str = "moved_bytes") -> tuple[float, int] | None:
    """Average share of a baseline's bytes that is saved, over the rows in which it moves any, and how many those are."""
    shares = [1 - getattr(row, moved) / getattr(row, baseline) for row in rows if getattr(row, baseline)]
    return (statistics.mean(shares), len(shares)) if shares else None


_mib = functools.partial(mib, spec=".2f")
COLUMNS: Columns[Row] = (
    ("network", lambda row: row.net),
    ("ops", lambda row: str(row.ops)),
    ("scratchpad", lambda row: f"{row.size} {row.size_bytes / 2**10:.0f} KiB"),
    ("ours", lambda row: _mib(row.moved_bytes)),
    (
        "certificate",
        lambda row: row.status if row.status == "optimal" else f"{row.status} (bound {_mib(row.bound_bytes)})",
    ),
    ("CPU s", lambda row: f"{row.cpu_seconds:.2f}"),
    ("default order", lambda row: f"{_mib(row.default_belady)} / {_mib(row.default_greedy)}"),
    ("small peak", lambda row: f"{_mib(row.peak_belady)} / {_mib(row.peak_greedy)}"),
    ("integer program", lambda row: _ilp(row)),
)


def _ilp(row: Row) -> str:
    if row.ilp_status in ("", "too large"):
        return row.ilp_status or "-"
    found = "none" if row.ilp_bytes is None else _mib(row.ilp_bytes)
    return f"{found}, {row.ilp_status} ({row.ilp_seconds:.0f} s)"


def _averages(others: Sequence[Row], rows: Sequence[Row]) -> Iterator[str]:
    names = {"default_belady": "the default order", "peak_belady": "the order of a small peak"}
    for name, text in names.items():
        for chosen, which in ((others, "without rows of M_R = M_P"), (rows, "with them")):
            found = reduction(chosen, name)
            if found is not None:
                share, count = found
                most = reduction(chosen, name, "bound_bytes")
                limit = percent(most[0], ".1f") if most else "-"
                yield (
                    f"Fewer bytes than {text} with Belady's rule, average of {count} rows in which it moves any, {which}:"
                    f" {percent(share, '.1f')}; by the bounds no plan saves more than {limit}."
                )
