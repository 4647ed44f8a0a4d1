"""Tiles compute what the whole network does: bit for bit on whole numbers, for every operator, kind of stage and grid."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.passes.tiles.nets import Random
from tests.passes.tiles.running import run
from tests.passes.tiles.stages import random_stages


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6))
def test_random_networks_of_whole_numbers_are_bit_exact(seed: int) -> None:
    draw = random.Random(seed)
    module = Random(seed, draw.randint(4, 12), (draw.randint(8, 24), draw.randint(8, 24))).eval()
    x = torch.randint(0, 8, (2, 4, *_size(module, seed))).float()
    ran = run(module, random_stages(seed), x)
    for expected, found in zip(module(x), ran.results, strict=True):
        assert torch.equal(expected, found)


def _size(_module: Random, seed: int) -> tuple[int, int]:
    draw = random.Random(seed)
    draw.randint(4, 12)
    return draw.randint(8, 24), draw.randint(8, 24)


def test_nothing_is_tested_in_vain() -> None:
    """Most of the random stages really are tiled."""
    tiled = 0
    for seed in range(10):
        draw = random.Random(seed)
        module = Random(seed, draw.randint(4, 12), (draw.randint(8, 24), draw.randint(8, 24))).eval()
        x = torch.randint(0, 8, (2, 4, *_size(module, seed))).float()
        tiled += len(run(module, random_stages(seed), x).patched)
    assert tiled > 10


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
