"""Slow, obvious counterparts of the solvers: a naive replay and an exhaustive search. They share no code with the package."""

from __future__ import annotations

from memcompile.solvers.problem import Op, Problem, Schedule


def naive_live_bytes(problem: Problem, schedule: Schedule) -> list[int]:
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


def transient(problem: Problem, op: Op, dying: frozenset[int]) -> int:
    """Bytes that op adds while it runs, when the reads ``dying`` die at it."""
    total = op.workspace_bytes + sum(problem.storages[s].size_bytes for s in op.writes)
    free = [problem.storages[s].size_bytes for s in dying] if op.inplace else []
    for s in op.writes:
        if problem.storages[s].size_bytes in free:
            free.remove(problem.storages[s].size_bytes)
            total -= problem.storages[s].size_bytes
    return total
