"""Slow, obvious counterparts of the solvers: a naive replay and an exhaustive search. They share no code with the package."""

from __future__ import annotations

import heapq

from memcompile.solvers.schedule.problem import Op, RematProblem, RematSchedule


def naive_live_bytes(problem: RematProblem, schedule: RematSchedule) -> list[int]:
    """Bytes alive during each execution, by following every instance."""
    n = len(schedule.sequence)
    instances: list[tuple[int, int, list[int]]] = []
    latest: dict[int, int] = {}
    for position, p in enumerate(schedule.sequence):
        for s in set(problem.ops[p].reads):
            instances[latest[s]][2].append(position)
        for s in problem.ops[p].writes:
            latest[s] = len(instances)
            instances.append((s, position, []))
    first = {s: i for i, (s, _, _) in reversed(list(enumerate(instances)))}
    ends = [
        n if problem.storages[s].is_output and first[s] == i else (reads[-1] if reads else start)
        for i, (s, start, reads) in enumerate(instances)
    ]
    result = []
    for position, p in enumerate(schedule.sequence):
        op = problem.ops[p]
        alive = [i for i, (_, start, _) in enumerate(instances) if start <= position <= ends[i]]
        total = problem.base_bytes + op.workspace_bytes + sum(problem.storages[instances[i][0]].size_bytes for i in alive)
        if op.inplace:
            dying = [
                problem.storages[instances[i][0]].size_bytes
                for i in alive
                if ends[i] == position and instances[i][1] < position and position in instances[i][2]
            ]
            for s in op.writes:
                if problem.storages[s].size_bytes in dying:
                    dying.remove(problem.storages[s].size_bytes)
                    total -= problem.storages[s].size_bytes
        result.append(total)
    return result


def transient(problem: RematProblem, op: Op, dying: frozenset[int]) -> int:
    """Bytes that op adds while it runs, when the reads ``dying`` die at it."""
    total = op.workspace_bytes + sum(problem.storages[s].size_bytes for s in op.writes)
    free = [problem.storages[s].size_bytes for s in dying] if op.inplace else []
    for s in op.writes:
        if problem.storages[s].size_bytes in free:
            free.remove(problem.storages[s].size_bytes)
            total -= problem.storages[s].size_bytes
    return total


State = tuple[int, int, frozenset[int], frozenset[int]]


def exhaustive(problem: RematProblem, budget: int | None) -> tuple[int, float] | None:
    """(smallest peak, 0) with no budget, else (0, least extra seconds) or None: Dijkstra over all states.

    A state is (next base op, split crossed, ops run, storages resident); dropping is free, so a storage may die at any time.
    """
    total = sum(op.seconds for op in problem.ops)
    start: State = (0, 0, frozenset(), frozenset())
    best: dict[State, float] = {start: 0.0}
    queue: list[tuple[float, int, State]] = [(0.0, 0, start)]
    counter = 0
    while queue:
        key, _, state = heapq.heappop(queue)
        if key > best[state]:
            continue
        if state[0] == len(problem.ops) and state[1] and len(state[2]) == len(problem.ops):
            return (int(key), 0.0) if budget is None else (0, key - total)
        for cost, peak, after in _moves(problem, state):
            if budget is not None and peak > budget:
                continue
            new = max(key, float(peak)) if budget is None else key + cost
            if new < best.get(after, float("inf")):
                best[after] = new
                counter += 1
                heapq.heappush(queue, (new, counter, after))
    return None


def _moves(problem: RematProblem, state: State) -> list[tuple[float, int, State]]:
    base, crossed, ran, resident = state
    storages, ops = problem.storages, problem.ops
    moves: list[tuple[float, int, State]] = []
    for s in resident:
        if not storages[s].is_output:
            moves.append((0.0, 0, (base, crossed, ran, resident - {s})))
    if base == problem.boundary and not crossed:
        moves.append((0.0, 0, (base, 1, ran, resident)))
    for p, op in enumerate(ops):
        in_order = p == base and (crossed or p < problem.boundary)
        again = p in ran and op.recomputable and not any(storages[s].is_output for s in op.writes)
        if not (in_order or again) or not set(op.reads) <= resident:
            continue
        before = resident - set(op.writes)
        held = problem.base_bytes + sum(storages[s].size_bytes for s in before)
        mortal = [s for s in set(op.reads) if not storages[s].is_output]
        for mask in range(1 << len(mortal)) if op.inplace else [0]:
            dying = frozenset(s for i, s in enumerate(mortal) if mask >> i & 1)
            peak = held + transient(problem, op, dying)
            after = (before - dying) | set(op.writes)
            moves.append((op.seconds, peak, (base + 1 if in_order else base, crossed, ran | {p}, after)))
    return moves
