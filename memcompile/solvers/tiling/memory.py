"""Bytes and multiply-adds of a stage, by replay.

Counted are whole results from outside that the stage or a later one reads, whole results of the stage (all of them from its
start if it is tiled), and the tensors inside a tile, each from its making to its last reader. Tiles write their shares
straight into results, but for ``results_apart``. Of an input that is not held only what a tile reads counts, while an operator
reads it.

Copies of operands live as long as the operator that reads them runs. They are made before its result, and a copied operand that
dies is freed between the two. What a tile has made in a buffer of its own (in strips: but for results) and reads in full and
without padding is not copied, nor is anything in layerwise stages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from memcompile.solvers.tiling.intervals import Rectangle, Span, Tile, tiles
from memcompile.solvers.tiling.problem import Operator, Read, Stage, TilingProblem
from memcompile.solvers.tiling.stages import counts, members, needed_after, needed_in_order, results, sources


@dataclass(frozen=True, slots=True)
class TilingCost:
    """``peak_bytes``: all that is alive while a stage runs; ``macs``: multiply-adds of its operators."""

    peak_bytes: int
    macs: int


def cost(problem: TilingProblem, stage: Stage, needed: Collection[int] | None = None) -> TilingCost:
    """``needed``: what lies outside and is read after the stage; None: as if no stage makes operators again."""
    after = needed_in_order(problem, stage) if needed is None else frozenset(needed)
    if stage.kind == "layerwise":
        return TilingCost(_layerwise_peak(problem, stage, after), layerwise_macs(problem, members(problem, stage)))
    there = after | {index for index in sources(problem, stage) if counts(problem, index)}
    whole = sum(problem.operators[index].size_bytes for index in (*there, *results(problem, stage)))
    run = tiles(problem, stage)
    inside = _Inside(problem, stage, run)
    return TilingCost(whole + max(inside.peak(tile) for tile in run), sum(_tile_macs(problem, tile) for tile in run))


def costed(problem: TilingProblem, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with their peaks and multiply-adds."""
    found = [cost(problem, s, needed) for s, needed in zip(stages, needed_after(problem, stages), strict=True)]
    return tuple(replace(s, peak_bytes=x.peak_bytes, macs=x.macs) for s, x in zip(stages, found, strict=True))


def layerwise_macs(problem: TilingProblem, order: Sequence[int]) -> int:
    """Multiply-adds of whole operators."""
    return sum(operator_macs(problem, index) for index in order)


def operator_macs(problem: TilingProblem, index: int) -> int:
    """Multiply-adds of one whole operator."""
    operator = problem.operators[index]
    counted = problem.operators[operator.reads[0].source] if operator.kind == "reduction" else operator
    return operator.pixel_macs * counted.height * counted.width


def written_over(
    operator: Operator, dying: Collection[int], sizes: dict[int, int], size: int, copied: Collection[int] = ()
) -> bool:
    """Whether a result of ``size`` bytes may lie over an operand that dies. Not over those at positions ``copied``."""
    over = (operator.reads[position].source for position in operator.in_place if position not in copied)
    return size > 0 and any(source in dying and sizes[source] >= size for source in over)


def _layerwise_peak(problem: TilingProblem, stage: Stage, after: frozenset[int]) -> int:
    order = members(problem, stage)
    stay = after | set(results(problem, stage))
    last = {read.source: index for index in order for read in problem.operators[index].reads}
    live = {i for i in (*after, *sources(problem, stage)) if counts(problem, i)}
    sizes = {index: problem.operators[index].size_bytes for index in (*live, *order)}
    total = peak = sum(sizes[index] for index in live)
    for index in order:
        operator = problem.operators[index]
        dead = {read.source for read in operator.reads if last[read.source] == index} & live - stay
        dying = {source for source in dead if problem.operators[source].kind != "input"}
        new = sizes[index]
        peak = max(peak, total + (0 if written_over(operator, dying, sizes, new) else new))
        live.add(index)
        if index not in last and index not in stay:
            dead.add(index)
        total += new - sum(sizes[source] for source in dead)
        live -= dead
    return peak


class _Inside:
    """What is alive in the tiles of one stage."""

    def __init__(self, problem: TilingProblem, stage: Stage, run: Sequence[Tile]) -> None:
        self._problem, self._order, self._rows = problem, members(problem, stage), stage.kind == "rows"
        self._results = frozenset(results(problem, stage))
        self._last = {read.source: index for index in self._order for read in problem.operators[index].reads}
        lines = [max(self._lines(tile.kept_before, index) for tile in run) for index in self._order]
        self._fixed = sum(lines) if problem.fixed_lines else 0

    def peak(self, tile: Tile) -> int:
        """Most bytes at once, whole results aside."""
        sizes = {index: self._size(tile, index) for index in self._order}
        before = {index: self._lines(tile.kept_before, index) for index in self._order}
        after = {index: self._lines(tile.kept_after, index) for index in self._order}
        own = self._problem.fixed_lines  # lines are in buffers of their own
        total = peak = self._fixed if own else sum(before.values())
        for index in self._order:
            operator = self._problem.operators[index]
            ending = {read.source for read in operator.reads if self._last[read.source] == index and read.source in sizes}
            dead = {source: sizes[source] + (0 if own else before[source] - after[source]) for source in ending}
            loose = {s for s in ending if self._problem.over_lines or not (before[s] or after[s])}
            new = 0 if written_over(operator, loose, dead, sizes[index], operator.copies) else sizes[index]
            copies = self._copies(tile, index, sizes, before)
            uncopied = {read.source for position, read in enumerate(operator.reads) if not copies.get(position)}
            freed = sum(dead[source] for source in ending - uncopied)
            during = total + sum(copies.values()) + self._inputs(tile, index)
            peak = max(peak, during, during - freed + new)
            total += (sizes[index] if index in self._last else 0) - sum(dead.values())
        return peak

    def _size(self, tile: Tile, index: int) -> int:
        """Bytes of what a tile makes outside of whole results."""
        if index not in tile.made or self._problem.operators[index].kind == "reduction":
            return 0
        if self._problem.results_apart:
            return tile.made[index].pixels * self._problem.operators[index].pixel_bytes
        straight = self._rows or index not in self._last or tile.made[index] == tile.share.get(index)
        if index in self._results and straight:
            return 0
        return tile.made[index].pixels * self._problem.operators[index].pixel_bytes

    def _lines(self, kept: dict[int, Span], index: int) -> int:
        operator = self._problem.operators[index]
        return kept[index].length * operator.width * operator.pixel_bytes if index in kept else 0

    def _copies(self, tile: Tile, index: int, sizes: dict[int, int], before: dict[int, int]) -> dict[int, int]:
        """Bytes of copies of operands, by position. Of lines in buffers of their own all is copied, together with new rows."""
        copies = dict[int, int]()
        operator = self._problem.operators[index]
        for position in operator.copies if index in tile.made and operator.kind == "local" else ():
            read = operator.reads[position]
            source, made = self._problem.operators[read.source], tile.made.get(read.source)
            if not counts(self._problem, read.source):
                continue
            part = _read(read, source, tile.made[index], whole_columns=self._rows)
            size = part.pixels * source.pixel_bytes
            joined = self._rows and read.source in self._results  # earlier rows are there too
            if before.get(read.source):
                size = before[read.source] + sizes[read.source] if self._problem.fixed_lines else size
            elif sizes.get(read.source) and part == made and not joined and not _pads(read, source, tile.made[index]):
                continue
            copies[position] = size
        return copies

    def _inputs(self, tile: Tile, index: int) -> int:
        """Bytes of what an operator reads of inputs that are not held."""
        total = 0
        operator = self._problem.operators[index]
        for read in operator.reads if index in tile.made else ():
            source = self._problem.operators[read.source]
            if counts(self._problem, read.source):
                continue
            reduced = operator.kind == "reduction" and read is operator.reads[0]
            part = tile.share[read.source] if reduced else _read(read, source, tile.made[index], whole_columns=self._rows)
            total += part.pixels * source.pixel_bytes
        return total


def _read(read: Read, source: Operator, made: Rectangle, *, whole_columns: bool) -> Rectangle:
    """What is read of a source to make a rectangle: the hull, at least a pixel, without padding."""
    spans = []
    for reach, size, span in ((read.rows, source.height, made.rows), (read.columns, source.width, made.columns)):
        start = 0 if reach is None else min(max(int(reach[span.start, 0]), 0), size - 1)
        stop = size if reach is None else min(max(int(reach[span.stop - 1, 1]), start + 1), size)
        spans.append(Span(start, stop))
    return Rectangle(spans[0], Span(0, source.width) if whole_columns else spans[1])


def _pads(read: Read, source: Operator, made: Rectangle) -> bool:
    """Whether padding is read to make a rectangle."""
    axes = ((read.rows, source.height, made.rows), (read.columns, source.width, made.columns))
    return any(x is not None and bool(x[span.start, 0] < 0 or x[span.stop - 1, 1] > size) for x, size, span in axes)


def _tile_macs(problem: TilingProblem, tile: Tile) -> int:
    total = 0
    for index, made in tile.made.items():
        operator = problem.operators[index]
        reduced = operator.kind == "reduction"
        total += operator.pixel_macs * (tile.share[operator.reads[0].source] if reduced else made).pixels
    return total
