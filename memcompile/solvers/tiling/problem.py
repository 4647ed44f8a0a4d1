"""A network of images as plain data: what each operator makes, and which pixels of its sources it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["input", "local", "reduction", "whole"]
Reach = NDArray[np.int64]
"""``[extent, 2]``: index i of a result reads indices ``[reach[i, 0], reach[i, 1])`` of a source along one axis.

Both columns never decrease. Indices below 0 or past the source's end stand for padding. The hull of ``[a, b)`` is
``[reach[a, 0], reach[b - 1, 1])``.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """One operand. ``source``: index of the operator that makes it. ``rows``, ``columns``: None where all are read at once."""

    source: int
    rows: Reach | None
    columns: Reach | None


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """What makes one tensor of ``height`` x ``width`` pixels.

    ``kind``: "input": there as the network starts; "local": any rectangle can be made alone; "reduction": one value over all
    pixels, which tiles add to (its source's pixels are each read once); "whole": only made at once. ``pixel_bytes``: of one
    pixel, over batch and channels. ``pixel_macs``: multiply-adds of one pixel of the result (of the source, for a reduction).
    ``in_place``: positions in ``reads`` of operands that the result may be written over when they die. ``held``: the bytes of
    an input count as long as it is read. ``copies``: positions in ``reads`` of operands that a tile of a "local" operator
    copies, with all that it reads around them, into a buffer of its own, which takes the place of ``in_place``.
    ``start_bytes``: what every tile copies before it starts the operator, however small it is: weights.
    """

    name: str
    kind: Kind
    height: int
    width: int
    pixel_bytes: int
    reads: tuple[Read, ...] = ()
    pixel_macs: int = 0
    in_place: tuple[int, ...] = ()
    held: bool = False
    copies: tuple[int, ...] = ()
    start_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole result."""
        return self.height * self.width * self.pixel_bytes


@dataclass(frozen=True, slots=True, eq=False)
class TilingProblem:
    """Operators in an order in which they can run. ``outputs``: indices of those that are returned.

    ``over_lines``: in strips of rows, ``in_place`` also means over those lines of an operand that no later strip reads, as
    kernels for microcontrollers do; else an operand of which lines are kept is never written over. ``fixed_lines``: in strips
    of rows the kept lines of an operator lie in a buffer of their own, there for the whole stage and as large as they ever get.
    ``results_apart``: what a tile makes of results lies in buffers of its own too, from which it is copied into the results.
    """

    operators: tuple[Operator, ...]
    outputs: tuple[int, ...]
    over_lines: bool = False
    fixed_lines: bool = False
    results_apart: bool = False


@dataclass(frozen=True, slots=True)
class Prices:
    """What takes time beside arithmetic, in multiply-adds: ``start`` of an operator in a tile; ``copied``: a byte that is
    copied; ``fresh``: a byte of a tensor of at least ``fresh_from`` bytes, whose memory is new each time it is made."""

    start: int = 0
    copied: float = 0.0
    fresh: float = 0.0
    fresh_from: int = 1 << 62

    def of_layer(self, operator: Operator) -> int:
        """Of an operator that runs whole."""
        if operator.kind == "input":
            return 0
        fresh = operator.size_bytes if operator.size_bytes >= self.fresh_from else 0
        return self.start + int(self.copied * operator.start_bytes + self.fresh * fresh)


FREE = Prices()
StageKind = Literal["layerwise", "patches", "rows"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Operators ``first`` up to ``last`` (exclusive) run together.

    "layerwise": one after the other, each whole. "patches": a grid of ``grid`` = (down, across) rectangles of the last result,
    halos made again. "rows": ``grid[0]`` strips of rows from top to bottom, overlaps kept (no operation runs twice); with more
    strips than the last result has rows, taller operators make their rows one by one, and some strips make none of it.
    ``again``: earlier operators that run once more inside, in place of keeping their results until here. Results are kept after
    the stage for operators behind it; ``dropped``: but not these, because all later stages that read them make them again;
    ``kept``: and these too, because later stages read them to make something again. ``peak_bytes``: all that is alive while it
    runs; ``macs``: multiply-adds of its operators.
    """

    first: int
    last: int
    kind: StageKind
    grid: tuple[int, int] = (1, 1)
    again: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    peak_bytes: int = 0
    macs: int = 0


@dataclass(frozen=True, slots=True)
class TilingSolution:
    """Stages that cover all operators but the inputs, in order. ``base_*``: of the network run layerwise."""

    stages: tuple[Stage, ...]
    peak_bytes: int
    macs: int
    base_peak_bytes: int
    base_macs: int
    status: Literal["optimal", "heuristic"] = "heuristic"
    frontier: tuple[tuple[int, int], ...] = field(default=())
    """(peak bytes, multiply-adds) of the best plans that the search has seen, from the smallest peak up."""

    @property
    def overhead(self) -> float:
        """Multiply-adds above those of the network run layerwise, as a share of them."""
        return self.macs / self.base_macs - 1 if self.base_macs else 0.0
