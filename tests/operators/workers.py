"""A process for each piece of work, forked from one that has loaded everything; what takes too long or dies is a verdict."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

from tests.operators.cases import Entry, Sample
from tests.operators.judge import Judge, Verdict

Key = tuple[str, str, str, int]
"""Source, entry, variant, sample."""


def key_of(sample: Sample) -> Key:
    """What a sample is called in the log."""
    return sample.source, sample.entry, sample.variant, sample.index


@dataclass(frozen=True)
class Work:
    """Entries whose samples are judged in one process. ``per_entry``: so many of each; ``only``: of these keys."""

    entries: tuple[Entry, ...]
    done: frozenset[Key] = frozenset()
    per_entry: int | None = None
    only: frozenset[Key] | None = None
    single: bool = False

    def samples(self) -> list[Sample]:
        """Those that are left to judge."""
        found = [s for entry in self.entries for s in _first(entry.samples(), self.per_entry)]
        return [s for s in found if key_of(s) not in self.done and (self.only is None or key_of(s) in self.only)]


def _first(samples: list[Sample], count: int | None) -> list[Sample]:
    """So many of each variant."""
    seen: dict[str, int] = {}
    kept = []
    for sample in samples:
        seen[sample.variant] = seen.get(sample.variant, 0) + 1
        if count is None or seen[sample.variant] <= count:
            kept.append(sample)
    return kept


@dataclass
class _Child:
    work: Work
    process: int
    pipe: IO[str]
    deadline: float
    trying: list[dict[str, Any]] = field(default_factory=list)
    seen: set[Key] = field(default_factory=set)
    finished: bool = False


class Workers:
    """``jobs`` processes at a time; each batch has ``limit_s`` seconds."""

    def __init__(self, judge: Judge, jobs: int, limit_s: float) -> None:
        self.judge, self.jobs, self.limit_s = judge, jobs, limit_s

    def run(self, pieces: Sequence[Work], deadline: float = float("inf")) -> Iterator[dict[str, Any]]:
        """Rows of all samples, as they come. ``deadline``: no new piece starts after it (``time.monotonic``)."""
        waiting = list(pieces)
        running: list[_Child] = []
        while waiting or running:
            while waiting and len(running) < self.jobs and time.monotonic() < deadline:
                running.append(self._start(waiting.pop(0)))
            if not running:
                return
            ready, _, _ = select.select([child.pipe for child in running], [], [], 1.0)
            for child in list(running):
                if child.pipe in ready:
                    yield from self._read(child)
                late = time.monotonic() > child.deadline
                if late and not child.finished:
                    os.kill(child.process, signal.SIGKILL)
                if child.finished or late:
                    running.remove(child)
                    yield from self._end(child, late and not child.finished, waiting)

    def _start(self, work: Work) -> _Child:
        read, write = os.pipe()
        sys.stdout.flush()
        process = os.fork()
        if process:
            os.close(write)
            return _Child(work, process, os.fdopen(read), time.monotonic() + 2 * self.limit_s)
        os.close(read)
        code = 1
        try:
            self._judge(work, os.fdopen(write, "w", buffering=1))
            code = 0
        except BaseException:  # noqa: BLE001 - a child ends here whatever happens
            traceback.print_exc()
        finally:
            os._exit(code)

    def _judge(self, work: Work, out: IO[str]) -> None:
        def begin(samples: Sequence[Sample]) -> None:
            tried = [{"key": key_of(s), "dtype": s.dtype} for s in samples]
            print(json.dumps({"begin": tried}), file=out)

        batch = 1 if work.single else self.judge.batch
        for verdict in replace(self.judge, begin=begin, batch=batch).judge(work.samples()):
            print(json.dumps(verdict.row()), file=out)
        print(json.dumps({"end": True}), file=out)

    def _read(self, child: _Child) -> Iterator[dict[str, Any]]:
        line = child.pipe.readline()
        row: dict[str, Any] = json.loads(line) if line.endswith("\n") else {"end": False}
        if "begin" in row:
            child.trying, child.deadline = row["begin"], time.monotonic() + self.limit_s
        elif "end" in row:
            child.finished = True
            if row["end"]:
                child.trying = []
        else:
            key = row["source"], row["entry"], row["variant"], row["sample"]
            child.seen.add(key)
            yield row

    def _end(self, child: _Child, late: bool, waiting: list[Work]) -> Iterator[dict[str, Any]]:
        """Reap; judge what is left in new processes, the batch that it ended in sample by sample."""
        child.pipe.close()
        _, status = os.waitpid(child.process, 0)
        lost = [one for one in child.trying if tuple(one["key"]) not in child.seen]
        if not child.trying and status == 0:
            return
        keys = frozenset(tuple(one["key"]) for one in lost)
        done = child.work.done | frozenset(child.seen)
        if len(lost) > 1:
            waiting.insert(0, replace(child.work, done=done, only=keys, single=True))
        for one in lost if len(lost) == 1 else ():
            source, entry, variant, index = one["key"]
            result = "timeout" if late else "died"
            reason = f"after {self.limit_s:.0f} s" if late else f"status {status}"
            about = (source, entry, variant, index, one["dtype"])
            yield Verdict(*about, "", self.judge.level, self.judge.budget, result, reason, grad=self.judge.grad).row()
        if lost:
            waiting.insert(1 if len(lost) > 1 else 0, replace(child.work, done=done | keys))
