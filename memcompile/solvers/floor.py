"""A number of bytes that no schedule stays below.

At the first execution of op w (base order) there are alive: what w reads, what it adds, every output created before it, and for
every storage that is needed from then on: it, or what it is remade from. What cannot run again must be alive.
"""

from __future__ import annotations

from memcompile.solvers.index import Index


def floor_bound(index: Index) -> int:
    """Largest over all ops of what must be alive at the op's first execution."""
    best = index.problem.base_bytes
    outputs = 0
    pinned = _pinned_bytes(index)
    for w in range(len(index.reads)):
        if not index.deferrable[w]:
            fixed = sum(index.sizes[s] for s in index.reads[w] if not index.output[s] and not _pinned(index, s, w))
            total = index.problem.base_bytes + outputs + pinned[w] + fixed + index.transient_bytes(w)
            best = max(best, total)
        outputs += sum(index.sizes[s] for s in index.writes[w] if index.output[s])
    return best


def _pinned(index: Index, s: int, w: int) -> bool:
    """Whether s cannot be remade and is needed from w on (w comes after its writer)."""
    p = index.producer[s]
    if index.output[s] or index.again[p] or index.deferrable[p]:
        return False
    last = max((q for q in index.readers[s] if not index.deferrable[q]), default=-1)
    return last >= w


def _pinned_bytes(index: Index) -> list[int]:
    """Per op, the bytes of storages written before it that cannot be remade and are needed by it or later."""
    delta = [0] * (len(index.reads) + 2)
    for s, size in enumerate(index.sizes):
        p = index.producer[s]
        if index.output[s] or index.again[p] or index.deferrable[p]:
            continue
        last = max((q for q in index.readers[s] if not index.deferrable[q]), default=-1)
        if last > p:
            delta[p + 1] += size
            delta[last + 1] -= size
    total, result = 0, []
    for w in range(len(index.reads)):
        total += delta[w]
        result.append(total)
    return result
