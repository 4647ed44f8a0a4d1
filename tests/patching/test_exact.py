"""Tiles compute what the whole network does: bit for bit on whole numbers, for every operator, kind of stage and grid."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcompile.patching.network import Network
from memcompile.solvers.tiling.problem import Stage
from memcompile.solvers.tiling.stages import StageError, check_tiled, results
from tests.patching.nets import Random
from tests.patching.running import run


def _stages(seed: int) -> object:
    """Random stages that tiles can run, from the first operator on."""
    draw = random.Random(seed)

    def choose(network: Network) -> tuple[Stage, ...]:
        count, first, found = len(network.problem.operators), 0, []
        while first < count:
            last = min(count, first + draw.randint(1, 6))
            stage = Stage(first, last, draw.choice(("patches", "rows")), (draw.randint(1, 4), draw.randint(1, 4)))
            try:
                check_tiled(network.problem, stage)
                assert all(network.problem.operators[i].kind != "input" for i in range(first, last))
                assert results(network.problem, stage)
            except (StageError, AssertionError):
                stage = Stage(first, last, "layerwise")
            found.append(stage)
            first = last
        return tuple(found)

    return choose


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6))
def test_random_networks_of_whole_numbers_are_bit_exact(seed: int) -> None:
    draw = random.Random(seed)
    module = Random(seed, draw.randint(4, 12), (draw.randint(8, 24), draw.randint(8, 24))).eval()
    x = torch.randint(0, 8, (2, 4, *_size(module, seed))).float()
    ran = run(module, _stages(seed), x)  # type: ignore[arg-type]
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
        tiled += len(run(module, _stages(seed), x).patched)  # type: ignore[arg-type]
    assert tiled > 10


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
