"""What runs in a step: the calls of its graphs, forward and backward, in order; and the course that was planned for such a
step.

A step begins with a call while nothing waits for a backward, and ends once nothing does any more. Its tape has one record for
each call, not for each graph. A tape that is known has a course: which plan each of its calls gets. Steps that begin as one
before are taken for the same until a call differs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memcompile.runtime.profile import Event, Profile, beside, peak_of_calls
from memcompile.runtime.watch import Watch
from memcompile.solvers.calls.choose import LEAST, Share

if TYPE_CHECKING:
    from memcompile.runtime.ledger import GraphEntry, Run

MOST_CALLS = 10_000
"""Of one step. What goes on for longer, because somebody keeps results whose backward never comes, is not recorded."""
MOST_COURSES, MOST_FRESH = 64, 8
"""Courses that are remembered, and steps that wait for theirs; what was not used for longest is forgotten first."""
MOST_TRIES = 2
"""Steps in which one that was not known is waited for, so that it can be watched; then it is planned all the same."""

Name = tuple[Hashable, ...]
"""The number of a graph, and what its calls differ in. The same for calls that may be planned alike."""


class Call:
    """A graph is called. What it ran as is the ledger's; nothing is kept alive from here."""

    __slots__ = ("_entry", "_graph", "_run", "name", "sizes")

    def __init__(self, graph: Any, name: Name) -> None:
        self.name = name
        self.sizes: tuple[int, ...] = ()
        self._graph: weakref.ref[Any] = weakref.ref(graph)
        self._entry: weakref.ref[GraphEntry] | None = None
        self._run: weakref.ref[Run] | None = None

    def ran_as(self, entry: GraphEntry, run: Run, sizes: tuple[int, ...] = ()) -> None:
        """The variant that was taken, and the sizes of its inputs that differ from call to call."""
        self.sizes = sizes
        self._entry, self._run = weakref.ref(entry), weakref.ref(run)

    @property
    def graph(self) -> Any:
        """None when it is gone."""
        return self._graph()

    @property
    def entry(self) -> GraphEntry | None:
        """None when it is gone, or before it ran."""
        return None if self._entry is None else self._entry()

    @property
    def run(self) -> Run | None:
        """None when it is gone, or before it ran."""
        return None if self._run is None else self._run()


@dataclass(eq=False, slots=True)
class Tape:
    """One step. ``planned``: the course that it was taken for, None where none was known, or a call differed. ``watch``: what
    looks at it; ``beside``: what it saw that was alive after each event and is not the graphs'. ``spoilt``: something was
    compiled; ``wanted``: somebody has a budget; ``over``: of each name the last call whose backward has run.
    """

    calls: list[Call] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    planned: Course | None = None
    watch: Watch | None = None
    beside: tuple[int, ...] | None = None
    spoilt: bool = False
    wanted: bool = False
    over: dict[Name, int] = field(default_factory=dict)

    @property
    def kind(self) -> Hashable:
        """The same for steps that may be planned alike."""
        return tuple(call.name for call in self.calls), tuple(self.events)

    @property
    def runs(self) -> list[Run]:
        """What its calls ran as; none where one of them is gone, or has not begun."""
        runs = [run for call in self.calls if (run := call.run) is not None]
        return runs if len(runs) == len(self.calls) else []

    @property
    def profiles(self) -> list[Profile]:
        """Of its calls, with what is known of what they returned."""
        return [run.profile.keeping(run.seen.kept_bytes) for run in self.runs]

    @property
    def peak_bytes(self) -> int:
        """As its calls were compiled."""
        return peak_of_calls(self.profiles, self.events, self.beside or ())

    def note(self, what: str, call: int) -> None:
        """An event."""
        if what == "backward":
            self.over[self.calls[call].name] = call
        if len(self.events) < 4 * MOST_CALLS:
            self.events.append((what, call))
            if self.watch is not None:
                self.watch.mark()

    def look(self) -> None:
        """The step is over: what was watched, now or as the backward returns."""
        if self.watch is not None and self.watch.is_outside:
            self._stop()
        elif self.watch is not None:
            self.watch.after = self._stop

    def _stop(self) -> None:
        watch, self.watch = self.watch, None
        levels, profiles = None if watch is None else watch.end(self.device_type), self.profiles
        if levels is not None and profiles and not self.spoilt and len(levels) == len(self.events):
            self.beside = beside(profiles, self.events, levels)

    @property
    def device_type(self) -> str:
        """Of its graphs."""
        return next((run.report.device.split(":")[0] for run in self.runs), "cpu")


Planner = Callable[[Tape], "Course | None"]


@dataclass(eq=False, slots=True)
class Course:
    """A step whose calls were planned together. ``sizes``: that they were planned with. ``shares``: of each call; None: the
    graph's own plan. ``plan``: what else they could get (``compiling/run.py``)."""

    names: tuple[Name, ...]
    events: tuple[Event, ...]
    sizes: tuple[tuple[int, ...], ...]
    shares: list[Share | None]
    tape: Tape
    plan: Any


class Tapes:
    """The tape of the step under way and the courses of steps before it. ``fresh``: steps that ended, were not known, and wait
    to be watched once more, with how often they did. ``seen``: the last one of each kind."""

    def __init__(self) -> None:
        self.open: Tape | None = None
        self.courses: list[Course] = []
        self.fresh: dict[Hashable, tuple[Tape, int]] = {}
        self.seen: dict[Hashable, Tape] = {}

    def begin(self, graph: Any, name: Name, waiting: bool, plan: Planner | None) -> tuple[Tape, int]:
        """A call. ``waiting``: whether something waits for its backward. ``plan``: from the tape of a step that was not known
        to its course; asked as a later step begins; None: of a graph without a budget. Returns the tape and the number of the
        call in it."""
        if self.open is not None and not waiting:
            self.ended(self.open)
        if self.open is None:
            if plan is not None:
                self._plan(plan)
            self.open = Tape(planned=next((c for c in self.courses if c.names[0] == name), None))
            self.open.watch = Watch.begin() if self.fresh else None
        tape = self.open
        tape.wanted |= plan is not None
        if tape.planned is not None and not self._goes_on(tape, name):
            tape.planned = None
        if len(tape.calls) < MOST_CALLS:
            tape.calls.append(Call(graph, name))
        tape.note("forward", len(tape.calls) - 1)
        return tape, len(tape.calls) - 1

    def _goes_on(self, tape: Tape, name: Name) -> bool:
        """Whether the next call is one that is planned for, in this course or in another that is the same so far."""
        place, course = len(tape.calls), tape.planned
        assert course is not None
        if place < len(course.names) and course.names[place] == name:
            return True
        names = (*(call.name for call in tape.calls), name)
        for other in self.courses:
            if other.shares[:place] == course.shares[:place] and other.names[: len(names)] == names:
                tape.planned = other
                return True
        return False

    def ended(self, tape: Tape) -> None:
        """Nothing waits any more."""
        if tape is self.open:
            self.open = None
        tape.look()
        kind = tape.kind
        known = next((course for course in self.courses if (course.names, course.events) == kind), None)
        if known is not None:
            if known is tape.planned:
                tape.beside, known.tape = known.tape.beside, tape
            self.courses.remove(known)
            self.courses.insert(0, known)
            return
        if kind not in self.seen:
            self.seen = {key: other for key, other in list(self.seen.items())[-MOST_COURSES:] if other.runs}
        self.seen[kind] = tape
        least = any(entry.share == LEAST for call in tape.calls if (entry := call.entry) is not None)
        if tape.wanted and (len(tape.calls) > 1 or least):
            _, times = self.fresh.pop(kind, (tape, 0))
            self.fresh = {**dict(list(self.fresh.items())[-MOST_FRESH:]), kind: (tape, times)}

    def _plan(self, plan: Planner) -> None:
        """Courses for steps that were watched, or could not be. One that raises is asked again."""
        for kind, (tape, times) in list(self.fresh.items()):
            tape.look()
            if tape.beside is None and times < MOST_TRIES:
                self.fresh[kind] = tape, times + 1
                continue
            course = plan(tape)
            del self.fresh[kind]
            if course is not None:
                self.courses.insert(0, course)
                del self.courses[MOST_COURSES:]

    def steps(self) -> list[Tape]:
        """The last one of each kind, as its calls are planned now."""
        known = {(course.names, course.events): course.tape for course in self.courses}
        others = [tape for kind, tape in self.seen.items() if kind not in known]
        return [*others, *known.values(), *([] if self.open is None else [self.open])]

    def forget(self) -> None:
        """All of it."""
        self.__init__()  # type: ignore[misc]
