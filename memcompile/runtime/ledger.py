"""One ledger for the process: what every compiled graph keeps alive, for whom it ran, and which graphs make one step.

A step may consist of several compiled graphs (graph breaks). While the second one is compiled, the saved tensors of the first
are alive: they count towards the budget of both. A graph *holds* memory from the end of its forward until its backward has run
or its autograd node has died. A graph is in the books while Dynamo keeps it, those of the program compiled last always.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from memcompile.codegen.region import Region, region_under_way
from memcompile.report.data import GraphReport


@dataclass(frozen=True, slots=True)
class Profile:
    """What one compiled graph takes, in bytes. ``entry``: storages it reads (key -> bytes, see ``storages``).
    ``gradient_bytes``: bytes of the gradients it returns. Peaks include the entry."""

    entry: dict[int, int]
    held_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    gradient_bytes: int = 0

    @property
    def entry_bytes(self) -> int:
        """Bytes of the storages that are alive at entry."""
        return sum(self.entry.values())


@dataclass(frozen=True, eq=False)
class Run:
    """A compiled graph at work for one module or function. Copies, and blocks with the same code, share a graph: each is a run.

    ``number``: runs count up. ``profile``: with the storages that it reads itself. ``read``: its parameters. ``before``: what
    held memory as it ran first, in order.
    """

    number: int
    profile: Profile
    report: GraphReport
    region: Region | None = None
    read: tuple[weakref.ref[torch.Tensor], ...] = ()
    before: tuple[Run, ...] = ()

    def is_for(self, region: Region | None, read: Sequence[torch.Tensor]) -> bool:
        """Whether it is that of a call in ``region`` with those parameters."""
        return self.region == region and (not read or self.read[0]() is read[0])

    def is_over(self) -> bool:
        """Whether what it ran for is gone."""
        return (self.region is not None and self.region.is_over) or (bool(self.read) and self.read[0]() is None)


@dataclass(eq=False)
class GraphEntry:
    """One compiled graph. ``owned``: which of its inputs are parameters; ``runs``: what it ran for; ``latest``: the last."""

    profile: Profile
    report: GraphReport
    owned: tuple[int, ...] = ()
    runs: dict[tuple[int, ...], Run] = field(default_factory=dict)
    latest: Run | None = None


class _Hold:
    """A forward that ran and whose backward has not."""

    def __init__(self, ledger: Ledger, entry: GraphEntry) -> None:
        self.ledger = ledger
        ledger.live[id(self)] = entry, entry.latest

    def release(self) -> None:
        self.ledger.live.pop(id(self), None)

    __del__ = release


class Ledger:
    """The books of the process. Use the one instance, ``LEDGER``.

    ``last``: the graphs of what was compiled last.
    """

    def __init__(self) -> None:
        self.entries: weakref.WeakSet[GraphEntry] = weakref.WeakSet()
        self.live: dict[int, tuple[GraphEntry, Run | None]] = {}
        self.last: list[GraphEntry] = []
        self._last_compiler: object = None
        self._ids, self._runs = itertools.count(), itertools.count()

    def next_id(self) -> str:
        """A name for the next graph: its number in the process."""
        return str(next(self._ids))

    def chain(self) -> tuple[GraphEntry, ...]:
        """Graphs whose forward has run and whose backward is still to come, in order."""
        held = list(self.live.values())  # a copy first: the collector may release some at any moment
        return tuple(dict.fromkeys(entry for entry, _ in held))

    def outside_bytes(self, tensors: Sequence[torch.Tensor]) -> int:
        """Bytes that are alive beside the inputs of a graph compiled now: what earlier graphs of the step read and hold, and
        the gradients that its own inputs already have."""
        if self.live:
            gc.collect()  # a step that failed is often held by nothing but its own traceback
        own = storages(tensors)
        chain = self.chain()
        entry: dict[int, int] = {}
        for graph in chain:
            entry.update(graph.profile.entry)
        others = sum(size for pointer, size in entry.items() if pointer not in own)
        held = sum(graph.profile.held_bytes for graph in chain)
        passed_on = sum(size for key, size in own.items() if is_activation(key)) if chain else 0
        return others + max(0, held - passed_on) + gradient_bytes(tensors)

    def add(self, entry: GraphEntry, inputs: Sequence[object] = ()) -> None:
        """Enter a graph that was compiled, for a call with ``inputs`` that is under way."""
        region = region_under_way()
        compiler = None if region is None else region.compiler
        if compiler is None or compiler is not self._last_compiler:
            self.last = list(self.chain()) if compiler is None else []
        self._last_compiler = compiler
        self.last.append(entry)
        self.entries.add(entry)
        self.ran(entry, inputs)

    def ran(self, entry: GraphEntry, inputs: Sequence[object]) -> None:
        """A graph is called with ``inputs``, maybe for another module than the one that it was compiled for."""
        region = region_under_way()
        read = [t for t in (inputs[index] for index in entry.owned) if isinstance(t, torch.Tensor)]
        key = (*map(id, () if region is None else (region.compiler, region.module, region.code)), *map(id, read[:1]))
        run = entry.runs.get(key)
        if run is None or not run.is_for(region, read):
            profile = entry.profile
            if entry.runs:
                tensors = (t for t in inputs if isinstance(t, torch.Tensor))
                profile = replace(profile, entry=storages(tensors))
            held = list(self.live.values())
            before = dict.fromkeys(run for _, run in held if run is not None)
            chain = tuple(replace(run, before=()) for run in before)
            run = Run(next(self._runs), profile, entry.report, region, tuple(map(weakref.ref, read)), chain)
            entry.runs = {key: run for key, run in entry.runs.items() if not run.is_over()}
            entry.runs[key] = run
            if region is not None and region.compiler is self._last_compiler and entry not in self.last:
                self.last.append(entry)
        entry.latest = run

    def reset(self) -> None:
        """Forget what Dynamo forgets: it calls this for ``torch._dynamo.reset()``."""
        self.entries.clear()
        self._last_compiler = None

    def hold(
        self,
        entry: GraphEntry,
        outputs: Iterable[object],
        on_backward: Callable[[Sequence[torch.Tensor | None]], None] | None = None,
    ) -> None:
        """The forward of ``entry`` has run: it holds its saved tensors until its backward has.

        ``on_backward`` is told the gradients that the backward received.
        """
        node = next((out.grad_fn for out in outputs if isinstance(out, torch.Tensor) and out.grad_fn is not None), None)
        if node is not None:
            token = _Hold(self, entry)

            def done(_inputs: Sequence[torch.Tensor | None], received: Sequence[torch.Tensor | None]) -> None:
                token.release()
                if on_backward is not None:
                    on_backward(received)

            node.register_hook(done)


def chain_peak(profiles: Sequence[Profile]) -> int:
    """Peak of a step made of several graphs: forwards in order, backwards in reverse.

    While graph i runs forward, what the earlier ones hold is alive; while it runs backward, also the gradients that the later
    ones returned.
    """
    entry: dict[int, int] = {}
    for index, profile in enumerate(profiles):
        entry.update((key, size) for key, size in profile.entry.items() if index == 0 or not is_activation(key))
    total, held, peak = sum(entry.values()), 0, 0
    for index, profile in enumerate(profiles):
        later = sum(other.gradient_bytes for other in profiles[index + 1 :])
        own = profile.entry_bytes
        peak = max(
            peak,
            total + held + profile.forward_peak_bytes - own,
            total + held + later + profile.backward_peak_bytes - own if profile.backward_peak_bytes else 0,
        )
        held += profile.held_bytes
    return peak


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Distinct storages: key -> bytes. Results of autograd (what another graph of the step returned) have negative keys."""
    found: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[-storage._cdata if tensor.grad_fn is not None else storage._cdata] = storage.nbytes()
    return found


def is_activation(key: int) -> bool:
    """Whether a storage is what another graph returned: that graph already counts it among what it holds."""
    return key < 0


def gradient_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the gradients that leaf tensors already have."""
    return sum(t.grad.untyped_storage().nbytes() for t in tensors if t.is_leaf and t.grad is not None)


LEDGER = Ledger()
