"""Counts of a log, as text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.operators.judge import RESULTS

Row = Mapping[str, Any]


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a log; a last line that was cut off is left out."""
    if path.exists():
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                yield json.loads(line)


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last verdict on each sample, at each level and budget."""
    names = ("source", "entry", "variant", "sample", "level", "budget", "grad")
    return list({tuple(row.get(name, "on") for name in names): row for row in rows}.values())


def table(rows: Iterable[Row]) -> str:
    """A Markdown table: level, budget, gradients and source against results."""
    counts: dict[tuple[str, ...], Counter[str]] = {}
    entries: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        key = (row["level"], row["budget"], row.get("grad", "on"), row["source"])
        counts.setdefault(key, Counter())[row["result"]] += 1
        entries.setdefault(key, set()).add(row["entry"])
    names = [name for name in RESULTS if any(count[name] for count in counts.values())]
    head = ["level", "budget", "gradients", "samples of", "entries", "run", *names]
    lines = [
        [*key, str(len(entries[key])), str(count.total()), *(str(count[name]) for name in names)]
        for key, count in sorted(counts.items())
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def failures(rows: Iterable[Row], shown: int = 200) -> str:
    """What did not pass, grouped by result and the beginning of the reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["result"] != "same":
            head = row["reason"][:110]
            groups.setdefault((row["result"], head), []).append(f"{row['entry']}[{row['variant']} {row['sample']}]")
    lines = []
    for (result, reason), names in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1])))[:shown]:
        lines.append(f"{result:<9} {len(names):>5}  {reason}\n{'':<17}{', '.join(names[:4])}")
    return "\n".join(lines)
