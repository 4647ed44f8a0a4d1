"""Operators of a network as a report shows them: how large, and how much of each is there at once in a plan."""

from __future__ import annotations

from memcompile.passes.tiles.figure import PatchOperator
from memcompile.passes.tiles.network import Network
from memcompile.solvers.tiling.intervals import Tile, tiles
from memcompile.solvers.tiling.memory import cost
from memcompile.solvers.tiling.problem import Stage, TilingProblem, TilingSolution
from memcompile.solvers.tiling.stages import members, results
from memcompile.step.fxutil import source_of


def described(network: Network, solution: TilingSolution) -> tuple[PatchOperator, ...]:
    """All operators of the network, in order."""
    problem = network.problem
    held = [operator.size_bytes for operator in problem.operators]
    for stage in solution.stages:
        if stage.kind != "layerwise":
            _hold_tiles(problem, stage, held)
    return tuple(
        PatchOperator(
            operator.name,
            operator.kind,
            operator.height,
            operator.width,
            operator.pixel_bytes,
            layerwise_bytes(problem, index, index + 1),
            held[index],
            source_of(network.values[index]),
        )
        for index, operator in enumerate(problem.operators)
    )


def layerwise_bytes(problem: TilingProblem, first: int, last: int) -> int:
    """The peak of operators ``first`` up to ``last`` (exclusive) of a network that runs layer by layer."""
    return cost(problem, Stage(first, last, "layerwise")).peak_bytes


def _hold_tiles(problem: TilingProblem, stage: Stage, held: list[int]) -> None:
    """Set ``held`` of the stage's own operators to the most that a tile has of them; results are whole."""
    inside = set(members(problem, stage)) - set(results(problem, stage)) - set(stage.again)
    run = tiles(problem, stage)
    for index in inside:
        held[index] = min(held[index], max(_tile_bytes(problem, tile, index) for tile in run))


def _tile_bytes(problem: TilingProblem, tile: Tile, index: int) -> int:
    """Bytes of what a tile makes, and of the rows that it finds."""
    operator = problem.operators[index]
    made = tile.made[index].pixels if index in tile.made else 0
    kept = tile.kept_before[index].length * operator.width if index in tile.kept_before else 0
    return (made + kept) * operator.pixel_bytes
