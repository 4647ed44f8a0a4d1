"""What no order can avoid: bytes that are alive around each kernel wherever it runs."""

from __future__ import annotations

import numpy as np

from memcompile.solvers.order.ordering import OrderProblem


def lower_bound(problem: OrderProblem) -> int:
    """No allowed order has a smaller peak. Time and memory grow with kernels times storages.

    While a kernel runs, these are alive in any order: what it touches, what is touched both before and behind it, what is alive
    at the end and touched before it, what is alive at the start and touched behind it. Less what it may write over. At the end
    everything that stays is alive.
    """
    at_end = sum(storage.size_bytes for storage in problem.storages if storage.at_end)
    count = len(problem.kernels)
    if not count:
        return max(problem.entry_bytes, at_end)
    live = np.zeros(8 * ((count + 7) // 8), dtype=np.int64)
    everything = (1 << count) - 1
    for storage, touchers in zip(problem.storages, problem.touchers, strict=True):
        if storage.size_bytes:
            live += np.int64(storage.size_bytes) * _bits(
                _around(problem, storage.at_start, storage.at_end, touchers, everything), count
            )
    scratch = np.zeros_like(live)
    for k, kernel in enumerate(problem.kernels):
        scratch[k] = kernel.scratch_bytes - _written_over(problem, k)
    return max(problem.entry_bytes, at_end, int((live + scratch).max()))


def _around(problem: OrderProblem, at_start: bool, at_end: bool, touchers: int, everything: int) -> int:
    """The kernels that run while the storage is alive, in any order, as bits."""
    if at_start and at_end:
        return everything
    behind = everything if at_start else 0
    before = everything if at_end else 0
    mask = touchers
    while mask and not (at_start and at_end):
        lowest = mask & -mask
        k = lowest.bit_length() - 1
        behind |= problem.behind[k]
        before |= problem.before[k]
        mask ^= lowest
    return touchers | (behind & before)


def _written_over(problem: OrderProblem, k: int) -> int:
    """The most bytes that kernel ``k`` need not allocate because it writes over what it reads as the last one."""
    saved = 0
    for s, candidates in problem.kernels[k].inplace:
        if any(not problem.touchers[c] & problem.behind[k] for c in candidates):
            saved += problem.storages[s].size_bytes
    return saved


def _bits(mask: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    data = np.frombuffer(mask.to_bytes((count + 7) // 8, "little"), dtype=np.uint8)
    return np.unpackbits(data, bitorder="little")
