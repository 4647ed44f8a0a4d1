"""Which stages of a graph run tile by tile: by the planner's model first, then by the exact peak of the lowered code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from memcompile.logs import get_logger
from memcompile.passes.tiles.apply import Compile, Patched, apply
from memcompile.passes.tiles.describe import described, layerwise_bytes
from memcompile.passes.tiles.figure import PatchReport, PatchStage
from memcompile.passes.tiles.network import Network, network_of
from memcompile.passes.tiles.planes import NotLocalError
from memcompile.passes.tiles.wrapping import gather_copies
from memcompile.solvers.tiling.lives import ResultLives
from memcompile.solvers.tiling.problem import FREE, Prices, TilingSolution
from memcompile.solvers.tiling.search import LimitError, TilingSearch
from memcompile.step.fxutil import copied, op_name, source_of
from memcompile.streaming.rules import NotRowLocalError

log = get_logger(__name__)

MAX_ATTEMPTS = 6
"""Plans that are lowered before the smallest of them is taken."""
SLACK = 1.05
"""What a plan may take above the smallest peak when that saves tiles."""
TIME_SLACK = 0.1
"""What a plan may take, as a share of the time layer by layer, beside the overhead that is allowed: starts and copies."""
LARGE = 0.8
"""Share of the peak from which an operator that is only made at once is in the way."""


@dataclass(frozen=True, slots=True)
class Wish:
    """``room_bytes``: what the lowered graph may take, all that is alive at entry included; or ``max_overhead``."""

    room_bytes: int | None = None
    max_overhead: float | None = None


@dataclass(frozen=True, slots=True)
class Tiled:
    """``gm``: the graph with its tiled stages; None: it stays as it is. ``peak_bytes``: as lowered."""

    gm: fx.GraphModule | None
    patched: tuple[Patched, ...]
    report: PatchReport
    peak_bytes: int
    base_peak_bytes: int


@dataclass(frozen=True, slots=True)
class TileTools:
    """``peak_of``: exact peak of a graph as Inductor lowers it. ``trial``: lowers a body without compiling it; ``compiler``:
    for good (the same in a dry run, ``dry``). ``prices``: of what takes time beside multiply-adds. ``time_limit_s``: seconds by
    ``clock`` that looking for stages may take."""

    peak_of: Callable[[fx.GraphModule], tuple[int, int]]
    trial: Compile
    compiler: Compile
    dry: bool = False
    prices: Prices = FREE
    time_limit_s: float = math.inf
    clock: Callable[[], float] = time.monotonic


def tile(gm: fx.GraphModule, wish: Wish, tools: TileTools, bytes_per_element: int | None = None) -> Tiled | None:
    """The best stages for a graph; None where no convolution reads an image, or it fits as it is.

    With ``bytes_per_element`` nothing is lowered: the report says what a microcontroller would need.
    """
    started = time.perf_counter()
    gathered = _gathered(gm)
    try:
        network = network_of(gathered.graph, bytes_per_element)
    except NotLocalError as error:
        return Tiled(
            None, (), PatchReport((), 0, 0, 0, 0, "heuristic", time.perf_counter() - started, refused=str(error)), 0, 0
        )
    if network is None:
        return None
    if bytes_per_element is not None:
        solution = _plan(_search(network, tools, FREE), wish.room_bytes, wish)
        return Tiled(None, (), _report(network, solution, time.perf_counter() - started, bytes_per_element), 0, 0)
    base, entry = tools.peak_of(gm)
    if wish.room_bytes is not None and base <= wish.room_bytes:
        return None
    search = _search(network, tools, tools.prices)
    best = _attempts(gathered, search, wish, tools, base, entry)
    seconds = time.perf_counter() - started
    if best is None or best[1] >= base:
        solution = search.smallest(0.0) if best is None else best[0]
        return Tiled(
            None, (), _report(network, solution, seconds, 0, f"no stages have a smaller peak{_obstacle(network)}"), base, base
        )
    solution, peak = best
    done, patched = _applied(gathered, solution, tools.compiler, tools.dry)
    return Tiled(done, tuple(patched), _report(network, solution, seconds, 0), peak, base)


def _gathered(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy with circular padding as one operator; the graph itself where there is none."""
    if not any(op_name(node) == "slice_scatter" for node in gm.graph.nodes):
        return gm
    copy = copied(gm)
    if gather_copies(copy.graph):
        copy.recompile()
        return copy
    return gm


def _search(network: Network, tools: TileTools, prices: Prices) -> TilingSearch:
    """The stages of a network, as far as the time limit allows."""
    end = tools.clock() + tools.time_limit_s
    return TilingSearch(network.problem, prices=prices, left=lambda: end - tools.clock())


def _obstacle(network: Network) -> str:
    """What is only made at once where most is alive, if it is that which leaves nothing to tiles."""
    operators = network.problem.operators
    alive = ResultLives(network.problem).layerwise_bytes
    whole = [index for index, operator in enumerate(operators) if operator.kind == "whole"]
    at = max(whole, key=lambda index: alive[index], default=None)
    if at is None or alive[at] < LARGE * max(alive):
        return ""
    reason = next((why for part in network.inner[at] if (why := network.refused.get(part))), "")
    source = source_of(network.values[at])
    return f": {operators[at].name}{f' ({source})' if source else ''} is only made at once{f', {reason}' if reason else ''}"


def _attempts(
    gm: fx.GraphModule, search: TilingSearch, wish: Wish, tools: TileTools, base: int, entry: int
) -> tuple[TilingSolution, int] | None:
    """The plan to take, and its exact peak: within the room the first that keeps it, else the smallest."""
    best: tuple[TilingSolution, int] | None = None
    tried: set[tuple[object, ...]] = set()
    target = None if wish.room_bytes is None else wish.room_bytes - entry
    for _ in range(MAX_ATTEMPTS):
        solution = _plan(search, target, wish)
        if solution.stages in tried:
            break
        tried.add(solution.stages)
        try:
            tiled, _patched = _applied(gm, solution, tools.trial, dry=True)
        except (NotLocalError, NotRowLocalError) as error:
            log.info("stages are given up: %s", error)
            break
        exact, _ = tools.peak_of(tiled)
        log.info("stages: %d by the model, %d as lowered, of %s", solution.peak_bytes + entry, exact, wish.room_bytes or base)
        if best is None or exact < best[1]:
            best = solution, exact
        if target is None or wish.room_bytes is None or exact <= wish.room_bytes:
            break
        target = min(target, solution.peak_bytes) - max(1, exact - wish.room_bytes)
    return best


def _plan(search: TilingSearch, target: int | None, wish: Wish) -> TilingSolution:
    """Within the target the fastest, or the smallest there is; without one the fastest near the smallest."""
    if target is None:
        most = wish.max_overhead or 0.0
        if search.prices == FREE:
            return search.smallest(most)
        smallest = search.smallest(most, most + TIME_SLACK)
        faster = search.within(int(SLACK * smallest.peak_bytes))
        return faster if faster.overhead <= max(smallest.overhead, most) else smallest
    try:
        return search.within(max(1, target))
    except LimitError as error:
        return error.floor


def _applied(
    gm: fx.GraphModule, solution: TilingSolution, compiler: Compile, dry: bool
) -> tuple[fx.GraphModule, list[Patched]]:
    """A copy of the graph with the stages in place."""
    copy = copied(gm)
    network = network_of(copy.graph)
    assert network is not None
    return copy, apply(copy, network, solution, compiler, dry=dry)


def _report(
    network: Network, solution: TilingSolution, seconds: float, bytes_per_element: int, refused: str = ""
) -> PatchReport:
    operators = network.problem.operators
    stages = tuple(
        PatchStage(
            stage.kind,
            stage.grid,
            operators[stage.first].name,
            operators[stage.last - 1].name,
            stage.last - stage.first,
            stage.peak_bytes,
            stage.macs,
            source_of(network.values[stage.last - 1]),
            tuple(operators[index].name for index in stage.again),
            layerwise_bytes(network.problem, stage.first, stage.last),
        )
        for stage in solution.stages
    )
    return PatchReport(
        stages,
        solution.peak_bytes,
        solution.macs,
        solution.base_peak_bytes,
        solution.base_macs,
        solution.status,
        seconds,
        bytes_per_element,
        solution.frontier,
        refused,
        described(network, solution),
    )
