"""Tables of rows in Markdown, and their places in benchmarks/README.md. What was not measured is "-"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from benchmarks.core.rows import ROOT, StepRow

T = TypeVar("T")
S = TypeVar("S", bound=StepRow)
README = ROOT / "benchmarks" / "README.md"
Columns: TypeAlias = Sequence[tuple[str, Callable[[T], str]]]
"""The heads of a table, each with what it says of an item: a row, or the rows of a case by their ways."""


def table(
    columns: Columns[T], items: Iterable[T], failed: Callable[[T], Sequence[str]] = lambda _: (), leading: int = 1
) -> str:
    """An item a line. One that ``failed`` says something of has its ``leading`` cells, that, and nothing else."""

    def line(item: T) -> list[str]:
        said = failed(item)
        cells = [cell(item) for _, cell in (columns[:leading] if said else columns)] + [*said]
        return cells + ["-"] * (len(columns) - len(cells))

    head = [name for name, _ in columns]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *map(line, items)))


def by_setting(rows: Sequence[S], body: Callable[[Sequence[S]], Iterable[str]]) -> str:
    """For each machine, number of threads and version of torch: a heading, and the parts of its rows."""
    parts: list[str] = []
    for setting in dict.fromkeys(row.setting for row in rows):
        here = [row for row in rows if row.setting == setting]
        dates = sorted(row.date for row in here)
        device, threads, version = setting
        parts.append(f"### {device}, {threads} threads, torch {version}, {dates[0]} to {dates[-1]}")
        parts += body(here)
    return "\n\n".join(parts) + "\n" if parts else ""


def by_case(rows: Iterable[S], *columns: str, way: str = "way") -> list[dict[str, S]]:
    """The rows that agree in ``columns``, by their ways."""
    cases: dict[tuple[object, ...], dict[str, S]] = {}
    for row in rows:
        cases.setdefault(tuple(getattr(row, name) for name in columns), {})[getattr(row, way)] = row
    return list(cases.values())


def between(text: str, name: str, new: str) -> str:
    """``text`` with what stands between the markers of a benchmark replaced. Raises `ValueError` when it lacks them."""
    start, end = f"<!-- results: written by {name}.py -->", f"<!-- end of {name} results -->"
    if start not in text or end not in text:
        raise ValueError(f"the markers {start!r} and {end!r} are missing")
    return f"{text.split(start)[0]}{start}\n\n{new}\n{end}{text.split(end)[1]}"


def write_table(name: str, text: str, readme: Path = README) -> None:
    """Put the table of a benchmark into its place."""
    readme.write_text(between(readme.read_text(), name, text))


def form(value: float | None, spec: str, after: str = "", before: str = "") -> str:
    """A number, between two texts."""
    return "-" if value is None else f"{before}{value:{spec}}{after}"


def mib(size_bytes: int | None, spec: str = ".1f") -> str:
    """MiB, without the unit."""
    return "-" if size_bytes is None else f"{size_bytes / 2**20:{spec}}"


def percent(share: float | None, spec: str = ".0f") -> str:
    """A share of one."""
    return "-" if share is None else f"{share * 100:{spec}} %"


def span(low: float | None, high: float | None) -> str:
    """Two quartiles."""
    return f"{form(low, '.3f')} to {form(high, '.3f')}"


def quotient(part: float | None, whole: float | None) -> float | None:
    """Of two numbers that may be unknown."""
    return None if part is None or not whole else part / whole


def difference(whole: int | None, part: int | None) -> int | None:
    """Of two numbers that may be unknown."""
    return None if whole is None or part is None else whole - part
