"""Local search on a schedule: take out remakes whose storages may as well stay, without passing the budget.

Taking out an execution is always valid when an earlier one wrote the same storages: the earlier instances live longer. What
only fed it goes with it. Each trial costs one range maximum of the live bytes.
"""

from __future__ import annotations

import numpy as np

from memcompile.solvers import work
from memcompile.solvers.schedule.problem import RematSchedule
from memcompile.solvers.schedule.simulate import Replay

GONE = np.int64(-(2**60))
EXECUTION_S = 1e-5


class Polisher:
    """The instances of one schedule as linked lists, and its live bytes. Positions are those of the schedule given."""

    def __init__(self, replay: Replay, schedule: RematSchedule, budget: int) -> None:
        self.replay, self.budget, self.split = replay, budget, schedule.split
        self.sequence = list(schedule.sequence)
        work.spend(EXECUTION_S * len(self.sequence))
        self.live = replay.run(schedule).live_bytes.copy()
        alive = replay.instances(np.array(schedule.sequence, dtype=np.int64))
        self.storage = alive.storage.tolist()
        self.start = alive.start.tolist()
        self.reads: list[list[int]] = [[] for _ in self.storage]
        for i, position in zip(alive.read_instance.tolist(), alive.read_position.tolist(), strict=True):
            self.reads[i].append(position)
        self.inputs: list[list[int]] = [[] for _ in self.sequence]
        for i, position in zip(alive.read_instance.tolist(), alive.read_position.tolist(), strict=True):
            self.inputs[position].append(i)
        self.outputs: list[list[int]] = [[] for _ in self.sequence]
        for i, position in enumerate(self.start):
            self.outputs[position].append(i)
        self.previous = [i - 1 if i and self.storage[i - 1] == s else -1 for i, s in enumerate(self.storage)]
        self.next = [-1] * len(self.storage)
        for i, before in enumerate(self.previous):
            if before >= 0:
                self.next[before] = i
        ops = replay.problem.ops
        self.inplace = [ops[p].inplace for p in self.sequence]
        self.sizes = replay.size.tolist()

    def end(self, i: int) -> int:
        """Last position that needs instance i."""
        return self.reads[i][-1] if self.reads[i] else self.start[i]

    def removable(self, position: int) -> bool:
        """Whether an earlier execution can serve what this one wrote (positions removed have no op, -1)."""
        if self.sequence[position] < 0 or not self.outputs[position]:
            return False
        return all(self.previous[i] >= 0 for i in self.outputs[position])

    def try_remove(self, position: int) -> float:
        """Remove the execution if the budget allows; return the seconds saved (0: left as it is)."""
        longer: list[tuple[int, int, int]] = []
        for i in self.outputs[position]:
            if self.reads[i]:
                first = self.end(self.previous[i])
                longer.append((first if self.inplace[first] else first + 1, position, self.sizes[self.storage[i]]))
        for first, last, size in longer:
            self.live[first:last] += size
        if any(last > first and int(self.live[first:last].max()) > self.budget for first, last, _ in longer):
            for first, last, size in longer:
                self.live[first:last] -= size
            return 0.0
        return self._remove(position)

    def _remove(self, position: int) -> float:
        """Take an execution out; its instances join the ones before; what only fed it goes too."""
        saved = 0.0
        stack = [position]
        while stack:
            j = stack.pop()
            if self.sequence[j] < 0:
                continue
            saved += float(self.replay.seconds[self.sequence[j]])
            self.sequence[j] = -1
            self.live[j] = GONE
            for i in self.outputs[j]:
                self._join(i)
            for i in self.inputs[j]:
                old = self.end(i)
                self.reads[i].remove(j)
                new = self.end(i)
                if not self.replay.output[self.storage[i]] or self.previous[i] >= 0:
                    self.live[new + 1 : old + 1] -= self.sizes[self.storage[i]]
                if self._unread(self.start[i]):
                    stack.append(self.start[i])
        return saved

    def _join(self, i: int) -> None:
        before, after = self.previous[i], self.next[i]
        for position in self.reads[i]:
            inputs = self.inputs[position]
            inputs[inputs.index(i)] = before
        self.reads[before] = self.reads[before] + self.reads[i]
        self.reads[i] = []
        self.next[before] = after
        if after >= 0:
            self.previous[after] = before

    def _unread(self, position: int) -> bool:
        """Whether an execution is a remake that nothing reads."""
        return self.removable(position) and not any(self.reads[i] for i in self.outputs[position])

    def schedule(self) -> RematSchedule:
        """What is left."""
        split = sum(1 for p in self.sequence[: self.split] if p >= 0)
        return RematSchedule(tuple(p for p in self.sequence if p >= 0), split)


def polish(replay: Replay, schedule: RematSchedule, budget: int, *, rounds: int = 3) -> RematSchedule:
    """Remove remakes, the most seconds per byte first, until none can go. The peak stays at most ``budget`` if it was."""
    for _ in range(rounds):
        state = Polisher(replay, schedule, budget)
        candidates: list[tuple[float, int]] = []
        for position, p in enumerate(schedule.sequence):
            if state.removable(position):
                held = sum(
                    state.sizes[state.storage[i]] * max(1, position - state.end(state.previous[i]))
                    for i in state.outputs[position]
                    if state.reads[i]
                )
                candidates.append((-float(replay.seconds[p]) / max(1, held), position))
        candidates.sort()
        saved = 0.0
        for _, position in candidates:
            if state.removable(position):
                saved += state.try_remove(position)
        better = state.schedule()
        if len(better.sequence) == len(schedule.sequence) or replay.run(better).peak_bytes > budget:
            return schedule
        schedule = better
        if saved <= 0:
            return schedule
    return schedule
