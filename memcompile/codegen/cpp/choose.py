"""Which inverted residuals become which kernels: the best cuts of a run of blocks into chains and library calls.

Every cut of a run has a time (a sum over its parts) and a peak (their maximum). Cuts of the first i blocks that another one
beats in both are dropped: what is left is small, and exact by the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memcompile.codegen.cpp.chain import Link, RowChain
from memcompile.codegen.cpp.cost import library_bytes, library_seconds, rows_bytes, rows_seconds
from memcompile.codegen.cpp.kernel import generate_rows
from memcompile.codegen.triton.inverted.block import InvertedResidual
from memcompile.cost import CostModel

SLACK = 1.05
"""What a cut may take above the smallest peak when that saves time."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Blocks ``parts[i][0]`` up to ``parts[i][1]`` are one kernel each. ``seconds``, ``peak_bytes``: of the whole run."""

    seconds: float
    peak_bytes: int
    parts: tuple[tuple[int, int], ...] = ()


def cuts(
    run: Sequence[InvertedResidual],
    links: Mapping[InvertedResidual, Link],
    beside: Mapping[InvertedResidual, int],
    model: CostModel,
    threads: int,
    *,
    forced: bool = False,
) -> list[Cut]:
    """The cuts of a run that no other beats in time and peak, the fastest first.

    ``links``: of the blocks that can be in a kernel; ``forced``: then they are in one. ``beside``: bytes that are alive while a
    block runs and have no part in it.
    """
    fronts: list[list[Cut]] = [[Cut(0.0, 0)]]
    for end in range(1, len(run) + 1):
        found: list[Cut] = []
        if not (forced and run[end - 1] in links):
            alone = library_seconds(run[end - 1], model), library_bytes(run[end - 1]) + beside[run[end - 1]]
            found += [_joined(cut, *alone) for cut in fronts[end - 1]]
        for begin in reversed(range(end)):
            if run[begin] not in links:
                break
            kernel = generate_rows(RowChain(tuple(links[block] for block in run[begin:end])))
            peak = rows_bytes(kernel, threads) + max(beside[block] for block in run[begin:end])
            seconds = rows_seconds(kernel.chain, model, threads)
            found += [_joined(cut, seconds, peak, part=(begin, end)) for cut in fronts[begin]]
        fronts.append(_front(found))
    return fronts[-1]


def best_cut(front: Sequence[Cut], limit_bytes: int | None, max_overhead: float | None, usual_seconds: float) -> Cut:
    """Within the limit the fastest, or the smallest there is; without one the smallest that takes no longer than
    ``usual_seconds`` and the overhead; without an overhead the fastest."""
    if limit_bytes is not None:
        return next((cut for cut in front if cut.peak_bytes <= limit_bytes), front[-1])
    if max_overhead is None:
        return front[0]
    allowed = [cut for cut in front if cut.seconds <= (1 + max_overhead) * usual_seconds] or list(front[:1])
    return next(cut for cut in allowed if cut.peak_bytes <= SLACK * allowed[-1].peak_bytes)


def _joined(cut: Cut, seconds: float, peak: int, part: tuple[int, int] | None = None) -> Cut:
    return Cut(cut.seconds + seconds, max(cut.peak_bytes, peak), (*cut.parts, *(() if part is None else (part,))))


def _front(found: Sequence[Cut]) -> list[Cut]:
    kept: list[Cut] = []
    for cut in sorted(found, key=lambda cut: (cut.seconds, cut.peak_bytes)):
        if not kept or cut.peak_bytes < kept[-1].peak_bytes:
            kept.append(cut)
    return kept
