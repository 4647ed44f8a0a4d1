"""Plans against all plans of tiny networks, and the figures of known networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcompile.solvers.tiling import paths, ranges
from memcompile.solvers.tiling.again import choices, variants
from memcompile.solvers.tiling.grids import Periods
from memcompile.solvers.tiling.layers import PatchLayers, StripLayers
from memcompile.solvers.tiling.lives import ResultLives
from memcompile.solvers.tiling.memory import cost, costed
from memcompile.solvers.tiling.problem import FREE, Prices, Stage, StageKind, TilingProblem, TilingSolution
from memcompile.solvers.tiling.search import LimitError, TilingSearch
from memcompile.solvers.tiling.stages import StageError, members, results, sources
from tests.solvers.tiling.tiling_nets import Net, copying, decoder, mobilenet_v2, random_problem, unet

KIB = 1024
KINDS: tuple[StageKind, ...] = ("patches", "rows")


def planned(
    problem: TilingProblem,
    *,
    limit_bytes: int | None = None,
    max_overhead: float = 0.0,
    kinds: tuple[StageKind, ...] = KINDS,
    prices: Prices = FREE,
    max_delay: float = math.inf,
) -> TilingSolution:
    """The least time ``within`` a limit, or the ``smallest`` peak with an overhead."""
    search = TilingSearch(problem, kinds, prices)
    return search.smallest(max_overhead, max_delay) if limit_bytes is None else search.within(limit_bytes)


def check(problem: TilingProblem, solution: TilingSolution) -> None:
    """Stages cover the order, what they read from outside is there, and their costs are those of a replay."""
    there = {index for index, x in enumerate(problem.operators) if x.kind == "input"}
    run: list[int] = []
    for stage in solution.stages:
        assert set(sources(problem, stage)) <= there
        there.update(results(problem, stage))
        run.extend(index for index in members(problem, stage) if index not in stage.again)
        assert len(set(members(problem, stage))) == len(members(problem, stage))
    assert run == [index for index, x in enumerate(problem.operators) if x.kind != "input"]
    assert set(problem.outputs) <= there
    assert costed(problem, solution.stages) == solution.stages
    assert solution.peak_bytes == max(stage.peak_bytes for stage in solution.stages)
    assert solution.macs == sum(stage.macs for stage in solution.stages)
    neighbours = zip(solution.stages, solution.stages[1:], strict=False)
    assert not any(a.kind == b.kind == "layerwise" and not b.again for a, b in neighbours)


def every_plan(problem: TilingProblem) -> set[tuple[int, int]]:
    """(peak, multiply-adds) of all ways to cut the order into stages, on the grids that the search tries."""
    count = len(problem.operators)
    plans: list[set[tuple[int, int]]] = [{(0, 0)}]
    for cut in range(1, count + 1):
        last = problem.operators[cut - 1]
        root = last.reads[0].source if last.kind == "reduction" else cut - 1
        tallest = max(x.height for x in problem.operators[:cut])
        grids = [
            *PatchLayers(problem, root, Periods(problem)).grids,
            *StripLayers(problem, root, tallest, Periods(problem)).grids,
        ]
        found = set()
        for first in range(cut):
            layerwise = cost(problem, Stage(first, cut, "layerwise"))
            costs = [layerwise]
            for kind, down, across in grids:
                try:
                    x = cost(problem, Stage(first, cut, kind, (down, across)))
                except StageError:
                    continue
                costs += [x] if x.peak_bytes < layerwise.peak_bytes else []
            found |= {(max(peak, x.peak_bytes), macs + x.macs) for peak, macs in plans[first] for x in costs}
        plans.append({p for p in found if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in found)})
    return plans[-1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6), st.booleans())
def test_plans_of_tiny_networks_are_the_best(seed: int, count: int, copies: bool) -> None:
    problem = copying(random_problem(seed, count, 6), seed) if copies else random_problem(seed, count, 6)
    count = len(problem.operators)
    if any(x.kind == "reduction" and problem.operators[x.reads[0].source].kind == "input" for x in problem.operators):
        return
    if any(ResultLives(problem).folded(index) for index in range(count)):
        return
    everything = every_plan(problem)
    smallest = min(everything)
    for limit in {peak for peak, _ in everything}:
        solution = planned(problem, limit_bytes=limit)
        check(problem, solution)
        assert solution.peak_bytes <= limit
        best = min(macs for peak, macs in everything if peak <= limit)
        assert solution.macs <= best
        if not choices(ResultLives(problem)):
            assert solution.macs == best
    base = cost(problem, Stage(0, count, "layerwise")).macs
    solution = planned(problem, max_overhead=0.2)
    assert solution.peak_bytes <= min(peak for peak, macs in everything if macs <= 1.2 * base)
    assert solution.overhead <= 0.2
    with pytest.raises(LimitError) as raised:
        planned(problem, limit_bytes=0)
    assert raised.value.floor.peak_bytes <= smallest[0]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 24), st.booleans())
def test_plans_hold_what_they_say(seed: int, count: int, copies: bool) -> None:
    problem = copying(random_problem(seed, count, 8), seed) if copies else random_problem(seed, count, 8)
    for overhead in (0.0, 0.5):
        solution = planned(problem, max_overhead=overhead)
        check(problem, solution)
        assert solution.overhead <= overhead
        assert solution.peak_bytes <= solution.base_peak_bytes
        assert list(solution.frontier) == sorted(solution.frontier)
    assert planned(problem, limit_bytes=solution.peak_bytes).macs <= solution.macs


def test_a_network_that_cannot_gain_stays_layerwise() -> None:
    net = Net()
    x = net.conv(net.image(8, 8, 64, held=True), 4, 1)
    problem = net.problem(net.whole(net.conv(x, 4, 1), 1, 1, 10))
    for solution in (planned(problem, max_overhead=1.0), planned(problem, limit_bytes=1 << 20)):
        assert [(s.first, s.last, s.kind) for s in solution.stages] == [(1, 4, "layerwise")]
        check(problem, solution)


def test_enough_memory_leaves_the_network_layerwise() -> None:
    problem = unet(32, 4, 2)
    solution = planned(problem, limit_bytes=1 << 30)
    assert [s.kind for s in solution.stages] == ["layerwise"]
    assert solution.macs == solution.base_macs


def test_starts_that_cost_make_for_fewer_tiles() -> None:
    problem = mobilenet_v2(0.35, 96)
    limit = planned(problem, max_overhead=0.0).peak_bytes * 5 // 4
    free, dear = (planned(problem, limit_bytes=limit, prices=Prices(macs)) for macs in (0, 1_000_000))
    check(problem, dear)
    tiles = [sum(s.grid[0] * s.grid[1] * (s.last - s.first) for s in x.stages if s.kind != "layerwise") for x in (free, dear)]
    assert tiles[1] < tiles[0] and dear.macs >= free.macs


@pytest.mark.parametrize("overhead", [0.0, 0.1])
def test_starts_choose_among_plans_of_equal_peak(overhead: float) -> None:
    saved, run_macs = 0, 10_000
    for problem in (mobilenet_v2(0.35, 96), unet(32, 4, 2), copying(mobilenet_v2(0.35, 96))):
        free, dear = (planned(problem, max_overhead=overhead, prices=Prices(macs)) for macs in (0, run_macs))
        check(problem, dear)
        assert dear.peak_bytes == free.peak_bytes < free.base_peak_bytes
        assert dear.overhead <= overhead
        assert dear.macs + run_macs * runs(dear) <= free.macs + run_macs * runs(free)
        saved += runs(free) - runs(dear)
    assert saved > 0


def runs(solution: TilingSolution) -> int:
    """Starts of operators in tiles."""
    return sum(s.grid[0] * s.grid[1] * (s.last - s.first + len(s.again)) for s in solution.stages)


def test_skips_of_a_unet_are_made_again() -> None:
    problem = unet(128, 8, 3)
    kept = planned(problem, max_overhead=0.0)
    again = planned(problem, max_overhead=0.5)
    check(problem, kept)
    check(problem, again)
    assert any(stage.again for stage in again.stages)
    assert again.peak_bytes < kept.peak_bytes < again.base_peak_bytes


def test_what_a_mean_normalises_is_made_twice() -> None:
    problem = decoder(32, 16)
    kept = planned(problem, max_overhead=0.0)
    again = planned(problem, max_overhead=0.5)
    check(problem, again)
    assert any(problem.operators[i].kind == "reduction" for s in again.stages if s.dropped for i in range(s.first, s.last))
    assert again.peak_bytes < kept.peak_bytes


def test_copies_are_parted_neither_from_readers_nor_merged_with_originals() -> None:
    problem = unet(32, 4, 2)
    for variant in list(variants(problem))[1:]:
        assert len(variant.origin) == len(problem.operators) + sum(variant.copied)
        for place, earlier in variant.barriers.items():
            assert variant.origin[place] == variant.origin[earlier]
            assert earlier < place and place + 1 in variant.closed


def test_the_smallest_peak_is_in_the_error() -> None:
    problem = unet(32, 4, 2)
    with pytest.raises(LimitError, match="limit of 10 bytes") as raised:
        planned(problem, limit_bytes=10)
    floor = raised.value.floor
    check(problem, floor)
    assert planned(problem, limit_bytes=floor.peak_bytes).peak_bytes == floor.peak_bytes


@pytest.mark.parametrize(
    ("width", "resolution", "overhead", "kib", "kinds", "over_lines"),
    [
        (1.0, 224, 0.0, 101.1, KINDS, False),
        (1.0, 224, 0.0, 97.6, KINDS, True),
        (1.0, 224, 0.03, 170.7, ("patches",), False),
        (1.0, 224, 0.09, 115.1, ("patches",), False),
        (1.0, 224, 0.25, 82.4, ("patches",), False),
        (0.35, 144, 0.0, 25.4, KINDS, False),
        (0.35, 144, 0.0, 24.0, KINDS, True),
        (0.35, 144, 0.09, 22.3, ("patches",), False),
        (0.35, 144, 0.09, 19.9, KINDS, False),
    ],
)
def test_mobilenet(
    width: float, resolution: int, overhead: float, kib: float, kinds: tuple[StageKind, ...], over_lines: bool
) -> None:
    """KiB in int8 at a share of multiply-adds more."""
    problem = mobilenet_v2(width, resolution, over_lines=over_lines)
    solution = planned(problem, max_overhead=overhead, kinds=kinds)
    check(problem, solution)
    assert solution.peak_bytes <= kib * KIB
    assert solution.overhead <= overhead


def test_an_overhead_is_one_of_time() -> None:
    """Tiles that take too long to start are no plan, however few multiply-adds they repeat."""
    problem = mobilenet_v2(0.35, 96)
    free = planned(problem, max_overhead=0.1)
    peaks = [planned(problem, max_overhead=0.1, prices=Prices(20_000), max_delay=d).peak_bytes for d in (0.1, 1.0, 1e9)]
    assert free.peak_bytes == peaks[-1] < peaks[0] <= free.base_peak_bytes
    assert peaks == sorted(peaks, reverse=True)


def test_copies_and_fresh_memory_are_part_of_the_time() -> None:
    problem = copying(unet(64, 8, 2))
    limit = planned(problem, max_overhead=0.0).base_peak_bytes * 3 // 4
    plain, copies, fresh = (
        planned(problem, limit_bytes=limit, prices=prices)
        for prices in (Prices(1), Prices(1, copied=100.0), Prices(1, fresh=1e4, fresh_from=problem.operators[0].size_bytes))
    )
    for solution in (plain, copies, fresh):
        check(problem, solution)
        assert solution.peak_bytes <= limit
    assert len({solution.stages for solution in (plain, copies, fresh)}) == 3
    assert fresh.peak_bytes < plain.peak_bytes


class _Clock:
    """Seconds that pass with each stage that is looked at, and with nothing else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, real = 0, ranges.tiled_ranges

        def ticking(*arguments: Any) -> Any:
            self.now += 1
            return real(*arguments)

        monkeypatch.setattr(paths, "tiled_ranges", ticking)


@pytest.mark.parametrize("limit_s", [0, 1, 3, 8])
@pytest.mark.parametrize("problem", [unet(64, 4, 3), mobilenet_v2(0.35, 96)])
def test_the_search_ends_with_its_time(problem: TilingProblem, limit_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    search = TilingSearch(problem, left=lambda: limit_s - clock.now)
    found = [search.smallest(0.5), search.floor()]
    assert clock.now <= limit_s
    found += [search.within(solution.peak_bytes) for solution in found]
    assert clock.now <= limit_s
    for solution in found:
        check(problem, solution)


def test_what_is_found_first_helps_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the cuts gives most of what all give."""
    problem, clock = mobilenet_v2(0.35, 96), _Clock(monkeypatch)
    everything = TilingSearch(problem).smallest(0.1)
    total, clock.now = clock.now, 0
    quarter = TilingSearch(problem, left=lambda: total // 4 - clock.now).smallest(0.1)
    gained = everything.base_peak_bytes - everything.peak_bytes
    assert everything.base_peak_bytes - quarter.peak_bytes >= 0.8 * gained > 0


def test_stages_are_found_once_for_all_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, clock = unet(64, 4, 3), _Clock(monkeypatch)
    search = TilingSearch(problem)
    once = clock.now
    for limit in (10**9, search.floor().peak_bytes):
        assert search.within(limit).stages == planned(problem, limit_bytes=limit).stages
    assert clock.now == 3 * once  # two more searches by plan
