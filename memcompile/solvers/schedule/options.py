"""Ways to run one block: what it saves for its backward, what its backward holds, and the seconds it runs again."""

from __future__ import annotations

from dataclasses import dataclass

from memcompile.solvers import work
from memcompile.solvers.schedule.blocks import BlockPart
from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.evict import CapExceededError, decode_capped
from memcompile.solvers.schedule.frontier import fixed_bytes, solve_frontier
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.polish import polish
from memcompile.solvers.schedule.problem import RematSchedule
from memcompile.solvers.schedule.simulate import Replay

SAVED_SHARES = (0.0, 0.15, 0.35, 0.55, 0.75)
VARIANTS = ((0.25, 1), (0.0, 1))  # distance power and order of the greedy decoder
LARGE_PART = 150  # ops above which fewer variants are tried
PEAK_SHARES = (0.08, 0.3)


@dataclass(frozen=True, slots=True)
class BlockOption:
    """One way: ``saved`` (storages of the part, beside its inputs) and ``backward`` (ops of the part after the split).

    ``saved_bytes`` and ``peak_bytes`` (highest in the block's own backward) leave out the inputs.
    """

    saved: tuple[int, ...]
    backward: tuple[int, ...]
    saved_bytes: int
    peak_bytes: int
    extra_seconds: float


def block_options(part: BlockPart, seed: int, deadline: float) -> tuple[BlockOption, ...]:
    """A Pareto front of options: (saved bytes, peak, extra seconds), each optimised on the part alone.

    ``deadline`` (of ``work.now``): fewer options after it, at least the one that saves everything.
    """
    index, replay = RematIndex.of(part.problem), Replay(part.problem)
    base = decode(index)
    full = _measure(part, index, replay, base)
    options = [full]
    for share in SAVED_SHARES:
        if work.now() > deadline:
            break
        saved = int(share * full.saved_bytes)
        options += _with_saved(part, index, replay, saved, full, seed)
    return _pareto(options)


def _with_saved(
    part: BlockPart, index: RematIndex, replay: Replay, saved: int, full: BlockOption, seed: int
) -> list[BlockOption]:
    """Options that save at most ``saved`` bytes: the lazy one, then tighter and tighter backward peaks."""
    cap = fixed_bytes(index, part.phantom) + saved
    found = solve_frontier(index, {part.phantom: cap}, time_limit_s=0.1, seed=seed)
    options: list[BlockOption] = []
    if found.resident:
        options.append(_measure(part, index, replay, decode(index, found.resident)))
    top = max((o.peak_bytes for o in options), default=full.peak_bytes)
    low, high = 0, top
    tightest = None
    for _ in range(6 if len(index.reads) <= LARGE_PART else 4):
        peak = (low + high) // 2
        option = _capped(part, index, replay, saved, peak)
        if option is None:
            low = peak
        else:
            high, tightest = min(peak, option.peak_bytes), option
            options.append(option)
    if tightest is not None:
        for share in PEAK_SHARES:
            option = _capped(part, index, replay, saved, int(tightest.peak_bytes + share * (top - tightest.peak_bytes)))
            if option is not None:
                options.append(option)
    return options


def _capped(part: BlockPart, index: RematIndex, replay: Replay, saved: int, peak: int) -> BlockOption | None:
    """An option with at most ``saved`` bytes at the phantom, where later blocks hold the rest, and ``peak`` in the backward."""
    budget = part.external_bytes + max(peak, saved)
    later = max(0, peak - saved)
    index, replay = index.with_workspace(part.phantom, later), replay.with_workspace(part.phantom, later)
    best: BlockOption | None = None
    for power, order in VARIANTS if len(index.reads) <= LARGE_PART else VARIANTS[:1]:
        try:
            schedule = decode_capped(index, budget, max_executions=6 * len(index.reads), distance_power=power, order=order)
        except CapExceededError:
            continue
        option = _measure(part, index, replay, polish(replay, schedule, budget))
        if best is None or option.extra_seconds < best.extra_seconds:
            best = option
    return best


def _measure(part: BlockPart, index: RematIndex, replay: Replay, schedule: RematSchedule) -> BlockOption:
    timeline = replay.run(schedule)
    saved = tuple(s for s in timeline.saved if index.producer[s] != 0)
    start = next(i for i, p in enumerate(schedule.sequence) if p == part.phantom)
    after = timeline.live_bytes[start + 1 :]
    return BlockOption(
        saved=saved,
        backward=tuple(p for p in schedule.sequence[schedule.split :] if part.ops[p] >= 0),
        saved_bytes=sum(index.sizes[s] for s in saved),
        peak_bytes=int(after.max()) - part.external_bytes if len(after) else 0,
        extra_seconds=timeline.extra_seconds,
    )


def _pareto(options: list[BlockOption]) -> tuple[BlockOption, ...]:
    """Options that no other option beats in all three numbers."""
    front: list[BlockOption] = []
    for o in sorted(options, key=lambda o: (o.extra_seconds, o.saved_bytes, o.peak_bytes)):
        if not any(q.saved_bytes <= o.saved_bytes and q.peak_bytes <= o.peak_bytes for q in front):
            front.append(o)
    return tuple(front)
