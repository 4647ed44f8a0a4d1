"""Random stages of a network that tiles can run."""

from __future__ import annotations

import random
from collections.abc import Callable

from memcompile.passes.tiles.network import Network
from memcompile.solvers.tiling.problem import Stage
from memcompile.solvers.tiling.stages import StageError, check_tiled, results


def random_stages(seed: int) -> Callable[[Network], tuple[Stage, ...]]:
    """Stages from the first operator on, tiled where they can be."""
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
