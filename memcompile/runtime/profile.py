"""What compiled graphs take, and what a step takes that is made of several of their calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from memcompile.solvers.calls.choose import Moment, Point

Event = tuple[str, int]
"""("forward", "returned", "backward" or "over", number of the call): a half begins, or has ended and nothing of ours runs."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one compiled graph takes, in bytes. ``entry``: storages it reads (key -> bytes, see ``storages``).
    ``held_bytes``: between its halves, ``returned_bytes`` of them in what the forward returned.
    ``dropped_backward_peak_bytes``: of the backward where what the forward returned is gone by then.
    ``gradient_bytes``: of the gradients it returns for parameters. Peaks include the entry. ``existing``: gradients of earlier
    steps, which are beside it, as in ``gradients_of``. ``owner``: address of the first parameter that gets a gradient, 0: none
    does; calls for the same one make its gradients once."""

    entry: dict[int, int]
    held_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    gradient_bytes: int = 0
    returned_bytes: int = 0
    dropped_backward_peak_bytes: int = 0
    existing: dict[int, int] = field(default_factory=dict)
    owner: int = 0

    @property
    def entry_bytes(self) -> int:
        """Bytes of the storages that are alive at entry."""
        return sum(self.entry.values())

    def keeping(self, kept_bytes: int | None) -> Profile:
        """With no more than ``kept_bytes`` of what the forward returned alive as the backward begins; None: who knows."""
        if kept_bytes is None or not self.dropped_backward_peak_bytes:
            return self
        return replace(self, backward_peak_bytes=min(self.backward_peak_bytes, self.dropped_backward_peak_bytes + kept_bytes))

    @property
    def peak_bytes(self) -> int:
        """Of both halves."""
        return max(self.forward_peak_bytes, self.backward_peak_bytes)

    def entered(self, entry: dict[int, int]) -> Profile:
        """The same with other storages at its entry."""
        more = sum(entry.values()) - self.entry_bytes
        forward, backward = self.forward_peak_bytes + more, self.backward_peak_bytes
        dropped = self.dropped_backward_peak_bytes
        return replace(
            self,
            entry=entry,
            forward_peak_bytes=forward,
            backward_peak_bytes=backward + more if backward else 0,
            dropped_backward_peak_bytes=dropped + more if dropped else 0,
        )

    @property
    def point(self) -> Point:
        """What it takes beside what is alive at its entry."""
        train = self.backward_peak_bytes > 0
        backward = self.backward_peak_bytes - self.entry_bytes if train else 0
        return Point(self.held_bytes if train else 0, self.forward_peak_bytes - self.entry_bytes, backward, 0.0)


def is_activation(key: int) -> bool:
    """Whether a storage is what another graph returned: that graph already counts it among what it holds."""
    return key < 0


def moments_of(profiles: Sequence[Profile], events: Sequence[Event]) -> list[tuple[Moment, int, int]]:
    """What begins with each event of a step: the bytes that are alive whatever is planned before it (what the graphs read, and
    gradients of earlier steps), and the gradients of this step so far."""
    entry: dict[int, int] = {}
    existing: dict[int, int] = {}
    for number, profile in enumerate(profiles):
        entry.update((key, size) for key, size in profile.entry.items() if number == 0 or not is_activation(key))
        existing |= profile.existing
    always = sum(entry.values()) + sum(existing.values())
    held: dict[int, None] = {}
    made: dict[int, int] = {}
    ran: set[int] = set()
    found = []
    for what, call in events:
        if what == "returned":
            held[call] = None
        else:
            held.pop(call, None)
        if what == "over" and call in ran and not profiles[call].existing:
            made[profiles[call].owner or -call - 1] = profiles[call].gradient_bytes
        if what == "backward":
            ran.add(call)
        runs = call if what in ("forward", "backward") else None
        found.append((Moment(runs, what == "backward", tuple(held), 0), always, sum(made.values())))
    return found


def whole(events: Sequence[Event], trains: Sequence[bool]) -> list[Event]:
    """Events, and the backwards that are still to come, in reverse."""
    waiting: dict[int, None] = {}
    for what, call in events:
        if what == "forward" and trains[call]:
            waiting[call] = None
        elif what in ("backward", "over"):
            waiting.pop(call, None)
    return [*events, *((what, call) for call in reversed(waiting) for what in ("backward", "over"))]


def peak_of_calls(profiles: Sequence[Profile], events: Sequence[Event], beside: Sequence[int] = ()) -> int:
    """Peak of a step made of several calls. ``beside``: what others than its graphs had alive after each event, as it was
    seen."""
    points = [profile.point for profile in profiles]
    moments = moments_of(profiles, whole(events, [point.backward_bytes > 0 for point in points]))
    more = [*beside, *[0] * (len(moments) - len(beside))]
    totals = (moment.taken(points) + always + made for moment, always, made in moments)
    return max((total + extra for total, extra in zip(totals, more, strict=True)), default=0)


def chain_peak(profiles: Sequence[Profile]) -> int:
    """Peak of a step made of several graphs: forwards in order, backwards in reverse.

    While graph i runs forward, what the earlier ones hold is alive; while it runs backward, also the gradients that the later
    ones returned. Gradients of earlier steps are alive all the time, and later ones are added to them.
    """
    events = [(what, call) for call in range(len(profiles)) for what in ("forward", "returned")]
    return peak_of_calls(profiles, events)


def beside(profiles: Sequence[Profile], events: Sequence[Event], levels: Sequence[int]) -> tuple[int, ...]:
    """What others than the graphs of a step had alive after each event: what was seen to be allocated in the step (``levels``),
    less what the graphs take."""
    points = [profile.point for profile in profiles]
    taken = (moment.taken(points) + made for moment, _, made in moments_of(profiles, events))
    return tuple(max(0, level - known) for level, known in zip(levels, taken, strict=True))
