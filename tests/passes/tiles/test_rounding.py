"""Tiles of networks in double precision differ from the whole network by rounding alone, whatever the stages."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.passes.tiles.real_nets import Real
from tests.passes.tiles.running import run
from tests.passes.tiles.stages import random_stages

ROUNDING = 1e-12
"""Of values about 1: thousands of steps of double precision, far from one of single precision."""


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6))
def test_random_networks_in_double_precision(seed: int) -> None:
    draw = random.Random(seed)
    module = Real(seed, draw.randint(4, 10), (draw.randint(8, 20), draw.randint(8, 20))).eval()
    x = torch.randn(2, 4, *_size(seed)).double()
    ran = run(module, random_stages(seed), x)
    with torch.no_grad():
        for expected, found in zip(module(x), ran.results, strict=True):
            assert expected.dtype is found.dtype
            torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def _size(seed: int) -> tuple[int, int]:
    draw = random.Random(seed)
    draw.randint(4, 10)
    return draw.randint(8, 20), draw.randint(8, 20)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
