"""The frontier model: what is resident at a few instants, what runs again between them.

Checkmate (Jain et al., 2020, section 4) has a stage per operation; here there are stages only at the instants that bind, added
lazily. For instant k (the first execution of op w_k), storage u written before it, and op p:

    x[k,u] = 1  u is resident when w_k runs          r[k,p] = 1  p runs again between w_k and w_(k+1)
    needed u (read from w_k on, before w_(k+1)):      x[k,u] + r[k,writer(u)] >= 1      (x = 1 for the reads of w_k)
    u read by p:                                      r[k,p] <= x[k,u] + r[k,writer(u)]
    across instants:                                  x[k+1,u] <= x[k,u] + r[k,writer(u)]
    memory:                                           sum of bytes of x[k] <= cap - outputs - what w_k adds

Every schedule within the budget gives such x and r at no more cost (its remakes between first executions), so the optimum
bounds the extra time of every schedule from below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.milp import Answer, Engine, Model, solve_model

SMALL_MODEL = 800  # variables up to which CP-SAT is the faster engine
COST_UNITS = 10_000_000  # the base order's seconds, in units of the integer objective


@dataclass(frozen=True, slots=True)
class Frontier:
    """Resident sets at instants, the model's cost, and a bound in seconds (of the model as capped)."""

    outcome: str
    resident: dict[int, frozenset[int]]
    seconds: float
    bound_seconds: float


@dataclass(slots=True)
class _Stages:
    """Variables of the model: x[k] by storage, r[k] by op; ``start[k]`` is w_k."""

    model: Model
    start: list[int]
    x: list[dict[int, int]]
    r: list[dict[int, int]]


def fixed_bytes(index: RematIndex, w: int) -> int:
    """Bytes beside resident storages when op w first runs: base, outputs written before it, and what w adds."""
    outputs = sum(size for s, size in enumerate(index.sizes) if index.output[s] and index.producer[s] < w)
    return index.problem.base_bytes + outputs + index.transient_bytes(w)


def solve_frontier(
    index: RematIndex,
    caps: Mapping[int, int],
    *,
    time_limit_s: float,
    gap_seconds: float = 0.0,
    at_least_seconds: float = 0.0,
    hint: Mapping[int, frozenset[int]] | None = None,
    seed: int = 0,
) -> Frontier:
    """Solve the frontier at instants ``caps`` (op -> bytes allowed when it first runs)."""
    unit = index.problem.total_seconds / COST_UNITS or 1.0
    stages = _stages(index, caps, unit)
    model = stages.model
    if at_least_seconds > 0:
        paying = [v for v, c in enumerate(model.cost) if c]
        model.at_most(paying, [-model.cost[v] for v in paying], -int(at_least_seconds / unit))
    hints = {v: int(s in hint[w]) for k, w in enumerate(stages.start) if hint and w in hint for s, v in stages.x[k].items()}
    engine: Engine = "cp-sat" if len(model.cost) < SMALL_MODEL and len(caps) < 3 else "scip"
    answer = solve_model(model, engine, time_limit_s=time_limit_s, gap=int(gap_seconds / unit), hint=hints, seed=seed)
    return _frontier(stages, answer, unit)


def _frontier(stages: _Stages, answer: Answer, unit: float) -> Frontier:
    resident: dict[int, frozenset[int]] = {}
    if answer.values:
        for k, w in enumerate(stages.start):
            resident[w] = frozenset(s for s, v in stages.x[k].items() if answer.values[v])
    return Frontier(answer.outcome, resident, answer.objective * unit, answer.bound * unit)


def _stages(index: RematIndex, caps: Mapping[int, int], unit: float) -> _Stages:
    start = sorted(caps)
    stages = _Stages(Model(), start, [], [])
    ends = [*start[1:], len(index.reads)]
    for rel in _needed(index, start, ends):
        _add_stage(index, stages, rel, unit)
    for k, w in enumerate(start):
        _link(index, stages, k, range(w, ends[k]))
        room = caps[w] - fixed_bytes(index, w)
        names = [v for s, v in stages.x[k].items() if not index.output[s]]
        sizes = [index.sizes[s] for s in stages.x[k] if not index.output[s]]
        stages.model.at_most(names, sizes, room)
    return stages


def _needed(index: RematIndex, start: list[int], ends: list[int]) -> list[list[int]]:
    """Per stage, the storages written before it that may matter from then on: reads of later ops, and ancestors of these."""
    needed: list[list[int]] = []
    later: set[int] = set()
    for w, end in zip(reversed(start), reversed(ends), strict=True):
        stack = [s for q in range(w, end) for s in index.reads[q]] + list(later)
        seen: set[int] = set()
        while stack:
            s = stack.pop()
            p = index.producer[s]
            if s in seen or p >= w:
                continue
            seen.add(s)
            if index.again[p]:
                stack.extend(index.reads[p])
        later = seen
        needed.append(sorted(seen))
    return needed[::-1]


def _add_stage(index: RematIndex, stages: _Stages, rel: list[int], unit: float) -> None:
    model = stages.model
    x = {s: model.add() for s in rel}
    r: dict[int, int] = {}
    for s in rel:
        p = index.producer[s]
        if p not in r and index.again[p]:
            r[p] = model.add(cost=int(index.seconds[p] / unit))
    for s in rel:
        if index.output[s]:
            model.fix(x[s])
    stages.x.append(x)
    stages.r.append(r)


def _link(index: RematIndex, stages: _Stages, k: int, ops: range) -> None:
    """Needs, parents and the step to the next instant for stage k, which runs ``ops`` (in base order)."""
    model, x, r = stages.model, stages.x[k], stages.r[k]

    def available(s: int) -> tuple[int, ...]:
        p = index.producer[s]
        return (x[s], r[p]) if p in r else (x[s],)

    direct = set(index.reads[ops.start])
    for s in direct:
        if s in x:
            model.fix(x[s])
    for s in {s for q in ops for s in index.reads[q]} - direct:
        if s in x:
            model.clause(available(s))
    for p, v in r.items():
        for s in index.reads[p]:
            model.clause(available(s), (v,))
    if k + 1 < len(stages.x):
        for s, v in stages.x[k + 1].items():
            if s in x:
                model.clause(available(s), (v,))
