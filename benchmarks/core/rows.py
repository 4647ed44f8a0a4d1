"""Rows of results: when, where and of which sources they are, and the CSV that is whole after every one of them."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from memcompile.machine.device import device_name

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One line of a CSV. A benchmark adds its columns, empty where they do not apply or were not measured, and ``KEY``, the
    columns that identify a row: a newer one takes the older one's place."""

    KEY: ClassVar[tuple[str, ...]] = ()

    date: str

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies the row."""
        return tuple(getattr(self, name) for name in self.KEY)


@dataclass(frozen=True)
class StepRow(Row):
    """A row of a step that runs. ``code`` identifies memcompile's sources, so that results of older ones are known as such;
    it is empty for its peers."""

    device: str
    threads: int
    torch: str
    code: str

    @property
    def setting(self) -> tuple[str, int, str]:
        """Where it was measured."""
        return self.device, self.threads, self.torch


@dataclass(frozen=True)
class PlanRow(Row):
    """A row of what is planned or counted, the same on every machine but for seconds."""

    torch: str
    code: str


@dataclass(frozen=True)
class SolverRow(Row):
    """A row of a solver alone."""

    machine: str
    python: str
    ortools: str
    code: str


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Setting:
    """Where new rows come from: this machine, this torch, these sources of memcompile."""

    device: str
    threads: int
    torch: str
    code: str

    @classmethod
    def here(cls, device: str = "cpu") -> Setting:
        """As it is now."""
        return cls(device_name(torch.device(device)), torch.get_num_threads(), torch.__version__, source_hash())

    def row(self, kind: type[R], *, ours: bool = True, **columns: Any) -> R:
        """A row of today. ``ours``: whether memcompile takes part."""
        known: dict[str, Any] = {
            **vars(self),
            "date": datetime.date.today().isoformat(),
            "machine": self.device,
            "python": platform.python_version(),
            "ortools": importlib.metadata.version("ortools"),
            "code": self.code if ours else "",
        }
        return kind(**{field.name: known[field.name] for field in dataclasses.fields(kind) if field.name in known}, **columns)

    def same_versions(self, row: StepRow | PlanRow) -> bool:
        """Whether ``row`` was measured with this torch and, where memcompile took part, these sources."""
        return row.torch == self.torch and row.code in ("", self.code)


def source_hash() -> str:
    """Eight hexadecimal digits that change with memcompile's sources."""
    root = ROOT / "memcompile"
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


class Kept(Generic[R]):
    """A CSV of rows by their keys. Every `put` writes the file anew beside the old one and swaps them: an interruption loses
    nothing. ``said``: what is printed of each row as it comes."""

    def __init__(self, kind: type[R], path: Path, said: Callable[[R], str] | None = None) -> None:
        self.kind, self.path, self._said = kind, path, said
        self.rows: dict[tuple[object, ...], R] = {row.key: row for row in read_rows(kind, path)}

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows.values())

    def find(self, row: R) -> R | None:
        """The stored row with the same key."""
        return self.rows.get(row.key)

    def put(self, row: R) -> None:
        """Add ``row``, or replace the one with its key."""
        self.rows[row.key] = row
        write_rows(self.kind, self, self.path)
        if self._said is not None:
            print(self._said(row), flush=True)


def write_rows(kind: type[R], rows: Iterable[R], path: Path) -> None:
    """Rows of one kind as a CSV, its columns in the order of the fields."""
    names = [field.name for field in dataclasses.fields(kind)]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_text(getattr(row, name)) for name in names] for row in rows)
    draft.replace(path)


def read_rows(kind: type[R], path: Path) -> list[R]:
    """What `write_rows` wrote; none where there is no file."""
    if not path.exists():
        return []
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    with path.open(newline="") as file:
        return [kind(**{name: _value(text, types[name]) for name, text in line.items()}) for line in csv.DictReader(file)]


def _text(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(text: str, kind: str) -> Any:
    if text == "" and "None" in kind:
        return None
    return int(text) if kind.startswith("int") else float(text) if kind.startswith("float") else text
