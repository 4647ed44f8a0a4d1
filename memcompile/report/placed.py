"""The buffers of an arena: in words, as a picture, and as ``memcompile allocate`` reads them."""

from __future__ import annotations

from pathlib import Path

from memcompile.report.data import ArenaReport, Report
from memcompile.report.packing_chart import packing_chart
from memcompile.solvers.places.minimalloc import read_csv
from memcompile.solvers.places.packing import Buffer
from memcompile.units import format_bytes


def arena_text(arena: ArenaReport) -> str:
    """One line: height, fragmentation, allocator calls of a step before and after, what is handed on."""
    if arena.refused:
        return f"none: {arena.refused}"
    return (
        f"{format_bytes(arena.height_bytes)} for {len(arena.placed)} buffers of {format_bytes(arena.placed_bytes)}, "
        f"{100 * arena.fragmentation:.1f} % empty at its fullest; allocations a step {arena.calls_before} -> "
        f"{arena.calls_after}, {format_bytes(arena.outside_bytes)}"
        + (f"; {format_bytes(arena.handed_bytes)} in blocks that are handed on" if arena.handed_bytes else "")
    )


def arena_chart(arena: ArenaReport) -> str:
    """An ``<svg>`` element of the arena, addresses over time, or "" where there is none."""
    if not arena.placed:
        return ""
    offsets = [placed.offset for placed in arena.placed]
    return packing_chart(_buffers(arena), offsets, arena.height_bytes, arena.lower_bound_bytes)


def buffers_of(path: Path) -> list[Buffer]:
    """The buffers in a file. Of a report with several arenas, the highest one's. Raises `OSError`, and `ValueError` where there
    are none."""
    if not path.is_dir() and path.suffix != ".json":
        return read_csv(path.read_text())
    arenas = [graph.arena for graph in Report.load(path).graphs if graph.arena is not None and graph.arena.placed]
    if not arenas:
        raise ValueError("no graph of this report has an arena: compile with options={'arena': 'step'}")
    highest = max(arenas, key=lambda arena: arena.height_bytes)
    return _buffers(highest)


def _buffers(arena: ArenaReport) -> list[Buffer]:
    return [Buffer(placed.name, placed.lower, placed.upper, placed.size_bytes) for placed in arena.placed]
