"""What is allocated in a step, by whomever: PyTorch's profiler looks at one step of those that are planned together.

Compiled graphs know what they take; what runs between them, eager, nobody does. CPU and CUDA alike: the profiler reports each
call of the allocator. Whether a thread is profiled is the thread's own, and a backward gives it back as it was: a profiler that
is ended inside of one would go on. So it is ended as the backward returns to Python.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._profiler import _ExtraFields_Allocation, _ProfilerEvent

MARK = "memcompile event"


@dataclass(frozen=True)
class AllocationEvent:
    """One call of the allocator: `size_bytes` is positive when the block at `address` is made, negative when it is freed."""

    time_ns: int
    address: int
    size_bytes: int


def allocations(tree: Iterable[_ProfilerEvent], device_type: str = "cpu") -> list[AllocationEvent]:
    """The allocator's events on its threads, in order of time."""
    events = [
        AllocationEvent(event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size)
        for event in walk(tree)
        if isinstance(event.extra_fields, _ExtraFields_Allocation) and event.extra_fields.device.type == device_type
    ]
    return sorted(events, key=lambda event: event.time_ns)


def walk(events: Iterable[_ProfilerEvent]) -> Iterator[_ProfilerEvent]:
    """Events, each followed by those inside."""
    for event in events:
        yield event
        yield from walk(event.children)


class Watch:
    """The profiler from here to ``end``. Events of the step are marked as they come."""

    def __init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler otherwise prints its start and stop to stderr
        self.thread = threading.get_ident()
        self.marks = 0
        self.after: Callable[[], None] | None = None
        self.patch = contextlib.ExitStack()
        self.patch.enter_context(_replaced(self._backward))
        self.profile = torch.autograd.profiler.profile(use_cpu=True, profile_memory=True)
        self.profile.__enter__()  # type: ignore[no-untyped-call]

    @classmethod
    def begin(cls) -> Watch | None:
        """None where another profiler runs."""
        return None if torch.autograd._profiler_enabled() else cls()  # type: ignore[attr-defined]

    def _backward(self, engine: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return engine(*args, **kwargs)
        finally:
            if self.after is not None and self.is_outside:
                self.after()

    @property
    def is_outside(self) -> bool:
        """Whether it can be ended here."""
        return self.thread == threading.get_ident() and torch._C._current_graph_task_id() == -1

    def mark(self) -> None:
        """An event of the step."""
        with torch.autograd.profiler.record_function(MARK):
            self.marks += 1

    def end(self, device_type: str) -> list[int] | None:
        """The most bytes allocated since the beginning, from each mark to the next; None where marks were lost."""
        self.patch.close()
        self.profile.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        results = self.profile.kineto_results
        if results is None:
            return None
        tree = results.experimental_event_tree()
        marks = sorted(event.start_time_ns for event in walk(tree) if event.name == MARK)
        return levels(marks, allocations(tree, device_type)) if len(marks) == self.marks else None


@contextlib.contextmanager
def _replaced(backward: Callable[..., Any]) -> Iterator[None]:
    """While active, what runs every backward is ``backward``, which is given what it stands for."""
    autograd: Any = torch.autograd
    engine = autograd._engine_run_backward
    autograd._engine_run_backward = functools.partial(backward, engine)
    try:
        yield
    finally:
        autograd._engine_run_backward = engine


def levels(marks: Sequence[int], events: Sequence[AllocationEvent]) -> list[int]:
    """The highest running sum from each mark to the next. What was not made here is not counted as it goes."""
    found = [0] * len(marks)
    counted: dict[int, int] = {}
    level = place = 0
    for event in events:
        while place < len(marks) and marks[place] <= event.time_ns:
            found[place] = level
            place += 1
        if event.size_bytes > 0:
            counted[event.address] = event.size_bytes
            level += event.size_bytes
        else:
            level -= counted.pop(event.address, 0)
        if place:
            found[place - 1] = max(found[place - 1], level)
    for rest in range(place, len(marks)):
        found[rest] = level
    return found
