"""Which tile sizes a kernel may have on a GPU: candidates within its limits by estimate, the most promising first.

The estimates follow how Triton lowers these kernels, and were compared with what ptxas reports for sm_80 and sm_90.
Registers: a resident tensor lives through the loops between its first and its last use, in fp32 while it is summed up, in its
own dtype after that. Shared memory: the tiles of weights and inputs that a loop loads, times the stages of its pipeline, and
resident operands where the instructions read them from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from memcompile.codegen.kernel.chain import Chain, Sweep
from memcompile.codegen.kernel.pointwise import dtype_of, shape_of
from memcompile.codegen.triton.layout import divisor, tile_divides, width_of
from memcompile.codegen.triton.tile import MIN_DOT, blocks

Method = Literal["rows", "decode"]

KIB = 1024
WARP = 32
WARPGROUP_ROWS = 64
"""Rows of the smallest product that a group of four warps computes at once, on sm_90."""
REGISTERS_BESIDE = 45
"""Registers a thread for addresses, masks and temporaries."""


@dataclass(frozen=True, slots=True)
class GpuTarget:
    """What one block may take: shared memory in bytes, registers a thread.

    ``balance_rows``: rows of a block for which a weight's way from the L2 cache takes as long as its products.
    """

    name: str
    capability: int
    shared_bytes: int
    processors: int
    balance_rows: int
    registers: int = 255

    @property
    def has_warpgroups(self) -> bool:
        """Whether four warps multiply together, with operands in shared memory."""
        return self.capability >= 90


TARGETS: Mapping[str, GpuTarget] = {
    t.name: t for t in (GpuTarget("cuda:80", 80, 163 * KIB, 108, 78), GpuTarget("cuda:90", 90, 227 * KIB, 132, 144))
}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes by name (BM rows; BK, BH, BN columns of a sweep's tile; TILES a program; BC of a sum), warps and stages."""

    sizes: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    def as_dict(self) -> dict[str, int]:
        """The form that ``launch`` takes."""
        return {**dict(self.sizes), "num_warps": self.num_warps, "num_stages": self.num_stages}

    def __getitem__(self, name: str) -> int:
        return dict(self.sizes)[name]

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.as_dict().items())


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a block is estimated to take."""

    registers: int
    shared_bytes: int

    def fits(self, target: GpuTarget) -> bool:
        """Whether a GPU has that much."""
        return self.registers <= target.registers and self.shared_bytes <= target.shared_bytes


def candidates(chain: Chain, method: Method, target: GpuTarget, num_rows: int | None = None) -> list[Config]:
    """Configs whose estimate fits, the most promising first. ``num_rows``: what it is for, the graph's when None."""
    rows = chain.num_rows if num_rows is None else num_rows
    distinct = dict.fromkeys(_configs(chain, method, rows))
    found = [config for config in distinct if estimate(chain, method, config, target).fits(target)]
    return sorted(found, key=lambda config: _rank(chain, method, config, target, rows))


def smallest(chain: Chain, method: Method) -> Config:
    """The config with the smallest tiles, for any GPU."""
    return min(_configs(chain, method, chain.num_rows), key=lambda config: [size for _, size in config.sizes])


def estimate(chain: Chain, method: Method, config: Config, target: GpuTarget) -> Footprint:
    """The most that any loop of the kernel takes."""
    loops = [_estimate_sweep(chain, method, sweep, config, target) for sweep in chain.sweeps]
    return Footprint(max(loop.registers for loop in loops), max(loop.shared_bytes for loop in loops))


def _configs(chain: Chain, method: Method, rows: int) -> Iterator[Config]:
    """All combinations. fp32 products do without tensor cores, and keep their operands in registers: their tiles are small."""
    decode, small = method == "decode", chain.dtype() == torch.float32
    heights = [16, 32] if small else [16, 32, 64] if decode else [32, 64, 128]
    heights = [height for height in heights if not decode or height == 16 or height < 2 * rows]
    widths = (16, 32) if small else (32, 64, 128)
    pipelines = [(1, 1), (2, 2), (2, 4), (3, 4)] if decode else [(2, 0), (3, 0)]
    for height, hidden, outer, warps in itertools.product(heights, widths, widths, (8, 16) if small else (4, 8)):
        for stages, tiles in pipelines:
            sizes = {"BM": height, **_tile_widths(chain, decode, {"BK": outer, "BH": hidden, "BN": outer})}
            yield Config(tuple((sizes | ({"BC": 64, "TILES": tiles} if decode else {})).items()), warps, stages)


def _tile_widths(chain: Chain, decode: bool, wanted: Mapping[str, int]) -> dict[str, int]:
    """The widths, narrowed so that they divide the columns where that spares a mask, and are no wider than these."""
    sizes: dict[str, int] = {}
    for sweep in chain.sweeps:
        name = width_of(sweep)
        exact = not decode and tile_divides(sweep.columns)
        limit = divisor(sweep.columns) if exact else _power_of_two(sweep.columns)
        sizes[name] = min(wanted[name], sizes.get(name, limit), limit)
    return sizes


def _estimate_sweep(chain: Chain, method: Method, sweep: Sweep, config: Config, target: GpuTarget) -> Footprint:
    height, width = config["BM"], config[width_of(sweep)]
    threads = WARP * config.num_warps
    live = sweep_live(chain, method, sweep)
    held = sum(height * padded(node) * (dtype_of(node).itemsize if known else 4) for node, known in live.items())
    tiles = max(1, len(sweep.expands)) * height * width * 4
    registers = REGISTERS_BESIDE + (held + tiles) // (4 * threads)
    operands = dict.fromkeys(p.left for p in sweep.expands)
    weights = [(width * sum(w for _, w in blocks(p.inner)), p.weight) for p in sweep.expands]
    weights += [(width * padded(p.node), p.weight) for p in sweep.contracts]
    loaded = sum(count * dtype_of(weight).itemsize for count, weight in weights)
    if not sweep.expands:
        loaded += sum(height * width * dtype_of(n).itemsize for n in dict.fromkeys(p.left for p in sweep.contracts))
    if target.has_warpgroups and height >= WARPGROUP_ROWS:
        shared = height // WARPGROUP_ROWS < config.num_warps // 4
        kept = _bytes((n for n in operands if shared or n not in chain.dependent), height)
        return Footprint(registers, config.num_stages * loaded + kept)
    if config.num_stages == 1:
        loaded = max(count * dtype_of(weight).itemsize for count, weight in weights)
    result = height * width * chain.dtype().itemsize
    return Footprint(registers, max(1, config.num_stages - 1) * loaded + _bytes(operands, height) + result)


def _bytes(nodes: Iterable[fx.Node], height: int) -> int:
    return sum(height * padded(node) * dtype_of(node).itemsize for node in nodes)


def sweep_live(chain: Chain, method: Method, sweep: Sweep) -> dict[fx.Node, bool]:
    """The resident tensors in registers during a sweep, and whether they are known (False: being summed up)."""
    summed = {p.node for p in sweep.contracts}
    known = {node: level for level, nodes in enumerate(chain.finished) for node in nodes}
    read_by = {node: _last_sweep(chain, node, known) for node in chain.resident}
    live = {n: True for n in chain.resident if known[n] < sweep.level <= read_by[n]}
    if method == "decode":
        live = dict.fromkeys((p.left for p in sweep.expands), True)
    return live | dict.fromkeys(summed, False)


def _last_sweep(chain: Chain, node: fx.Node, known: Mapping[fx.Node, int]) -> int:
    sweeps = [sweep.level for sweep in chain.sweeps if any(p.left is node for p in sweep.expands)]
    return max([0, *sweeps, *(known[user] for user in node.users if user in known)])


def padded(node: fx.Node) -> int:
    """The columns of a resident tensor's blocks."""
    return sum(width for _, width in blocks(shape_of(node)[1]))


def _rank(chain: Chain, method: Method, config: Config, target: GpuTarget, rows: int) -> tuple[float, ...]:
    """Smaller is better: the time of the programs that follow each other on one processor, then wide tiles, then stages."""
    widest = max(chain.sweeps, key=lambda sweep: (len(sweep.expands) + len(sweep.contracts)) * sweep.columns)
    width, programs = config[width_of(widest)], math.ceil(rows / config["BM"])
    if method == "decode":
        programs *= math.ceil(widest.columns / (width * config["TILES"]))
        return (
            math.ceil(programs / target.processors) * config["TILES"] * width,
            config["TILES"],
            -config.num_stages,
            config["BM"],
        )
    time = math.ceil(programs / target.processors) * max(config["BM"], target.balance_rows)
    return (time, -min(width, 64), -config.num_warps, -config.num_stages, -config["BM"], -sum(size for _, size in config.sizes))


def _power_of_two(columns: int) -> int:
    """The smallest one that holds the columns, and is wide enough for a product."""
    return max(MIN_DOT, 1 << (columns - 1).bit_length())
