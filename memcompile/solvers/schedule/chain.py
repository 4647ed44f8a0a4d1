"""Dynamic programming over a chain of blocks: which to keep whole, which to make again from a checkpoint, at every level.

The recursion of rotor (Beaumont et al., 2019, "Optimal checkpointing for heterogeneous chains", section 4.2), with several
options a block as in Rockmate (Zhao et al., 2023, section 3.3). On homogeneous chains with one option it is Revolve
(Griewank and Walther, 2000) and the strategy of Gruslys et al. (2016). ``cost(s, t, m)``: least forward seconds to run blocks
s..t forward and backward within m units of memory beside the input of s (m also counts the gradients of blocks after t):

    cost(s, t, m) = min  forward(s) + extra(o) + cost(s+1, t, m - cut(s+1) - saved(o))             keep block s with option o
                         sum forward(s..k-1) + cost(k, t, m - cut(k)) + cost(s, k-1, m)             checkpoint k only
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcompile.solvers.schedule.blocks import BlockChain, BlockPart, ChainBlock, extract
from memcompile.solvers.schedule.decode import Emitter
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.options import BlockOption, block_options
from memcompile.solvers.schedule.problem import RematSchedule
from memcompile.solvers.schedule.simulate import Replay

Floats = NDArray[np.float64]
LEVELS = 400


@dataclass(frozen=True, slots=True)
class ChainModel:
    """A chain with the options of its blocks (identical blocks share them)."""

    chain: BlockChain
    parts: tuple[BlockPart, ...]
    options: tuple[tuple[BlockOption, ...], ...]
    forward_seconds: tuple[float, ...]
    cut_bytes: tuple[int, ...]
    fixed_bytes: int


def model_chain(index: RematIndex, chain: BlockChain, seed: int, deadline: float) -> ChainModel:
    """Solve each distinct block once; blocks reached after ``deadline`` (of ``work.now``) get few options."""
    parts = tuple(extract(index, block) for block in chain.blocks)
    solved: dict[object, tuple[BlockOption, ...]] = {}
    for part in parts:
        if part.signature not in solved:
            solved[part.signature] = block_options(part, seed, deadline)
    seconds = tuple(sum(index.seconds[b.first : b.last]) for b in chain.blocks)
    return ChainModel(
        chain=chain,
        parts=parts,
        options=tuple(solved[part.signature] for part in parts),
        forward_seconds=seconds,
        cut_bytes=tuple(sum(index.sizes[s] for s in block.cut) for block in chain.blocks),
        fixed_bytes=index.problem.base_bytes + sum(index.sizes[s] for s in chain.shared),
    )


class ChainTable:
    """The table of the recursion for one memory, in ``LEVELS`` units, and the choices that fill it."""

    def __init__(self, model: ChainModel, memory: int) -> None:
        self.model = model
        self.unit = max(1.0, (memory - model.fixed_bytes) / LEVELS)
        count = len(model.parts)
        self.cut = [self.units(b) for b in model.cut_bytes]
        grads = [part.grad_bytes for part in model.parts]
        self.held = [self._held(b) for b in range(count)]
        self.after = [self.units(sum(grads[t + 1 :])) for t in range(count)]
        self.cost: Floats = np.full((count, count, LEVELS + 1), np.inf)
        self.shifted: Floats = np.full((count, count, LEVELS + 1), np.inf)  # [t, s]: cost(s, t, m - cut(s))
        self.choice = np.full((count, count, LEVELS + 1), -1, dtype=np.int32)  # option, or -(k + 2) for a checkpoint at k
        self.prefix = np.concatenate([[0.0], np.cumsum(model.forward_seconds)])
        for length in range(count):
            for s in range(count - length):
                self._fill(s, s + length)

    def _held(self, b: int) -> list[int]:
        """Per option of block b, the units that it holds while later blocks run: what it saves and the next cut, once."""
        if b + 1 == len(self.model.parts):
            return [0 for _ in self.model.options[b]]
        part, cut = self.model.parts[b], self.model.chain.blocks[b + 1].cut
        size = part.problem.storages
        common = [sum(size[i].size_bytes for i in o.saved if part.storages[i] in cut) for o in self.model.options[b]]
        return [
            self.units(self.model.cut_bytes[b + 1] + o.saved_bytes - both)
            for o, both in zip(self.model.options[b], common, strict=True)
        ]

    def units(self, size: int) -> int:
        """Bytes in units, to the nearest."""
        return round(size / self.unit)

    def _fill(self, s: int, t: int) -> None:
        best = np.full(LEVELS + 1, np.inf)
        choice = np.full(LEVELS + 1, -1, dtype=np.int32)
        part, forward = self.model.parts[s], self.model.forward_seconds[s]
        for i, option in enumerate(self.model.options[s]):
            rest: Floats = np.zeros(LEVELS + 1)
            if t > s:
                rest = _shift(self.cost[s + 1, t], self.held[s][i])
            rest = rest + (forward + option.extra_seconds)
            rest[: min(LEVELS + 1, self.units(option.peak_bytes + part.through_bytes) + self.after[s])] = np.inf
            better = rest < best
            best[better], choice[better] = rest[better], i
        if t > s:
            left = self.prefix[s + 1 : t + 1] - self.prefix[s]
            rows = left[:, None] + self.shifted[t, s + 1 : t + 1] + self.cost[s, s:t]
            k = np.argmin(rows, axis=0)
            value = rows[k, np.arange(LEVELS + 1)]
            better = value < best
            best[better], choice[better] = value[better], -(s + 1 + k[better] + 2)
        self.cost[s, t], self.choice[s, t] = best, choice
        self.shifted[t, s] = _shift(best, self.cut[s])


def _shift(row: Floats, units: int) -> Floats:
    """``row[m - units]``, infinite below 0."""
    result: Floats = np.full(len(row), np.inf)
    if units < len(row):
        result[units:] = row[: len(row) - units]
    return result


class ChainDecoder:
    """Turns the choices of a table into a schedule."""

    def __init__(self, index: RematIndex, table: ChainTable) -> None:
        self.index, self.table, self.model = index, table, table.model
        self.emitter = Emitter(index)
        self.done = 0  # blocks whose forward ran

    def forward(self, b: int, keep: set[int]) -> None:
        """Run block b forward (all of it the first time, then what is needed) and keep only ``keep`` of what it wrote."""
        block = self.model.chain.blocks[b]
        if b >= self.done:
            for p in range(block.first, block.last):
                self.emitter.run(p)
            self.done = b + 1
        else:
            self.emitter.make(sorted(keep))
        shared = self.model.chain.shared
        self.emitter.drop(
            s for p in range(block.first, block.last) for s in self.index.writes[p] if s not in keep and s not in shared
        )

    def cut(self, b: int) -> set[int]:
        """What enters block b."""
        return set(self.model.chain.blocks[b].cut) if b < len(self.model.parts) else set()

    def walk(self, s: int, t: int, m: int) -> None:
        """Run blocks s..t forward and backward within m units."""
        choice = int(self.table.choice[s, t, m])
        if choice >= 0:
            option, part = self.model.options[s][choice], self.model.parts[s]
            keep = {part.storages[i] for i in option.saved}
            self.forward(s, keep | (self.cut(s + 1) if t > s else set()))
            if t > s:
                self.walk(s + 1, t, m - self.table.held[s][choice])
            self.backward(part, option, self.model.chain.blocks[s])
            return
        k = -choice - 2
        for b in range(s, k):
            self.forward(b, self.cut(b + 1))
            if b > s:
                self.emitter.drop(self.cut(b) - self.cut(b + 1) - self.cut(s))
        self.walk(k, t, m - self.table.cut[k])
        self.emitter.drop(self.cut(k) - self.cut(s))
        self.walk(s, k - 1, m)

    def backward(self, part: BlockPart, option: BlockOption, block: ChainBlock) -> None:
        """Run the backward of a block as its option says."""
        emitter = self.emitter
        if emitter.split is None:
            emitter.cross_split()
        for i in option.backward:
            p = part.ops[i]
            if (p >= block.begin and not emitter.executed[p]) or self.index.again[p]:
                emitter.run(p)


def chain_schedule(index: RematIndex, table: ChainTable, level: int) -> RematSchedule | None:
    """The schedule of the cheapest choices for ``level`` units of memory; None when the recursion finds none."""
    last = len(table.model.parts) - 1
    if not np.isfinite(table.cost[0, last, level]):
        return None
    decoder = ChainDecoder(index, table)
    decoder.walk(0, last, level)
    return decoder.emitter.finish()


def chain_search(index: RematIndex, replay: Replay, model: ChainModel, budget: int, tries: int = 8) -> list[RematSchedule]:
    """Schedules within the budget, by bisection of the memory of the recursion: its rounding errs, the exact replay judges."""
    if budget <= model.fixed_bytes:
        return []
    table = ChainTable(model, budget + (budget - model.fixed_bytes) // 4)
    low, high = 0, LEVELS
    level = int((budget - model.fixed_bytes) / table.unit)
    found: list[RematSchedule] = []
    for _ in range(tries):
        schedule = chain_schedule(index, table, level)
        if schedule is None:
            low = level
        elif replay.run(schedule).peak_bytes <= budget:
            found.append(schedule)
            low = level
        else:
            high = level
        if high - low <= 1:
            break
        level = (low + high) // 2
    return found


def chain_floor(index: RematIndex, model: ChainModel, peak: int, tries: int = 6) -> list[RematSchedule]:
    """Schedules with small peaks: the least memory for which the recursion is finite, and a little more."""
    if peak <= model.fixed_bytes:
        return []
    table = ChainTable(model, peak)
    finite = np.flatnonzero(np.isfinite(table.cost[0, len(model.parts) - 1]))
    levels = sorted({min(LEVELS, int(finite[0]) + step * step) for step in range(tries)}) if len(finite) else []
    return [s for s in (chain_schedule(index, table, level) for level in levels) if s is not None]
