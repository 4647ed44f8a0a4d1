"""The benchmark's results: one row for each model and way, kept in one CSV that is whole after every row."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch

from memcompile.machine.device import device_name

T = TypeVar("T")
RESULTS = Path(__file__).resolve().parent / "results" / "rematerialize.csv"


@dataclass(frozen=True)
class Row:
    """What one way did on one model. Empty fields do not apply, or were not measured.

    `code` identifies memcompile's sources, so that results of older sources are known as such; empty for the peers.
    `status`: "ok", "infeasible" (memcompile refused: `floor_bytes` says what is reachable), or "failed" (`note` says how).
    Ratios are to plain torch.compile in the same process; `ratio*` are quartiles over interleaved rounds.
    `planned_overhead` and `bound_overhead` are shares of the step's modelled time without a plan.
    `gradient_gap`: |g - g'| / |g| of the worst parameter against plain torch.compile from the same random state.
    """

    date: str
    device: str
    threads: int
    torch: str
    code: str
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

    @property
    def key(self) -> tuple[object, ...]:
        """A newer row with the same key takes the older one's place."""
        return self.device, self.threads, self.model, self.way

    @property
    def timed(self) -> bool:
        """Whether the step was timed."""
        return self.ratio is not None


@dataclass(frozen=True)
class Setting:
    """Where rows come from: `same_versions` tells whether an older row still says what a new one would."""

    device: str
    threads: int
    torch: str
    code: str

    @classmethod
    def here(cls, device: str) -> Setting:
        """This machine, this torch, these sources of memcompile."""
        return cls(device_name(torch.device(device)), torch.get_num_threads(), torch.__version__, source_hash())

    def row(self, model: str, way: str, *, uses_memcompile: bool) -> Row:
        """An empty row of today."""
        code = self.code if uses_memcompile else ""
        return Row(datetime.date.today().isoformat(), self.device, self.threads, self.torch, code, model, way)

    def same_versions(self, row: Row) -> bool:
        """Whether `row` was measured with this torch and, where memcompile took part, these sources."""
        return row.torch == self.torch and row.code in ("", self.code)


def source_hash() -> str:
    """Eight hexadecimal digits that change with memcompile's sources."""
    root = Path(__file__).resolve().parents[1] / "memcompile"
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


class Keyed(Protocol):
    """A row of whichever benchmark."""

    @property
    def key(self) -> tuple[object, ...]:
        """A newer row with the same key takes the older one's place."""


K = TypeVar("K", bound=Keyed)


class KeptRows(Generic[K]):
    """A CSV of rows. Every `put` writes the file anew beside the old one and swaps them: an interruption loses nothing."""

    def __init__(self, kind: type[K], path: Path) -> None:
        self.kind, self.path = kind, path
        self.rows: dict[tuple[object, ...], K] = {row.key: row for row in read_rows(kind, path)}

    def __iter__(self) -> Iterator[K]:
        return iter(self.rows.values())

    def find(self, row: K) -> K | None:
        """The stored row with the same key."""
        return self.rows.get(row.key)

    def put(self, row: K) -> None:
        """Add `row`, or replace the one with its key."""
        self.rows[row.key] = row
        write_rows(self.kind, self, self.path)


class Results(KeptRows[Row]):
    """The CSV of this benchmark."""

    def __init__(self, path: Path = RESULTS) -> None:
        super().__init__(Row, path)


def write_rows(kind: type, rows: Iterable[object], path: Path) -> None:
    """Rows of one dataclass as a CSV, written beside the old file and swapped with it: an interruption loses nothing."""
    names = [field.name for field in dataclasses.fields(kind)]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_text(getattr(row, name)) for name in names] for row in rows)
    draft.replace(path)


def read_rows(kind: type[T], path: Path) -> list[T]:
    """What `write_rows` wrote; none where there is no file."""
    if not path.exists():
        return []
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="") as file:
        return [kind(**{name: _value(text, types[name]) for name, text in line.items()}) for line in csv.DictReader(file)]


def _text(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(text: str, kind: str) -> object:
    if text == "" and "None" in kind:
        return None
    return int(text) if kind.startswith("int") else float(text) if kind.startswith("float") else text
