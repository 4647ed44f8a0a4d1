"""Bytes of every operator in every tile of many grids, as a stage grows from its last operator backwards."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcompile.solvers.tiling.grids import Axis, Periods
from memcompile.solvers.tiling.intervals import bounds_of
from memcompile.solvers.tiling.problem import Operator, Read, StageKind, TilingProblem
from memcompile.solvers.tiling.sweep import Interval, Ints, Spans, TilingSweep, hull, padded, pads

Grid = tuple[StageKind, int, int]
PATCHES = (*range(1, 11), 12, 14, 16, 18, 20)
"""Parts along an axis; grids are square, one part wider or narrower, or bands."""
MOST_STRIPS = 512
"""Strips of one stage."""
MANY_TILES = 512
"""Strips from which those that are alike are told apart before they are costed."""


@dataclass(frozen=True, slots=True)
class Copied:
    """An operand that an operator copies: bytes that each tile reads of it, and whether it reads padding around them."""

    source: int
    size: Ints
    padded: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TilingLayer:
    """One operator: bytes made in each tile outside of whole results, kept lines before and after it, bytes of inputs read
    that are not held; multiply-adds in each grid; operands that tiles copy. ``joined``: earlier rows of it are there too.
    ``in_order``: of strips of rows."""

    made: Ints
    before: Ints
    after: Ints
    inputs: Ints
    macs: Ints
    copies: tuple[Copied, ...] = ()
    joined: bool = False
    in_order: bool = False

    def moved(self, *, is_result: bool) -> Ints:
        """Bytes that each tile copies: results into their places, lines, operands, but for what patches read as it is."""
        copied = (x.size * (x.padded | self.in_order) for x in self.copies)
        return sum(copied, self.after + (self.made if is_result else 0))

    def fresh(self, least: int) -> Ints:
        """Bytes of tensors of at least that many."""
        return sum((np.where(size >= least, size, 0) for size in (self.made, *(x.size for x in self.copies))), 0 * self.made)

    def of(self, tiles: Ints) -> TilingLayer:
        """Of some tiles alone."""
        copies = tuple(Copied(copied.source, copied.size[tiles], copied.padded[tiles]) for copied in self.copies)
        sizes = (self.made[tiles], self.before[tiles], self.after[tiles], self.inputs[tiles])
        return TilingLayer(*sizes, self.macs, copies, self.joined, self.in_order)

    def parts(self) -> Iterator[Ints]:
        """All that it says of tiles."""
        yield from (self.made, self.before, self.after, self.inputs)
        for copied in self.copies:
            yield from (copied.size, copied.padded.astype(np.int64))


@dataclass(frozen=True, slots=True)
class _Grids:
    """Grids of patches: their numbers of ``parts`` along each axis, and of every tile its grid and its place.

    ``places``: along each axis which of the parts, and the part. ``down``, ``across``: of every grid which of the parts.
    """

    pairs: tuple[tuple[int, int], ...]
    parts: tuple[tuple[int, ...], tuple[int, ...]]
    places: tuple[Ints, Ints]
    down: Ints
    across: Ints


@functools.lru_cache(maxsize=64)
def _grids(height: int, width: int) -> _Grids:
    """Grids worth trying for a result."""
    parts = (tuple(_useful(height)), tuple(_useful(width)))
    pairs = tuple(_pairs(*parts))
    rows = np.array([(parts[0].index(d), i) for d, a in pairs for i in range(d) for _ in range(a)], dtype=np.int64)
    columns = np.array([(parts[1].index(a), j) for d, a in pairs for _ in range(d) for j in range(a)], dtype=np.int64)
    down = np.array([parts[0].index(d) for d, _ in pairs], dtype=np.int64)
    across = np.array([parts[1].index(a) for _, a in pairs], dtype=np.int64)
    return _Grids(pairs, parts, (rows.reshape(-1, 2).T, columns.reshape(-1, 2).T), down, across)


class PatchLayers:
    """Layers of patches. ``tile_grid``: the grid of each tile."""

    def __init__(self, problem: TilingProblem, root: int, periods: Periods) -> None:
        self._operators, self._apart = problem.operators, problem.results_apart
        pixels = problem.operators[root]
        self._grids = _grids(pixels.height, pixels.width)
        self.grids: tuple[Grid, ...] = tuple(("patches", d, a) for d, a in self._grids.pairs)
        self.counts = np.array([d * a for d, a in self._grids.pairs], dtype=np.int64)
        self.tile_grid = np.repeat(np.arange(len(self.counts)), self.counts)
        self._sweeps = [_sweep(problem, axis, root, self._grids.parts[axis], periods, keep=False) for axis in (0, 1)]
        self._zero = np.zeros(len(self.tile_grid), dtype=np.int64)

    def add(self, index: int, *, is_result: bool, has_readers: bool) -> TilingLayer:
        """The layer of the next operator."""
        operator = self._operators[index]
        down, across = (sweep.visit(index, is_result=is_result) for sweep in self._sweeps)
        if operator.kind == "reduction":
            return TilingLayer(
                self._zero, self._zero, self._zero, self._zero, _constant(self, _reduced_macs(self._operators, index))
            )
        rows, columns = down.made.length, across.made.length
        made = self._area(rows, columns) * operator.pixel_bytes
        if is_result and not self._apart:
            halo = self._at(_halo(down), 0) | self._at(_halo(across), 1)
            made = made * halo if has_readers else self._zero
        macs = rows.sum(axis=1)[self._grids.down] * columns.sum(axis=1)[self._grids.across] * operator.pixel_macs
        inputs = sum((self._size(read, down, across) for read in loose_reads(self._operators, operator)), self._zero)
        copies = tuple(self._copied(read, down, across) for read in copied_reads(self._operators, operator))
        return TilingLayer(made, self._zero, self._zero, inputs, macs, copies)

    def _copied(self, read: Read, down: Spans, across: Spans) -> Copied:
        source = self._operators[read.source]
        rows, columns = pads(read.rows, source.height, down.made), pads(read.columns, source.width, across.made)
        padded_tiles = (self._at(rows.astype(np.int64), 0) | self._at(columns.astype(np.int64), 1)) > 0
        return Copied(read.source, self._size(read, down, across), padded_tiles)

    def _size(self, read: Read, down: Spans, across: Spans) -> Ints:
        """Bytes of what is read."""
        source = self._operators[read.source]
        rows, columns = hull(read.rows, source.height, down.made), hull(read.columns, source.width, across.made)
        return self._area(rows.length, columns.length) * source.pixel_bytes

    def _area(self, rows: Ints, columns: Ints) -> Ints:
        return self._at(rows, 0) * self._at(columns, 1)

    def _at(self, values: Ints, axis: Axis) -> Ints:
        """From parts of an axis to tiles."""
        tiles: Ints = values[self._grids.places[axis][0], self._grids.places[axis][1]]
        return tiles


class StripLayers:
    """Layers of strips that keep their overlaps."""

    def __init__(self, problem: TilingProblem, root: int, tallest: int, periods: Periods) -> None:
        self._operators, self._apart = problem.operators, problem.results_apart
        counts = strip_counts(problem.operators[root].height, tallest)
        self.grids: tuple[Grid, ...] = tuple(("rows", count, 1) for count in counts)
        self.counts = np.array(counts, dtype=np.int64)
        self.tile_grid = np.repeat(np.arange(len(counts)), self.counts)
        self._place = np.concatenate([np.arange(count) for count in counts]) if counts else self.counts
        self._after = np.array([self._place[i] + 1 < counts[g] for i, g in enumerate(self.tile_grid)], dtype=np.int64)
        self._sweep = _sweep(problem, 0, root, counts, periods, keep=True) if counts else None
        self._zero = np.zeros(len(self.tile_grid), dtype=np.int64)

    def add(self, index: int, *, is_result: bool, has_readers: bool) -> TilingLayer:
        """The layer of the next operator."""
        del has_readers
        assert self._sweep is not None
        operator = self._operators[index]
        spans = self._sweep.visit(index, is_result=is_result)
        if operator.kind == "reduction":
            return TilingLayer(
                self._zero, self._zero, self._zero, self._zero, _constant(self, _reduced_macs(self._operators, index))
            )
        row = operator.width * operator.pixel_bytes
        rows = spans.made.length
        macs = rows.sum(axis=1) * (operator.width * operator.pixel_macs)
        inputs = sum((self._size(read, spans.made) for read in loose_reads(self._operators, operator)), self._zero)
        copies = tuple(self._copied(read, spans.made) for read in copied_reads(self._operators, operator))
        if is_result or spans.kept is None:
            made = self._at(rows) * row if self._apart else self._zero
            return TilingLayer(made, self._zero, self._zero, inputs, macs, copies, is_result, in_order=True)
        kept = spans.kept.length
        place = np.minimum(self._place + 1, kept.shape[1] - 1)
        after = kept[self.tile_grid, place] * self._after
        return TilingLayer(self._at(rows) * row, self._at(kept) * row, after * row, inputs, macs, copies, in_order=True)

    def _copied(self, read: Read, made: Interval) -> Copied:
        source = self._operators[read.source]
        sides = read.columns is not None and bool(read.columns[0, 0] < 0 or read.columns[-1, 1] > source.width)
        padded_rows = pads(read.rows, source.height, made) | sides
        return Copied(read.source, self._size(read, made), padded_rows[self.tile_grid, self._place])

    def _size(self, read: Read, made: Interval) -> Ints:
        """Bytes of what is read."""
        source = self._operators[read.source]
        return self._at(hull(read.rows, source.height, made).length) * (source.width * source.pixel_bytes)

    def _at(self, values: Ints) -> Ints:
        tiles: Ints = values[self.tile_grid, self._place]
        return tiles


def loose_reads(operators: Sequence[Operator], operator: Operator) -> list[Read]:
    """Reads of inputs that are not held."""
    return [read for read in operator.reads if operators[read.source].kind == "input" and not operators[read.source].held]


def copied_reads(operators: Sequence[Operator], operator: Operator) -> list[Read]:
    """Reads of operands that are copied, but for inputs that count anyway as they are read."""
    copied = [operator.reads[position] for position in operator.copies]
    return [read for read in copied if operators[read.source].kind != "input" or operators[read.source].held]


def strip_counts(height: int, tallest: int) -> list[int]:
    """Numbers of strips from two to one a row, about geometric; then to one a row of the tallest operator."""
    sizes, size = list[int](), 1
    while size < height:
        sizes.append(size)
        size = max(size + 1, size * 4 // 3)
    finer = [height << power for power in range(1, 8) if height << power <= tallest]
    return sorted(count for count in {*(-(-height // size) for size in sizes), *finer} if 1 < count <= MOST_STRIPS)


def distinct(layers: Sequence[TilingLayer], tile_grid: Ints) -> Ints:
    """One tile of each class: tiles of a grid in which all layers are equal."""
    if len(tile_grid) < MANY_TILES:
        return np.arange(len(tile_grid))
    key = tile_grid.astype(np.uint64)
    for values in (part for layer in layers for part in layer.parts()):
        key = key * np.uint64(0x9E3779B97F4A7C15) + values.astype(np.uint64)
        key ^= key >> np.uint64(29)
    return np.sort(np.unique(key, return_index=True)[1]).astype(np.int64)


def _constant(tiling: PatchLayers | StripLayers, macs: int) -> Ints:
    return np.full(len(tiling.grids), macs, dtype=np.int64)


def _reduced_macs(operators: Sequence[Operator], index: int) -> int:
    source = operators[operators[index].reads[0].source]
    return operators[index].pixel_macs * source.height * source.width


def _halo(spans: Spans) -> Ints:
    """Whether a part makes more than its share."""
    assert spans.share is not None
    halo: Ints = (spans.made.length != spans.share.length).astype(np.int64)
    return halo


def _sweep(problem: TilingProblem, axis: Axis, root: int, parts: Sequence[int], periods: Periods, *, keep: bool) -> TilingSweep:
    return TilingSweep(problem, axis, root, padded([bounds_of(problem, root, axis, p, periods) for p in parts]), keep=keep)


def _useful(size: int) -> list[int]:
    """Numbers of equal parts, the last one smaller."""
    return [p for p in PATCHES if p <= size and -(-size // -(-size // p)) == p]


def _pairs(down: Sequence[int], across: Sequence[int]) -> list[tuple[int, int]]:
    """Parts down and across: as many, one more or less, or bands."""
    near = [(d, a) for d in down for a in across if abs(d - a) <= 1 and d * a > 1]
    bands = [(d, 1) for d in down if d > 2 and 1 in across] + [(1, a) for a in across if a > 2 and len(down) == 1]
    return near + bands
