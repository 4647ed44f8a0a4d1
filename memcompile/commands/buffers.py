"""The buffers that ``memcompile allocate`` reads."""

from __future__ import annotations

from pathlib import Path

from memcompile.report.data import Report
from memcompile.solvers.places.minimalloc import read_csv
from memcompile.solvers.places.packing import Buffer


def buffers_of(path: Path) -> list[Buffer]:
    """The buffers in a file. Of a report with several arenas, the highest one's. Raises `OSError`, and `ValueError` where there
    are none."""
    if not path.is_dir() and path.suffix != ".json":
        return read_csv(path.read_text())
    arenas = [arena for graph in Report.load(path).graphs if (arena := graph["arena"]) is not None and arena.placed]
    if not arenas:
        raise ValueError("no graph of this report has an arena: compile with options={'arena': 'step'}")
    found: list[Buffer] = max(arenas, key=lambda arena: arena.height_bytes).buffers()
    return found
