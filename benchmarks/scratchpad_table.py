"""The rows of the scratchpad benchmark as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.markdown import markdown, percent

if TYPE_CHECKING:
    from benchmarks.scratchpad import ScratchpadRow

START, END = "<!-- results: written by scratchpad.py -->", "<!-- end of scratchpad results -->"
HEAD = ("network", "ops", "scratchpad", "ours", "certificate", "CPU s", "default order", "small peak", "integer program")
BASELINES = ("default_belady", "default_greedy", "peak_belady", "peak_greedy")


def table(rows: Sequence[ScratchpadRow]) -> str:
    """A line for each row, those with M_R = M_P in a table of their own, and the averages."""
    apart = [row for row in rows if row.needed_bytes == row.peak_bytes]
    others = [row for row in rows if row.needed_bytes < row.peak_bytes]
    parts = [markdown(HEAD, [_cells(row) for row in others])] if others else []
    if apart:
        parts += [
            "M_R = M_P: one order needs no more than its largest operator.",
            markdown(HEAD, [_cells(row) for row in apart]),
        ]
    return "\n\n".join([*parts, *_averages(others, rows)])


def reduction(rows: Sequence[ScratchpadRow], baseline: str, moved: str = "moved_bytes") -> tuple[float, int] | None:
    """Average share of a baseline's bytes that is saved, over the rows in which it moves any, and how many those are."""
    shares = [1 - getattr(row, moved) / getattr(row, baseline) for row in rows if getattr(row, baseline)]
    return (statistics.mean(shares), len(shares)) if shares else None


def _cells(row: ScratchpadRow) -> list[str]:
    baselines = [getattr(row, name) for name in BASELINES]
    return [
        row.net,
        str(row.ops),
        f"{row.size} {row.size_bytes / 2**10:.0f} KiB",
        _mib(row.moved_bytes),
        row.status if row.status == "optimal" else f"{row.status} (bound {_mib(row.bound_bytes)})",
        f"{row.cpu_seconds:.2f}",
        " / ".join(map(_mib, baselines[:2])),
        " / ".join(map(_mib, baselines[2:])),
        _ilp(row),
    ]


def _ilp(row: ScratchpadRow) -> str:
    if row.ilp_status in ("", "too large"):
        return row.ilp_status or "-"
    found = "none" if row.ilp_bytes is None else _mib(row.ilp_bytes)
    return f"{found}, {row.ilp_status} ({row.ilp_seconds:.0f} s)"


def _averages(others: Sequence[ScratchpadRow], rows: Sequence[ScratchpadRow]) -> Iterator[str]:
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


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.2f}"
