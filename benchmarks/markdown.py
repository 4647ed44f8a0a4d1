"""Tables and cells of benchmarks/README.md. What was not measured is "-"."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def form(value: float | None, spec: str, after: str = "", before: str = "") -> str:
    """A number, between two texts."""
    return "-" if value is None else f"{before}{value:{spec}}{after}"


def mib(size_bytes: int | None) -> str:
    """MiB, without the unit."""
    return "-" if size_bytes is None else f"{size_bytes / 2**20:.1f}"


def percent(share: float | None, spec: str = ".0f") -> str:
    """A share of one."""
    return "-" if share is None else f"{share * 100:{spec}} %"
