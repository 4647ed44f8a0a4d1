"""Tile sizes of the kernel of an inverted residual: BM pixels and BH expanded channels, the most promising first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from memcompile.codegen.triton.configs import REGISTERS_BESIDE, WARP, WARPGROUP_ROWS, Config, Footprint, Target
from memcompile.codegen.triton.inverted.block import InvertedResidual
from memcompile.codegen.triton.inverted.writer import MIN_CHUNK, chunk_divides
from memcompile.codegen.triton.layout import divisor
from memcompile.codegen.triton.tile import blocks


def inverted_candidates(block: InvertedResidual, target: Target, images: int | None = None) -> list[Config]:
    """Configs whose estimate fits. ``images``: what it is for, the graph's when None."""
    pixels = math.prod(block.result_size) * (block.images if images is None else images)
    found = [config for config in _configs(block) if inverted_footprint(block, config, target).fits(target)]
    return sorted(found, key=lambda config: _rank(block, config, target, pixels))


def inverted_smallest(block: InvertedResidual) -> Config:
    """The config with the smallest tiles, for any GPU."""
    return min(_configs(block), key=lambda config: [size for _, size in config.sizes])


def inverted_footprint(block: InvertedResidual, config: Config, target: Target) -> Footprint:
    """What a program takes, by estimate: the sums of the result, of a chunk, and its value at one tap, in registers; the input
    at one tap and the weights of a chunk, in shared memory where products read them from there."""
    pixels, chunk, size = config["BM"], config["BH"], block.dtype.itemsize
    threads = WARP * config.num_warps
    wide, narrow = padded(block.channels[0]) if block.expand is not None else 0, padded(block.channels[2])
    held = 4 * pixels * (narrow + 2 * chunk)
    weights = size * chunk * (wide + narrow)
    given = size * pixels * (wide + chunk)
    if target.has_warpgroups and pixels >= WARPGROUP_ROWS:
        registers = REGISTERS_BESIDE + held // (4 * threads)
        return Footprint(registers, weights + config.num_stages * size * pixels * wide + size * pixels * chunk)
    registers = REGISTERS_BESIDE + held // (4 * threads) + size * wide * chunk // (4 * WARP)
    return Footprint(registers, weights + (config.num_stages - 1) * given)


def padded(columns: int) -> int:
    """The columns of the blocks that hold a number of them."""
    return sum(width for _, width in blocks(columns))


def _configs(block: InvertedResidual) -> Iterator[Config]:
    """All combinations. fp32 products do without tensor cores, and keep their operands in registers: their tiles are small."""
    small, channels = block.dtype == torch.float32, block.channels[1]
    limit = divisor(channels) if chunk_divides(channels) else max(MIN_CHUNK, 1 << (channels - 1).bit_length())
    heights, widths = ((16, 32), (16, 32)) if small else ((32, 64, 128), (16, 32, 64))
    for height, width, warps, stages in itertools.product(heights, widths, (4, 8), (2, 3)):
        if width <= limit:
            yield Config((("BM", height), ("BH", width)), warps, stages)


def _rank(block: InvertedResidual, config: Config, target: Target, pixels: int) -> tuple[float, ...]:
    """Smaller is better: the pixels that follow each other on one processor, with what each chunk reads once more."""
    programs = math.ceil(pixels / config["BM"])
    read = padded(block.channels[0]) / config["BH"]
    time = math.ceil(programs / target.processors) * config["BM"] * (1 + read / 16)
    return (time, -config["BH"], -config.num_warps, -config.num_stages)
