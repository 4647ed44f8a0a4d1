"""What ``memcompile allocate`` reads: buffers of a CSV, or those in the arena of a saved report."""

from __future__ import annotations

from pathlib import Path

from memcompile.report.data import Report
from memcompile.solvers.minimalloc import read_csv
from memcompile.solvers.packing import Buffer


def buffers_of(path: Path) -> list[Buffer]:
    """The buffers in a file. Of a report with several arenas, the highest one's. Raises `OSError`, and `ValueError` where there
    are none."""
    if not path.is_dir() and path.suffix != ".json":
        return read_csv(path.read_text())
    arenas = [graph.arena for graph in Report.load(path).graphs if graph.arena is not None and graph.arena.placed]
    if not arenas:
        raise ValueError("no graph of this report has an arena: compile with options={'arena': 'step'}")
    highest = max(arenas, key=lambda arena: arena.height_bytes)
    return [Buffer(placed.name, placed.lower, placed.upper, placed.size_bytes) for placed in highest.placed]
