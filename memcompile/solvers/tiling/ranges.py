"""Costs of all tiled stages that end at one place, for all grids at once.

``memory.py`` says what is counted, one stage at a time; this computes the same numbers as a stage grows from its last operator
backwards. A profile ``[moments, operators, tiles]`` holds the bytes alive inside every tile while each operator of the stage
runs: as its result is there, and, where operands are copied, as the copies are made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcompile.solvers.tiling.grids import Periods
from memcompile.solvers.tiling.layers import Grid, PatchLayers, StripLayers, TilingLayer, distinct
from memcompile.solvers.tiling.lives import ResultLives
from memcompile.solvers.tiling.problem import FREE, Operator, Prices, StageKind
from memcompile.solvers.tiling.sweep import Ints


@dataclass(frozen=True, slots=True)
class Ranges:
    """Tiled stages that end at one cut: parallel arrays. ``grid``: positions in ``grids``. ``extra``: what takes time beside
    arithmetic."""

    grids: tuple[Grid, ...]
    first: Ints
    grid: Ints
    peak_bytes: Ints
    macs: Ints
    tiles: Ints
    extra: Ints


@dataclass(frozen=True, slots=True)
class Limits:
    """``starts``: cuts at which a stage may begin. ``longest``: operators in one. ``barriers``: of some operators, the earlier
    one that a stage with them must not reach back to. ``kinds``: of stages. ``prices``: of all but arithmetic."""

    starts: frozenset[int]
    longest: int
    barriers: Mapping[int, int]
    kinds: frozenset[StageKind]
    prices: Prices = FREE


def tiled_ranges(lives: ResultLives, cut: int, limits: Limits, periods: Periods) -> Ranges | None:
    """Tiled stages that end at a cut: those that no other with the same operators beats, with a peak below layerwise."""
    order = reachable(lives, cut, limits)
    if not order or lives.last[cut - 1] < cut:
        return None
    last = lives.problem.operators[cut - 1]
    root = last.reads[0].source if last.kind == "reduction" else cut - 1
    grown = []
    tallest = max(lives.problem.operators[index].height for index in order)
    for tiling in (PatchLayers(lives.problem, root, periods), StripLayers(lives.problem, root, tallest, periods)):
        if tiling.grids and tiling.grids[0][0] in limits.kinds:
            grown.append((tiling, _grow(lives, cut, order, limits, tiling)))
    if not grown:
        return None
    grids = tuple(grid for tiling, _ in grown for grid in tiling.grids)
    peaks, macs, extra = (np.hstack([found[kind] for _, found in grown]) for kind in range(3))
    tiles = np.broadcast_to(np.concatenate([tiling.counts for tiling, _ in grown]), peaks.shape)
    first = np.array([index for index in order if index in limits.starts], dtype=np.int64)
    layerwise = _running_peak(lives, order, limits.starts)
    row, grid = np.nonzero(_unbeaten(peaks, macs, tiles if limits.prices == FREE else extra) & (peaks < layerwise[:, None]))
    return Ranges(grids, first[row], grid, peaks[row, grid], macs[row, grid], tiles[row, grid], extra[row, grid])


def reachable(lives: ResultLives, cut: int, limits: Limits) -> list[int]:
    """Operators from the cut backwards that can be in one tiled stage."""
    order, barrier = list[int](), -1
    for index in range(cut - 1, max(-1, cut - 1 - limits.longest), -1):
        barrier = max(barrier, limits.barriers.get(index, -1))
        if index <= barrier or not _tileable(lives, index, cut):
            break
        order.append(index)
    return order


def _tileable(lives: ResultLives, index: int, cut: int) -> bool:
    """Whether an operator can be in a tiled stage that ends at a cut. Reductions of inputs are not worth it."""
    operator = lives.problem.operators[index]
    if operator.kind == "reduction":
        return lives.last_before(index, cut) is None and lives.problem.operators[operator.reads[0].source].kind != "input"
    return operator.kind != "whole"


def _grow(
    lives: ResultLives, cut: int, order: Sequence[int], limits: Limits, tiling: PatchLayers | StripLayers
) -> tuple[Ints, Ints, Ints]:
    """Peaks, multiply-adds and what takes time beside them ``[starts, grids]`` as operators are taken into the stage one by one
    from its end."""
    operators = lives.problem.operators
    layers = dict[int, TilingLayer]()
    for index in order:
        if operators[index].kind != "input":
            readers = lives.last_before(index, cut) is not None
            layers[index] = tiling.add(index, is_result=lives.last[index] >= cut, has_readers=readers)
    tiles = distinct(list(layers.values()), tiling.tile_grid)
    profile = _Profile(lives, cut, order[-1], len(tiles))
    segments = np.searchsorted(tiling.tile_grid[tiles], np.arange(len(tiling.grids)))
    macs = np.zeros(len(tiling.grids), dtype=np.int64)
    extra = np.zeros_like(macs)
    peaks_at, macs_at, extra_at, whole, lines = list[Ints](), list[Ints](), list[Ints](), 0, np.zeros_like(macs)
    for index in order:
        if index in layers:
            layer = layers[index].of(tiles)
            profile.add(index, layer)
            macs = macs + layer.macs
            extra = extra + _extra(limits.prices, operators[index], layers[index], tiling, is_result=lives.last[index] >= cut)
            if lives.problem.fixed_lines:
                lines = lines + np.maximum.reduceat(layer.before, segments)
            whole += operators[index].size_bytes if lives.last[index] >= cut else 0
        if index in limits.starts:
            outside = lives.alive_bytes[index] + whole
            peaks_at.append(np.maximum.reduceat(profile.peaks(index), segments) + outside + lines)
            macs_at.append(macs)
            extra_at.append(extra)
    shape = (len(peaks_at), len(tiling.grids))
    made: list[Ints] = [np.array(at, dtype=np.int64).reshape(shape) for at in (peaks_at, macs_at, extra_at)]
    return made[0], made[1], made[2]


def _extra(
    prices: Prices, operator: Operator, layer: TilingLayer, tiling: PatchLayers | StripLayers, *, is_result: bool
) -> Ints:
    """What takes time beside arithmetic, in each grid."""
    extra = tiling.counts * int(prices.start + prices.copied * operator.start_bytes)
    if not prices.copied and not prices.fresh:
        return extra
    bytes_priced = prices.copied * layer.moved(is_result=is_result) + prices.fresh * layer.fresh(prices.fresh_from)
    priced = np.bincount(tiling.tile_grid, weights=bytes_priced, minlength=len(tiling.grids))
    return extra + priced.astype(np.int64)


class _Profile:
    """Bytes inside each tile while each operator from ``lowest`` up to the cut runs, but for lines in buffers of their own."""

    def __init__(self, lives: ResultLives, cut: int, lowest: int, tiles: int) -> None:
        self._lives, self._cut, self._lowest = lives, cut, lowest
        copies = any(operator.copies for operator in lives.problem.operators[lowest:cut])
        self._bytes = np.zeros((2 if copies else 1, cut - lowest, tiles), dtype=np.int64)
        self._lines = np.zeros(tiles, dtype=np.int64)
        self._layers = dict[int, TilingLayer]()
        self._over = dict[int, Ints]()

    def add(self, index: int, layer: TilingLayer) -> None:
        """Take in the operator before all those that are in."""
        at = index - self._lowest
        self._layers[index] = layer
        before, after = (np.zeros_like(self._lines),) * 2 if self._lives.problem.fixed_lines else (layer.before, layer.after)
        copies = sum((copied.size for copied in layer.copies), np.zeros_like(self._lines))
        self._bytes[:, at] += self._lines + before + layer.inputs + copies
        self._bytes[0, at] += layer.made
        self._lines = self._lines + before
        last = self._lives.last_before(index, self._cut)
        if last is None:
            return
        end = last - self._lowest + 1
        self._bytes[:, at + 1 : end] += before + layer.made
        self._bytes[:, end:] += after
        dead = before + layer.made - after
        self._write_over(index, last, layer, dead)
        for reader in self._lives.readers[index]:
            if reader <= last and self._layers[reader].copies:
                self._copy(index, reader, layer, dead if reader == last else None)

    def peaks(self, index: int) -> Ints:
        """Of each tile of the stage that begins with an operator."""
        peaks: Ints = self._bytes[:, index - self._lowest :].max(axis=(0, 1))
        return peaks

    def _write_over(self, index: int, reader: int, layer: TilingLayer, dead: Ints) -> None:
        """The last reader of an operand may take the place of what dies of it."""
        operator, made = self._lives.problem.operators[reader], self._layers[reader].made
        positions = set(operator.in_place).difference(operator.copies)
        if index not in (operator.reads[position].source for position in positions):
            return
        loose = self._lives.problem.over_lines | ((layer.before == 0) & (layer.after == 0))
        fits = (dead >= made) & loose
        fresh = fits & ~self._over.get(reader, np.zeros_like(fits))
        self._over[reader] = fits | self._over.get(reader, fits)
        self._bytes[0, reader - self._lowest] -= made * fresh

    def _copy(self, index: int, reader: int, layer: TilingLayer, dead: Ints | None) -> None:
        """What a reader copies of an operand, now that it is made in the stage. ``dead``: what dies of it then."""
        copies = [copied for copied in self._layers[reader].copies if copied.source == index]
        free = len(copies) == sum(read.source == index for read in self._lives.problem.operators[reader].reads)
        all_copied = np.full(self._lines.shape, free)
        for copied in copies:
            alone = (layer.before == 0) & (layer.made == copied.size) & (not layer.joined)
            size = np.where(alone & ~copied.padded, 0, copied.size)
            if self._lives.problem.fixed_lines:
                size = np.where((layer.before > 0) & (copied.size > 0), layer.before + layer.made, size)
            self._bytes[:, reader - self._lowest] += size - copied.size
            all_copied &= size > 0
        if dead is not None:
            self._bytes[0, reader - self._lowest] -= dead * all_copied


def _running_peak(lives: ResultLives, order: Sequence[int], starts: Collection[int]) -> Ints:
    """Of each start, the peak of the same operators layerwise."""
    running = np.maximum.accumulate([lives.layerwise_bytes[index] for index in order])
    return running[[index in starts for index in order]].astype(np.int64)


def _unbeaten(peaks: Ints, macs: Ints, work: Ints) -> NDArray[np.bool_]:
    """Of each start the grids that no other one equals or beats in everything."""
    keys = np.stack([peaks, macs, work])
    ours, theirs = keys[:, :, :, None], keys[:, :, None, :]
    no_worse, better = (theirs <= ours).all(axis=0), (theirs < ours).any(axis=0)
    count = peaks.shape[1]
    earlier = np.arange(count)[None, :] < np.arange(count)[:, None]
    return np.logical_not((no_worse & (better | earlier[None])).any(axis=2))
