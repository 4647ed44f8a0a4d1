"""The rows of the low-rank benchmark, and their table in benchmarks/README.md: one case a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.markdown import form, markdown, mib

START, END = "<!-- results: written by low_rank.py -->", "<!-- end of low_rank results -->"
OTHERS = ("eager", "compile max-autotune", "dense", "flashsvd", "blr")
PLANNED = ("memcompile low_rank=False", "memcompile")


@dataclass(frozen=True)
class Row:
    """What one way did on one case. Empty fields do not apply, or were not measured.

    ``status``: "ok", "planned" (nothing ran), "missing" (a peer's package) or "failed", where ``note`` says how. ``scale``
    divided the batch; ``layers`` of whole models. ``entry_bytes``: parameters, buffers and batch; ``transient_bytes``: what the
    measured peak (a planned case's planned one) is above them, the gradients that a training step makes among it. Ratios are to
    plain torch.compile in the same round, median and quartiles. ``blocks`` and ``block_rows``: one number for each region that
    runs block by block. ``max_error``: the largest |a - b| over the largest |a|, to eager, the worst of output and gradients.
    """

    date: str
    device: str
    threads: int
    torch: str
    code: str
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

    @property
    def key(self) -> tuple[object, ...]:
        """A newer row with the same key takes the older one's place."""
        return *self.setting, self.case, self.dtype, self.scale, self.layers, self.way

    @property
    def setting(self) -> tuple[object, ...]:
        """Where it was measured."""
        return self.device, self.threads, self.torch


def table(rows: Sequence[Row]) -> str:
    """For each device: the cases that ran, then those that were planned."""
    parts = []
    for device, threads, version in dict.fromkeys(row.setting for row in rows):
        here = [row for row in rows if row.setting == (device, threads, version)]
        dates = sorted(row.date for row in here)
        parts += [f"### {device}, {threads} threads, torch {version}, {dates[0]} to {dates[-1]}", ""]
        cases: dict[tuple[object, ...], dict[str, Row]] = {}
        for row in here:
            cases.setdefault((row.case, row.dtype, row.scale, row.layers), {})[row.way] = row
        ran = [ways for ways in cases.values() if "compile" in ways]
        others = [way for way in OTHERS if any(way in ways for ways in ran)]
        parts += [markdown(_head(others), [_line(ways, others) for ways in ran]), ""] if ran else []
        planned = [ways for ways in cases.values() if all(way in ways for way in PLANNED)]
        parts += [markdown(PLANNED_HEAD, [_planned_line(ways) for ways in planned]), ""] if planned else []
    return "\n".join(parts)


def _head(others: Sequence[str]) -> list[str]:
    ours = ["memcompile: transient", "planned", "time", "quartiles", "blocks x rows", "first call", "error"]
    return ["case", "compile: transient", "step", *others, *ours]


PLANNED_HEAD = ["case, planned", "entry", "transient without streaming", "transient", "blocks x rows"]


def _line(ways: Mapping[str, Row], others: Sequence[str]) -> list[str]:
    plain, ours = ways["compile"], ways.get("memcompile")
    cells = [_title(plain), f"{mib(plain.transient_bytes)} MiB", form(plain.seconds, ".3f", " s")]
    cells += [_share(ways.get(way), plain) for way in others]
    if ours is None or ours.status != "ok":
        return [*cells, "-" if ours is None else ours.status, *["-"] * 6]
    planned = None
    if ours.planned_peak_bytes is not None and ours.entry_bytes is not None:
        planned = ours.planned_peak_bytes - ours.entry_bytes
    return [
        *cells,
        f"{mib(ours.transient_bytes)} MiB{_of(ours, plain)}",
        mib(planned),
        form(ours.ratio, ".3f", before="x "),
        f"{form(ours.ratio_q1, '.3f')} to {form(ours.ratio_q3, '.3f')}",
        _tiles(ours),
        form(ours.first_call_ratio, ".2f", before="x "),
        form(ours.max_error, ".0e"),
    ]


def _planned_line(ways: Mapping[str, Row]) -> list[str]:
    whole, ours = (ways[way] for way in PLANNED)
    failed = [row.status for row in (whole, ours) if row.status != "planned"]
    if failed:
        return [_title(ours), failed[0], *["-"] * 3]
    entry, without, streamed = (mib(size) for size in (ours.entry_bytes, whole.transient_bytes, ours.transient_bytes))
    return [_title(ours), f"{entry} MiB", without, f"{streamed}{_of(ours, whole)}", _tiles(ours)]


def _title(row: Row) -> str:
    dtype = "" if row.dtype == "float32" or row.dtype in row.case else f", {row.dtype}"
    return f"{row.case}{dtype}" + (f", batch / {row.scale}" if row.scale != 1 else "")


def _share(row: Row | None, plain: Row) -> str:
    """Transient bytes as a share of plain's, and the step's time as a multiple of it."""
    if row is None or row.status != "ok":
        return "-" if row is None else row.status
    return f"{form(_quotient(row, plain), '.2f')} at {form(row.ratio, '.2f')}"


def _of(row: Row, whole: Row) -> str:
    share = _quotient(row, whole)
    return "" if share is None else f" ({share * 100:.0f} %)"


def _quotient(row: Row, whole: Row) -> float | None:
    if row.transient_bytes is None or not whole.transient_bytes:
        return None
    return row.transient_bytes / whole.transient_bytes


def _tiles(row: Row) -> str:
    """Each kind of region once: "25 x 1024", with how many there are of it."""
    pairs = list(zip(row.blocks.split(), row.block_rows.split(), strict=True))
    kinds = [(f"{pairs.count(pair)}: " if pairs.count(pair) > 1 else "") + " x ".join(pair) for pair in dict.fromkeys(pairs)]
    return ", ".join(kinds) or "-"
