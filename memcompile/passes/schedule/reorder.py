"""The order of the backward: what frees as much as it adds runs as soon as it can.

Autograd's order is that of its graph. The gradient of a weight that many steps share is often summed at the very end, and
everything that the sum reads waits for it.
"""

from __future__ import annotations

from dataclasses import replace

from memcompile.solvers.schedule.index import RematIndex
from memcompile.step.facts import Facts


def reordered(facts: Facts) -> Facts:
    """Facts with backward ops moved up to where they may run and add no byte: alone, or all that still read one storage.

    Nothing is computed twice and no sum changes its order: dependencies stay. Ops that run exactly once for their effects stay
    where they are.
    """
    order = _order(RematIndex.of(facts.problem))
    if order == sorted(order):
        return facts
    problem = replace(facts.problem, ops=tuple(facts.problem.ops[p] for p in order))
    return replace(facts, problem=problem, ops=tuple(facts.ops[p] for p in order))


def _order(index: RematIndex) -> list[int]:
    boundary, count = index.problem.boundary, len(index.reads)
    left = [set(readers) for readers in index.readers]
    done = bytearray(count)
    order: list[int] = []

    def run(p: int) -> None:
        order.append(p)
        done[p] = 1
        for s in index.reads[p]:
            left[s].discard(p)

    def may_move(p: int) -> bool:
        ready = all(done[index.producer[s]] for s in index.reads[p])
        return ready and p >= boundary and index.problem.ops[p].recomputable

    def shrinks(ops: set[int]) -> bool:
        """Whether running these, all of which may run now, leaves no more bytes than before."""
        dying = {s for p in ops for s in index.reads[p] if left[s] <= ops and not index.output[s]}
        return 0 < sum(index.sizes[s] for s in dying) >= sum(index.sizes[s] for p in ops for s in index.writes[p])

    for p in range(count):
        if done[p]:
            continue
        run(p)
        touched = [p]
        while touched and p >= boundary:
            q = touched.pop()
            for s in (*index.reads[q], *index.writes[q]):
                together = set(left[s])
                for ops in (*({r} for r in sorted(together)), together):
                    if ops and not any(done[r] for r in ops) and all(map(may_move, ops)) and shrinks(ops):
                        for r in sorted(ops):
                            run(r)
                            touched.append(r)
    return order
