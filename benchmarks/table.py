"""The results as markdown tables, between two markers in benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.markdown import form, markdown, mib, percent
from benchmarks.rows import Row

README = Path(__file__).resolve().parent / "README.md"
START, END = "<!-- results: written by rematerialize.py -->", "<!-- end of results -->"
WRONG_GRADIENT = 1e-2
"""A gap above this is no rounding: the peer's dropout masks differ between forward and backward."""


def write_table(rows: Sequence[Row], readme: Path = README) -> None:
    """Replace what stands between the markers. Raises `ValueError` when the file lacks them."""
    readme.write_text(between(readme.read_text(), START, END, tables(rows)))


def between(text: str, start: str, end: str, new: str) -> str:
    """`text` with what stands between two markers replaced. Raises `ValueError` when it lacks them."""
    if start not in text or end not in text:
        raise ValueError(f"the markers {start!r} and {end!r} are missing")
    return f"{text.split(start)[0]}{start}\n\n{new}\n{end}{text.split(end)[1]}"


def tables(rows: Sequence[Row]) -> str:
    """For each device: the peers, one model a line; then memcompile, one budget a line."""
    parts = []
    for device, threads, version in dict.fromkeys((row.device, row.threads, row.torch) for row in rows):
        here = [row for row in rows if (row.device, row.threads, row.torch) == (device, threads, version)]
        dates = sorted(row.date for row in here)
        title = f"### {device}, {threads} threads, torch {version}, {dates[0]} to {dates[-1]}"
        parts += [title, "", _peer_table(here), "", _budget_table(here), ""]
    return "\n".join(parts)


def best_peer(rows: Iterable[Row], model: str, budget_bytes: int) -> Row | None:
    """The fastest way without memcompile whose measured peak keeps the budget."""
    fitting = [
        row
        for row in rows
        if row.model == model and row.budget_bytes is None and row.ratio is not None and row.way != "eager"
        if row.measured_peak_bytes is not None and row.measured_peak_bytes <= budget_bytes
    ]
    return min(fitting, key=lambda row: row.ratio or 0.0, default=None)


def _peer_table(rows: Sequence[Row]) -> str:
    ways = [way for way in dict.fromkeys(row.way for row in rows if row.budget_bytes is None) if way != "compile"]
    head = ["model", "nodes", "peak", "step", "first call", *ways]
    by_key = {(row.model, row.way): row for row in rows}
    lines = []
    for plain in (row for row in rows if row.way == "compile"):
        cells = [
            plain.model,
            form(plain.nodes, "d"),
            f"{mib(plain.measured_peak_bytes)} MiB",
            f"{form(plain.step_seconds, '.2f')} s",
            f"{form(plain.first_call_seconds, '.0f')} s",
        ]
        lines.append(cells + [_peer_cell(by_key.get((plain.model, way))) for way in ways])
    caption = "Peers: share of plain torch.compile's peak, at its step time times. † gradients differ (dropout masks)."
    return f"{caption}\n\n{markdown(head, lines)}"


def _peer_cell(row: Row | None) -> str:
    if row is None or row.status != "ok":
        return "-" if row is None else row.status
    wrong = " †" if (row.gradient_gap or 0) > WRONG_GRADIENT else ""
    return f"{form(row.peak_share, '.2f')} at {form(row.ratio, '.2f')}{wrong}"


def _budget_table(rows: Sequence[Row]) -> str:
    head = ["model", "budget", "planned", "measured", "time", "quartiles", "planned overhead (bound)", "first call"]
    head += ["gradients", "best peer that fits"]
    lines = []
    for row in sorted(
        (row for row in rows if row.budget_bytes is not None), key=lambda row: (row.model, -(row.budget_share or 0))
    ):
        name = f"{percent(row.budget_share)} {mib(row.budget_bytes)} MiB"
        if row.way.endswith("best effort"):
            name = f"{percent(row.budget_share)} best effort"
        if row.status != "ok":
            what = f"floor {mib(row.floor_bytes)} MiB" if row.status == "infeasible" else row.note
            lines.append([row.model, name, row.status, what, *["-"] * (len(head) - 4)])
            continue
        peer = best_peer(rows, row.model, row.budget_bytes or 0)
        cells = [
            row.model,
            name,
            mib(row.planned_peak_bytes),
            mib(row.measured_peak_bytes),
            f"x {form(row.ratio, '.3f')}",
            f"{form(row.ratio_q1, '.3f')} to {form(row.ratio_q3, '.3f')}",
            f"{percent(row.planned_overhead, '.2f')} ({percent(row.bound_overhead, '.2f')})",
            f"x {form(row.first_call_ratio, '.2f')}",
            form(row.gradient_gap, ".0e"),
            "none" if peer is None else f"{peer.way}: {_peer_cell(peer)}",
        ]
        lines.append(cells)
    caption = "memcompile: peaks in MiB; times and first calls as multiples of plain torch.compile's."
    return f"{caption}\n\n{markdown(head, lines)}"
