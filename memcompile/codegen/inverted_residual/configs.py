"""Tile sizes of the kernel of an inverted residual: BM columns of pixels and BH expanded channels, the most promising first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.writer import MIN_CHUNK, chunk_divides, loop_lines, padded
from memcompile.codegen.triton.configs import REGISTERS_BESIDE, WARP, WARPGROUP_ROWS, Config, Footprint, GpuTarget
from memcompile.codegen.triton.layout import divisor
from memcompile.codegen.triton.tile import MIN_DOT

MAX_LINES = 2
WORTH_A_LINE = 0.8
"""Twice the lines are taken where they leave at most this share of the expansions: sums take twice the registers."""
LINE_BYTES = 256
"""Bytes of a pixel of the input or of the result, times lines, up to which registers hold what lines share."""
ADDRESSES = 1.5
"""Registers by what ptxas takes, to those that values take. From 400 compilations for sm_80 and sm_90."""


def lines_together(block: InvertedResidual) -> int:
    """How many pixels of the result below each other are made by one thread, so that they share expanded pixels."""
    lines = 1
    pixel_bytes = max(padded(block.channels[0]), padded(block.channels[2])) * block.dtype.itemsize
    while block.expand is not None and 2 * lines <= MAX_LINES and 2 * lines * pixel_bytes <= LINE_BYTES:
        if block.expansions(2 * lines) > WORTH_A_LINE * block.expansions(lines):
            break
        lines *= 2
    return lines


def inverted_candidates(block: InvertedResidual, lines: int, target: GpuTarget, images: int | None = None) -> list[Config]:
    """Configs whose estimate fits. ``images``: what it is for, the graph's when None."""
    height, width = block.result_size
    columns = math.ceil(height / lines) * width * (block.images if images is None else images)
    found = [config for config in _configs(block) if inverted_footprint(block, lines, config, target).fits(target)]
    return sorted(found, key=lambda config: _rank(block, lines, config, target, columns))


def inverted_smallest(block: InvertedResidual) -> Config:
    """The config with the smallest tiles, for any GPU."""
    return min(_configs(block), key=lambda config: [size for _, size in config.sizes])


def inverted_footprint(block: InvertedResidual, lines: int, config: Config, target: GpuTarget) -> Footprint:
    """What a program takes, by estimate. Registers: the sums of the result and of a chunk, the values at a tap, and operands
    where products read them from there. Shared memory: the input at a tap, times the stages of the pipeline, and weights."""
    rows, chunk, size = config["BM"], config["BH"], block.dtype.itemsize
    threads, warpgroups = WARP * config.num_warps, target.has_warpgroups and config["BM"] >= WARPGROUP_ROWS
    wide, narrow = padded(block.channels[0]) if block.expand is not None else 0, padded(block.channels[2])
    taps = loop_lines(block, lines)
    held = 4 * rows * (lines * (narrow + chunk) + (taps if warpgroups else 1) * chunk)
    registers = REGISTERS_BESIDE + held // (4 * threads)
    shared = size * (chunk * (wide + narrow) + rows * chunk)
    stages = config.num_stages if warpgroups else config.num_stages - 1
    if not warpgroups and block.dtype != torch.float32:
        warps_across = max(1, config.num_warps * MIN_DOT // rows)
        registers += size * wide * (taps * MIN_DOT + chunk // warps_across) // (4 * WARP)
    return Footprint(int(ADDRESSES * registers), shared + stages * taps * size * rows * wide)


def _configs(block: InvertedResidual) -> Iterator[Config]:
    """All combinations. fp32 products do without tensor cores, and keep their operands in registers: their tiles are small."""
    small, channels = block.dtype == torch.float32, block.channels[1]
    limit = divisor(channels) if chunk_divides(channels) else max(MIN_CHUNK, 1 << (channels - 1).bit_length())
    heights, widths = ((16, 32), (16, 32)) if small else ((16, 32, 64, 128), (16, 32, 64))
    for height, width, warps, stages in itertools.product(heights, widths, (4, 8), (2, 3)):
        if width <= limit:
            yield Config((("BM", height), ("BH", width)), warps, stages)


def _rank(block: InvertedResidual, lines: int, config: Config, target: GpuTarget, columns: int) -> tuple[float, ...]:
    """Smaller is better: the pixels that follow each other on one processor, with the input that each chunk reads again and
    the warps that have no tile of a product; then rows as one instruction takes them."""
    rows, chunk, warps = config["BM"], config["BH"], config.num_warps
    turns = max(1.0, math.ceil(columns / rows) / target.processors)
    again = 1 + padded(block.channels[0]) / (MIN_DOT * chunk)
    idle = max(1.0, 8 * MIN_DOT * warps / (rows * chunk))
    return (turns * rows * lines * again * idle, -min(rows, WARPGROUP_ROWS), -warps, rows, -config.num_stages)
