"""Costs of all tiled stages that end at one place, for all grids at once.

``memory.py`` says what is counted, one stage at a time; this computes the same numbers as a stage grows from its last operator
backwards. A profile ``[operators, tiles]`` holds the bytes alive inside every tile while each operator of the stage runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcompile.solvers.tiling.grids import Periods
from memcompile.solvers.tiling.layers import Grid, Layer, Patches, Rows, distinct
from memcompile.solvers.tiling.lives import Lives
from memcompile.solvers.tiling.problem import StageKind
from memcompile.solvers.tiling.sweep import Ints


@dataclass(frozen=True, slots=True)
class Ranges:
    """Tiled stages that end at one cut: parallel arrays. ``grid``: positions in ``grids``. ``runs``: of operators in tiles."""

    grids: tuple[Grid, ...]
    first: Ints
    grid: Ints
    peak_bytes: Ints
    macs: Ints
    tiles: Ints
    runs: Ints


@dataclass(frozen=True, slots=True)
class Limits:
    """``starts``: cuts at which a stage may begin. ``longest``: operators in one. ``barriers``: of some operators, the earlier
    one that a stage with them must not reach back to. ``kinds``: of stages."""

    starts: frozenset[int]
    longest: int
    barriers: Mapping[int, int]
    kinds: frozenset[StageKind]


def tiled_ranges(lives: Lives, cut: int, limits: Limits, periods: Periods) -> Ranges | None:
    """Tiled stages that end at a cut: those that no other with the same operators beats, with a peak below layerwise."""
    order = reachable(lives, cut, limits)
    if not order or lives.last[cut - 1] < cut:
        return None
    last = lives.problem.operators[cut - 1]
    root = last.reads[0].source if last.kind == "reduction" else cut - 1
    grown = []
    tallest = max(lives.problem.operators[index].height for index in order)
    for tiling in (Patches(lives.problem, root, periods), Rows(lives.problem, root, tallest, periods)):
        if tiling.grids and tiling.grids[0][0] in limits.kinds:
            grown.append((tiling, _grow(lives, cut, order, limits.starts, tiling)))
    if not grown:
        return None
    grids = tuple(grid for tiling, _ in grown for grid in tiling.grids)
    peaks = np.hstack([peaks for _, (peaks, _) in grown])
    macs = np.hstack([macs for _, (_, macs) in grown])
    tiles = np.broadcast_to(np.concatenate([tiling.counts for tiling, _ in grown]), peaks.shape)
    first = np.array([index for index in order if index in limits.starts], dtype=np.int64)
    layerwise = _running_peak(lives, order, limits.starts)
    row, grid = np.nonzero(_unbeaten(peaks, macs, tiles) & (peaks < layerwise[:, None]))
    operators = np.cumsum([lives.problem.operators[index].kind != "input" for index in order])
    runs = tiles[row, grid] * operators[[index in limits.starts for index in order]][row]
    return Ranges(grids, first[row], grid, peaks[row, grid], macs[row, grid], tiles[row, grid], runs)


def reachable(lives: Lives, cut: int, limits: Limits) -> list[int]:
    """Operators from the cut backwards that can be in one tiled stage."""
    order, barrier = list[int](), -1
    for index in range(cut - 1, max(-1, cut - 1 - limits.longest), -1):
        barrier = max(barrier, limits.barriers.get(index, -1))
        if index <= barrier or not _tileable(lives, index, cut):
            break
        order.append(index)
    return order


def _tileable(lives: Lives, index: int, cut: int) -> bool:
    """Whether an operator can be in a tiled stage that ends at a cut. Reductions of inputs are not worth it."""
    operator = lives.problem.operators[index]
    if operator.kind == "reduction":
        return lives.last_before(index, cut) is None and lives.problem.operators[operator.reads[0].source].kind != "input"
    return operator.kind != "whole"


def _grow(lives: Lives, cut: int, order: Sequence[int], starts: Collection[int], tiling: Patches | Rows) -> tuple[Ints, Ints]:
    """Peaks and multiply-adds ``[starts, grids]`` as operators are taken into the stage one by one from its end."""
    operators = lives.problem.operators
    layers = dict[int, Layer]()
    for index in order:
        if operators[index].kind != "input":
            readers = lives.last_before(index, cut) is not None
            layers[index] = tiling.add(index, is_result=lives.last[index] >= cut, has_readers=readers)
    tiles = distinct(list(layers.values()), tiling.tile_grid)
    profile = _Profile(lives, cut, order[-1], len(tiles))
    segments = np.searchsorted(tiling.tile_grid[tiles], np.arange(len(tiling.grids)))
    macs = np.zeros(len(tiling.grids), dtype=np.int64)
    peaks_at, macs_at, whole = list[Ints](), list[Ints](), 0
    for index in order:
        if index in layers:
            profile.add(index, layers[index].of(tiles))
            macs = macs + layers[index].macs
            whole += operators[index].size_bytes if lives.last[index] >= cut else 0
        if index in starts:
            outside = lives.alive_bytes[index] + whole
            peaks_at.append(np.maximum.reduceat(profile.peaks(index), segments) + outside)
            macs_at.append(macs)
    shape = (len(peaks_at), len(tiling.grids))
    return np.array(peaks_at, dtype=np.int64).reshape(shape), np.array(macs_at, dtype=np.int64).reshape(shape)


class _Profile:
    """Bytes inside each tile while each operator from ``lowest`` up to the cut runs."""

    def __init__(self, lives: Lives, cut: int, lowest: int, tiles: int) -> None:
        self._lives, self._cut, self._lowest = lives, cut, lowest
        self._bytes = np.zeros((cut - lowest, tiles), dtype=np.int64)
        self._lines = np.zeros(tiles, dtype=np.int64)
        self._made = dict[int, Ints]()
        self._over = dict[int, Ints]()

    def add(self, index: int, layer: Layer) -> None:
        """Take in the operator before all those that are in."""
        at = index - self._lowest
        self._made[index] = layer.made
        self._bytes[at] += self._lines + layer.before + layer.made + layer.inputs
        self._lines = self._lines + layer.before
        last = self._lives.last_before(index, self._cut)
        if last is None:
            return
        end = last - self._lowest + 1
        self._bytes[at + 1 : end] += layer.before + layer.made
        self._bytes[end:] += layer.after
        self._write_over(index, last, layer)

    def peaks(self, index: int) -> Ints:
        """Of each tile of the stage that begins with an operator."""
        peaks: Ints = self._bytes[index - self._lowest :].max(axis=0)
        return peaks

    def _write_over(self, index: int, reader: int, layer: Layer) -> None:
        """The last reader of an operand may take the place of what dies of it."""
        operator = self._lives.problem.operators[reader]
        if index not in (operator.reads[position].source for position in operator.in_place):
            return
        loose = self._lives.problem.over_lines | ((layer.before == 0) & (layer.after == 0))
        fits = (layer.before + layer.made - layer.after >= self._made[reader]) & loose
        fresh = fits & ~self._over.get(reader, np.zeros_like(fits))
        self._over[reader] = fits | self._over.get(reader, fits)
        self._bytes[reader - self._lowest] -= self._made[reader] * fresh


def _running_peak(lives: Lives, order: Sequence[int], starts: Collection[int]) -> Ints:
    """Of each start, the peak of the same operators layerwise."""
    running = np.maximum.accumulate([lives.layerwise_bytes[index] for index in order])
    return running[[index in starts for index in order]].astype(np.int64)


def _unbeaten(peaks: Ints, macs: Ints, tiles: Ints) -> NDArray[np.bool_]:
    """Of each start the grids that no other one equals or beats in everything."""
    keys = np.stack([peaks, macs, tiles])
    ours, theirs = keys[:, :, :, None], keys[:, :, None, :]
    no_worse, better = (theirs <= ours).all(axis=0), (theirs < ours).any(axis=0)
    count = peaks.shape[1]
    earlier = np.arange(count)[None, :] < np.arange(count)[:, None]
    return np.logical_not((no_worse & (better | earlier[None])).any(axis=2))
