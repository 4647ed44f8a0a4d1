"""The rules of moves, checked on their own: shares no code with what plans them."""

from __future__ import annotations

from memcompile.solvers.schedule.problem import Move, RematProblem, RematSchedule


def check_moves(problem: RematProblem, schedule: RematSchedule) -> None:
    """Raise ValueError that names the move and the rule it breaks."""
    copies: dict[tuple[int, int], int] = {}
    for move in sorted(schedule.moves, key=lambda move: move.need):
        name = problem.storages[move.storage].name
        where = f"move of storage {move.storage} ({name}) after execution {move.out}"
        _check_positions(schedule, move, where)
        storage = problem.storages[move.storage]
        if storage.size_bytes != move.size_bytes:
            raise ValueError(f"{where}: {move.size_bytes} bytes of {storage.size_bytes}")
        if storage.is_output and move.out < schedule.split:
            raise ValueError(f"{where}: the forward may return it")
        writes, reads = _uses(problem, schedule, move.storage)
        made = max((position for position in writes if position <= move.out), default=-1)
        if made < 0:
            raise ValueError(f"{where}: nothing wrote it")
        if any(move.out < position <= move.need for position in writes):
            raise ValueError(f"{where}: it is written again while it is away")
        if any(move.out < position < move.need for position in reads):
            raise ValueError(f"{where}: it is read while it is away")
        if not storage.is_output and not any(position >= move.need for position in reads):
            raise ValueError(f"{where}: nothing reads it from execution {move.need} on")
        back = copies.get((move.storage, made))
        if move.copied and back is None:
            raise ValueError(f"{where}: there is no copy of it")
        if not move.copied and back is not None:
            raise ValueError(f"{where}: it is copied a second time")
        copies[move.storage, made] = move.need


def _check_positions(schedule: RematSchedule, move: Move, where: str) -> None:
    if not 0 <= move.out < move.gone <= move.back <= move.need <= len(schedule.sequence):
        raise ValueError(f"{where}: out {move.out}, gone {move.gone}, back {move.back}, need {move.need} are out of order")


def _uses(problem: RematProblem, schedule: RematSchedule, storage: int) -> tuple[list[int], list[int]]:
    """Executions that write a storage, and those that read it."""
    ops = problem.ops
    writes = [position for position, p in enumerate(schedule.sequence) if storage in ops[p].writes]
    reads = [position for position, p in enumerate(schedule.sequence) if storage in ops[p].reads]
    return writes, reads
