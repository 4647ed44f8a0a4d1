"""The rows of the benchmark of weights that do not fit, and their table in benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.markdown import form, markdown, mib, percent

START, END = "<!-- results: written by weights.py -->", "<!-- end of weights results -->"


@dataclass(frozen=True)
class Row:
    """What one way did on one case. Empty fields do not apply, or were not measured.

    ``peak_bytes``: measured, of torch's allocator and what is alive at entry; a mapped file counts there with all it maps.
    ``anonymous_bytes`` and ``file_bytes``: resident in the process after a step. ``read_bytes``: in a step, by plan;
    ``resident_bytes``: weights that stay. ``bound_bytes_per_s``: the disk alone, direct sequential reads, the best of the run.
    ``max_error``: the largest |a - b| over the largest |a|, to plain torch.compile; ratios are to it too.
    """

    date: str
    device: str
    threads: int
    torch: str
    code: str
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
    def key(self) -> tuple[object, ...]:
        """A newer row with the same key takes the older one's place."""
        return self.device, self.threads, self.case, self.scale, self.way

    @property
    def setting(self) -> tuple[str, int, str]:
        """Where it was measured."""
        return self.device, self.threads, self.torch

    @property
    def read_bytes_per_s(self) -> float | None:
        """Over a whole step."""
        return None if self.read_bytes is None or not self.seconds else self.read_bytes / self.seconds

    @property
    def bound_share(self) -> float | None:
        """Of what the disk can do alone."""
        found = self.read_bytes_per_s
        return None if found is None or not self.bound_bytes_per_s else found / self.bound_bytes_per_s


HEAD = [
    "case",
    "way",
    "budget",
    "planned",
    "measured",
    "process",
    "step",
    "tokens/s",
    "read in a step",
    "GB/s",
    "disk alone",
    "share",
    "error",
]


def table(rows: Sequence[Row]) -> str:
    """For each device one table, cases in their order."""
    parts = []
    for device, threads, version in dict.fromkeys(row.setting for row in rows):
        here = [row for row in rows if row.setting == (device, threads, version)]
        dates = sorted(row.date for row in here)
        parts += [f"### {device}, {threads} threads, torch {version}, {dates[0]} to {dates[-1]}", ""]
        cases = dict.fromkeys((row.case, row.scale) for row in here)
        lines = [line for case in cases for line in _lines([row for row in here if (row.case, row.scale) == case])]
        parts += [markdown(HEAD, lines), ""]
    return "\n".join(parts)


def _lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    for row in rows:
        trial = "" if row.scale == 1 else f" / {row.scale}"
        process = None if row.anonymous_bytes is None else row.anonymous_bytes + (row.file_bytes or 0)
        found = row.read_bytes_per_s
        yield [
            f"{row.case}{trial} ({mib(row.weight_bytes)} MiB)" if row is rows[0] else "",
            row.way,
            mib(row.budget_bytes),
            mib(row.planned_peak_bytes),
            mib(row.peak_bytes) if row.status == "ok" else row.status,
            mib(process),
            form(row.seconds, ".3f", " s"),
            form(None if row.seconds is None else row.tokens / row.seconds, ".1f"),
            mib(row.read_bytes),
            form(None if found is None else found / 1e9, ".2f"),
            form(None if row.bound_bytes_per_s is None or found is None else row.bound_bytes_per_s / 1e9, ".2f"),
            percent(row.bound_share),
            form(row.max_error, ".0e"),
        ]
