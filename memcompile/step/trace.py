"""What lowered code allocates and frees, as plain data, and the exact peak that follows.

``codegen/inductor/`` reads the wrapper lines of a scheduled graph into a ``GraphTrace``: the order in which buffers are
allocated, reused and freed is then known before anything is compiled or run. ``step_peak`` replays forward and backward one
after the other: saved tensors live from the one to the other, user outputs and gradients to the end of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Formula = Callable[[Mapping[Any, int]], int | None]
"""From the sizes of a call (symbol -> length) to bytes; None where a symbol is not among them."""
EventKind = Literal["alloc", "alias", "hold", "free", "kernel", "workspace"]


@dataclass(frozen=True, slots=True)
class Event:
    """``alloc``: ``name`` takes ``size_bytes``. ``alias``: ``name`` shares the storage of ``base``. ``hold``: the storage of
    ``base`` lives at least as long as ``name`` (a sparse tensor holds its indices, a list its items). ``free``: ``name`` is
    deleted (its storage dies with its last name). ``kernel``: a kernel runs. ``workspace``: the kernel ``name`` takes
    ``size_bytes`` while it runs."""

    kind: EventKind
    name: str
    size_bytes: int = 0
    base: str = ""


@dataclass(frozen=True, slots=True)
class TracedBuffer:
    """Where a buffer comes from: FX nodes in ``origins`` (the first one wrote it) and the user's source line.

    ``reads``: names of the nodes that the first origin reads. ``loops``: number of the fused loops that write it, -1 where that
    is unknown (several of them may share one kernel).
    """

    name: str
    size_bytes: int
    origins: tuple[str, ...] = ()
    source: str = ""
    reads: tuple[str, ...] = ()
    loops: int = -1


@dataclass(frozen=True, slots=True)
class GraphTrace:
    """One lowered graph.

    ``inputs``: (name of the FX node and of its buffer, bytes) per graph input, in order; bytes is 0 for symbols. ``outputs``:
    buffer name per graph output, "" for None and constants; ``output_nodes``: the FX node that it was as the graph came, which
    is what the backward calls a saved one. ``output_strides``: per output, None where it has none. ``formulas``: of buffers and
    inputs whose bytes differ from call to call.
    """

    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[str, ...]
    output_nodes: tuple[str, ...]
    output_strides: tuple[tuple[int, ...] | None, ...]
    events: tuple[Event, ...]
    buffers: dict[str, TracedBuffer]
    formulas: Mapping[str, Formula] = field(default_factory=dict)

    def at(self, values: Mapping[Any, int], growth: float) -> GraphTrace:
        """The trace of a call with other sizes. ``growth``: how many times larger they are at most, which is what scratch of
        library calls is taken to grow by."""

        def sized(name: str, alike: int) -> int:
            formula = self.formulas.get(name)
            found = None if formula is None else formula(values)
            return alike if found is None else found

        def resized(event: Event) -> Event:
            if event.kind == "workspace":
                return replace(event, size_bytes=int(max(1.0, growth) * event.size_bytes))
            return replace(event, size_bytes=sized(event.name, event.size_bytes)) if event.kind == "alloc" else event

        inputs = tuple((name, sized(name, size)) for name, size in self.inputs)
        events = tuple(map(resized, self.events))
        return replace(self, inputs=inputs, events=events)

    def saved_for(self, backward: GraphTrace) -> dict[str, int]:
        """Input of the backward -> which output of this forward it is.

        By name: effect tokens are outputs when a step is partitioned, and are none when it is lowered. What the user receives
        may be saved as well, behind all that is the user's.
        """
        index = {name: i for i, name in enumerate(self.output_nodes) if name}
        return {name: index[name] for name, _ in backward.inputs if name in index}

    def storages(self) -> tuple[dict[str, str], dict[str, int]]:
        """Buffer -> the buffer or input whose storage it shares; bytes of the storages that the graph allocates."""
        root: dict[str, str] = {}
        size_bytes: dict[str, int] = {}
        for event in self.events:
            if event.kind == "alloc":
                root[event.name], size_bytes[event.name] = event.name, event.size_bytes
            elif event.kind == "alias":
                root[event.name] = root.get(event.base, event.base)
        return root, size_bytes


@dataclass(frozen=True, slots=True)
class Moment:
    """Live bytes right after an allocation or at a kernel; ``where`` is "forward" or "backward"."""

    where: str
    name: str
    live_bytes: int
    is_kernel: bool = False


@dataclass(slots=True)
class Life:
    """One storage of a step, alive from event ``birth`` up to, not including, ``death``; None: it outlives the step.

    ``name``: the buffer that it was allocated for, in the half ``where``.
    """

    where: str
    name: str
    size_bytes: int
    birth: int
    death: int | None = None


@dataclass(frozen=True, slots=True)
class StepPeak:
    """Result of a replay. ``peak_bytes`` includes ``entry_bytes`` (the graph's own inputs).

    Between the halves ``held_bytes`` are alive: ``returned_bytes`` in what the user received, ``saved_bytes`` for the backward.

    ``lives``: every storage, in order of birth. ``boundary``: the event at which the forward has returned. ``end``: one past
    the last event.
    """

    peak_bytes: int
    entry_bytes: int
    saved_bytes: int
    held_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    timeline: tuple[Moment, ...]
    live_at_peak: tuple[tuple[str, int], ...]
    lives: tuple[Life, ...] = ()
    boundary: int = 0
    end: int = 0
    returned_bytes: int = 0

    @property
    def peak_moment(self) -> Moment:
        """The first moment that reaches the peak."""
        return max(self.timeline, key=lambda m: m.live_bytes, default=Moment("forward", "entry", self.entry_bytes))


SCALAR_BYTES = 8
"""Of the gradient of a loss, at most: the autograd engine holds it until the backward returns."""

_HALVES = {"f": "forward", "b": "backward"}


class _Replay:
    """Storages with their names; a storage dies with its last name. ``clock``: events so far."""

    def __init__(self) -> None:
        self.clock = 0
        self.lives: list[Life] = []
        self.life: dict[int, Life] = {}
        self.root: dict[str, int] = {}
        self.held: dict[str, list[int]] = {}
        self.size: dict[int, int] = {}
        self.names: dict[int, int] = {}
        self.label: dict[int, str] = {}
        self.live = 0
        self._next = 0

    def new(self, name: str, size_bytes: int, label: str = "") -> int:
        storage = self._next
        self._next += 1
        half, _, own_name = name.partition(".")
        self.life[storage] = Life(_HALVES[half], own_name, size_bytes, self.clock)
        self.lives.append(self.life[storage])
        self.size[storage], self.names[storage], self.label[storage] = size_bytes, 0, label or name
        self.live += size_bytes
        self.bind(name, storage)
        return storage

    def bind(self, name: str, storage: int) -> None:
        self.free(name)
        self.root[name] = storage
        self.names[storage] += 1

    def share(self, name: str, base: str) -> None:
        """``name`` stands for what ``base`` stands for, and holds what that holds."""
        held = list(self.held.get(base, ()))
        self.bind(name, self.root[base])
        self._hold(name, held)

    def hold(self, name: str, base: str) -> None:
        """What ``base`` stands for lives as long as ``name``, which need not have a storage of its own (a list)."""
        self._hold(name, [*([self.root[base]] if base in self.root else []), *self.held.get(base, ())])

    def _hold(self, name: str, storages: list[int]) -> None:
        for storage in storages:
            self.names[storage] += 1
        if storages:
            self.held.setdefault(name, []).extend(storages)

    def free_all(self, prefix: str) -> None:
        """Give up all names that begin so."""
        for name in [name for name in (*self.root, *self.held) if name.startswith(prefix)]:
            self.free(name)

    def free(self, name: str) -> None:
        own = [self.root.pop(name)] if name in self.root else []
        for storage in (*own, *self.held.pop(name, ())):
            self.names[storage] -= 1
            if not self.names[storage]:
                self.live -= self.size.pop(storage)
                del self.names[storage]
                self.life[storage].death = self.clock

    def run(self, trace: GraphTrace, where: str, prefix: str) -> Iterator[Moment]:
        for event in trace.events:
            self.clock += 1
            name = prefix + event.name
            match event.kind:
                case "alloc":
                    self.new(name, event.size_bytes)
                    yield Moment(where, event.name, self.live)
                case "alias":
                    if prefix + event.base in self.root:
                        self.share(name, prefix + event.base)
                case "hold":
                    self.hold(name, prefix + event.base)
                case "free":
                    self.free(name)
                case "workspace":
                    self.lives.append(Life(where, f"{event.name} scratch", event.size_bytes, self.clock, self.clock + 1))
                    yield Moment(where, event.name, self.live + event.size_bytes)
                case "kernel":
                    yield Moment(where, event.name, self.live, is_kernel=True)

    def live_storages(self) -> tuple[tuple[str, int], ...]:
        alive = [(self.label[s], size) for s, size in self.size.items() if size]
        return tuple(sorted(alive, key=lambda item: -item[1]))


def step_peak(
    forward: GraphTrace,
    backward: GraphTrace | None = None,
    *,
    tangents_held: bool = True,
    returned_held: bool = True,
) -> StepPeak:
    """Replay forward and backward.

    Outputs that the backward does not take are the user's. Saved tensors are handed over: they die where the lowered code
    deletes them. What else the backward takes are tangents. ``tangents_held``: they stay with the autograd engine until the
    backward returns; zeros that stand for missing ones die as saved tensors do. ``returned_held``: what the user
    received is alive until the step ends, not only until the backward begins.
    """
    handed_over = {} if backward is None else forward.saved_for(backward)
    saved = set(handed_over.values())
    replay = _Replay()
    for name, size in forward.inputs:
        if size:
            replay.new("f." + name, size, name)
            replay.bind("entry." + name, replay.root["f." + name])
    entry = replay.live
    timeline: list[Moment] = []
    peak, at_peak = entry, replay.live_storages()

    def follow(moments: Iterator[Moment]) -> int:
        nonlocal peak, at_peak
        highest = replay.live
        for moment in moments:
            timeline.append(moment)
            highest = max(highest, moment.live_bytes)
            if moment.live_bytes > peak:
                peak, at_peak = moment.live_bytes, replay.live_storages()
        return highest

    forward_peak = follow(replay.run(forward, "forward", "f."))
    for index, name in enumerate(forward.outputs):
        if "f." + name in replay.root:
            replay.share(f"{'saved' if index in saved else 'user'}.{index}", "f." + name)
    replay.clock = boundary = replay.clock + 1
    replay.free_all("f.")
    held = replay.live - entry
    backward_peak = 0
    own = {replay.root[n] for n in replay.root if n.startswith("entry.")}
    returned = {replay.root[n] for n in replay.root if n.startswith("user.")} - own
    user = sum(replay.size[storage] for storage in returned)
    if backward is not None:
        replay.clock += 1  # tangents come to life after the forward has returned: other graphs run at the boundary
        for name in [n for n in replay.root if n.startswith("user.") and not returned_held]:
            replay.free(name)
        for name, size in backward.inputs:
            source = f"saved.{handed_over.get(name)}"
            if source in replay.root:
                replay.share("b." + name, source)
                replay.free(source)
            elif name not in handed_over and size:
                storage = replay.new("b." + name, size, name)
                if tangents_held or size <= SCALAR_BYTES:
                    replay.bind("tangent." + name, storage)
        replay.free_all("saved.")
        backward_peak = follow(replay.run(backward, "backward", "b."))
        for index, name in enumerate(backward.outputs):
            if name and "b." + name in replay.root:
                replay.share(f"gradient.{index}", "b." + name)
        replay.clock += 1
        replay.free_all("b.")
    return StepPeak(
        peak,
        entry,
        held - user,
        held,
        forward_peak,
        backward_peak,
        tuple(timeline),
        at_peak,
        tuple(replay.lives),
        boundary,
        replay.clock + 1,
        user,
    )
