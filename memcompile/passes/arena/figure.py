"""The arena of a graph: in words, and as a picture of what lies where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from memcompile.report.figure import Figure
from memcompile.report.packing_chart import packing_chart
from memcompile.solvers.places.packing import Buffer
from memcompile.units import format_bytes


@dataclass(frozen=True, slots=True)
class PlacedBuffer:
    """A buffer in the arena: alive in ``[lower, upper)``, counted in events of the step; ``offset``: bytes from the start."""

    name: str
    lower: int
    upper: int
    size_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class ArenaReport(Figure):
    """The static arena of a graph: its ``scope`` as the user chose it. ``refused``: why there is none.

    ``lower_bound_bytes``: no arena for the same buffers is smaller. ``calls_before``, ``calls_after``: of the allocator, each
    step. ``placed_bytes``: sum of the sizes of what lies in it; ``outside_bytes``: of what is still allocated;
    ``handed_bytes``: of what is not, because buffers take over each other's blocks.
    """

    name: ClassVar[str] = "arena"
    label: ClassVar[str] = "arena"
    title: ClassVar[str] = "Arena"

    scope: str
    refused: str = ""
    height_bytes: int = 0
    lower_bound_bytes: int = 0
    calls_before: int = 0
    calls_after: int = 0
    placed_bytes: int = 0
    outside_bytes: int = 0
    handed_bytes: int = 0
    method: str = ""
    placed: tuple[PlacedBuffer, ...] = ()

    @property
    def fragmentation(self) -> float:
        """Share of the arena that is empty when it is fullest."""
        return 1 - self.lower_bound_bytes / self.height_bytes if self.height_bytes else 0.0

    def line(self) -> str:
        """Height, fragmentation, allocator calls of a step before and after, what is handed on."""
        if self.refused:
            return f"none: {self.refused}"
        return (
            f"{format_bytes(self.height_bytes)} for {len(self.placed)} buffers of {format_bytes(self.placed_bytes)}, "
            f"{100 * self.fragmentation:.1f} % empty at its fullest; allocations a step {self.calls_before} -> "
            f"{self.calls_after}, {format_bytes(self.outside_bytes)}"
            + (f"; {format_bytes(self.handed_bytes)} in blocks that are handed on" if self.handed_bytes else "")
        )

    def chart(self, *, file: bool = False) -> str:
        """Addresses over time."""
        if not self.placed:
            return ""
        offsets = [placed.offset for placed in self.placed]
        return packing_chart(self.buffers(), offsets, self.height_bytes, self.lower_bound_bytes)

    def buffers(self) -> list[Buffer]:
        """What lies in it, as the packer takes it."""
        return [Buffer(placed.name, placed.lower, placed.upper, placed.size_bytes) for placed in self.placed]
