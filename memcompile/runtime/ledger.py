"""One ledger for the process: what every compiled graph keeps alive, for whom it ran, and which graphs make one step.

A step may consist of several compiled graphs (graph breaks). While the second one is compiled, the saved tensors of the first
are alive: they count towards the budget of both. A graph *holds* memory from the end of its forward until its backward has run
or its autograd node has died; one that ran twice holds it twice. A graph is in the books while Dynamo keeps it, those of the
program compiled last always.

What autograd alone knows (saved tensors, an arena) is counted as lowered; what a graph was given and what it returned is looked
at: weak references say which of these storages are still alive.
"""

from __future__ import annotations

import functools
import gc
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from memcompile.options import Budget
from memcompile.report.data import GraphReport
from memcompile.runtime.profile import Profile, chain_peak
from memcompile.runtime.region import Region, region_under_way
from memcompile.runtime.tape import Name, Planner, Tape, Tapes
from memcompile.solvers.calls.choose import Point, Share
from memcompile.step.parts import parts_of, storages_of


@dataclass(frozen=True, slots=True)
class Outside:
    """What is alive beside a graph as it is compiled. ``certain_bytes``: whatever the plans of other graphs (their parameters,
    gradients of earlier steps, ``around_bytes`` of them in the storages of inputs that are views, around these).
    ``held_bytes``: what earlier graphs of the step hold, were given and returned."""

    certain_bytes: int = 0
    held_bytes: int = 0
    around_bytes: int = 0

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.certain_bytes + self.held_bytes


@dataclass(slots=True)
class Seen:
    """``kept_bytes``: most of what the forward returned that was alive as its backward began; None before one ran."""

    kept_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """A compiled graph at work for one module or function. Copies, and blocks with the same code, share a graph: each is a run.

    ``number``: runs count up. ``profile``: with the storages that it reads itself. ``read``: its parameters.
    ``shared``: it was planned for a step with several calls.
    ``total``: what a share of the step's peak comes to; None: the budget is none, or is not known.
    """

    number: int
    profile: Profile
    report: GraphReport
    region: Region | None = None
    read: tuple[weakref.ref[torch.Tensor], ...] = ()
    seen: Seen = field(default_factory=Seen)
    shared: bool = False
    total: Callable[[], int | None] = lambda: None

    @property
    def current(self) -> GraphReport:
        """The report, with what a share of the step's peak comes to by now."""
        total = self.total()
        return self.report if total is None else replace(self.report, budget_bytes=total)

    def is_for(self, region: Region | None, read: Sequence[torch.Tensor]) -> bool:
        """Whether it is that of a call in ``region`` with those parameters."""
        return self.region == region and (not read or self.read[0]() is read[0])

    def is_over(self) -> bool:
        """Whether what it ran for is gone."""
        return (self.region is not None and self.region.is_over) or (bool(self.read) and self.read[0]() is None)


@dataclass(eq=False)
class GraphEntry:
    """One compiled graph. ``owned``: which of its inputs are parameters; ``runs``: what it ran for; ``latest``: the last.

    ``unplanned``: what it would take without a plan. ``share``: what it was planned for beside a budget. ``extra_seconds``:
    what its plan takes above the time without one; ``front``: what else it could be, by the model. ``model``: that it is a part
    of; ``budget``: as the user wrote it. ``places``: which inputs are sizes that differ from call to call; ``sized``,
    ``unplanned_sized``: what it takes with others, planned and without a plan; None: the same.
    """

    profile: Profile
    report: GraphReport
    owned: tuple[int, ...] = ()
    runs: dict[tuple[int, ...], Run] = field(default_factory=dict)
    latest: Run | None = None
    unplanned: Profile | None = None
    share: Share | None = None
    extra_seconds: float = 0.0
    front: Callable[[], Sequence[tuple[Share, Point]]] = tuple
    model: weakref.ref[torch.nn.Module] | None = None
    budget: Budget = field(default_factory=Budget)
    places: tuple[int, ...] = ()
    sized: Callable[[tuple[int, ...]], Profile] | None = None
    unplanned_sized: Callable[[tuple[int, ...]], Profile] | None = None
    seen: Seen = field(default_factory=Seen)

    def of_model(self) -> torch.nn.Module | None:
        """None also when it is gone."""
        return None if self.model is None else self.model()


References = dict[int, tuple[StorageWeakRef, int]]


class _Hold:
    """A forward that ran and whose backward has not. ``given``: what it read beside parameters; ``returned``: its outputs."""

    def __init__(
        self,
        ledger: Ledger,
        entry: GraphEntry,
        given: Iterable[torch.Tensor],
        returned: Iterable[torch.Tensor],
        call: tuple[Tape, int] | None,
        profile: Profile | None,
    ) -> None:
        self.ledger, self.entry, self.run, self.call, self.sized = ledger, entry, entry.latest, call, profile
        self.given, self.returned = _references(given), _references(returned)
        ledger.live[id(self)] = weakref.ref(self)

    @property
    def profile(self) -> Profile:
        """Of the run, with what is known of earlier ones."""
        known = self.entry.profile if self.run is None else self.run.profile
        return (self.sized or known).keeping(self.entry.seen.kept_bytes)

    def alive(self) -> dict[int, int]:
        """Storages that it read or returned and that are not gone: address -> bytes."""
        return {**_alive(self.given), **_alive(self.returned)}

    def see_backward(self) -> None:
        """The backward begins: what is still there of what the forward returned stays for now."""
        given = _alive(self.given)
        kept = sum(size for key, size in _alive(self.returned).items() if key not in given)
        self.entry.seen.kept_bytes = max(kept, self.entry.seen.kept_bytes or 0)
        if self.call is not None:
            self.call[0].note("backward", self.call[1])

    def release(self) -> None:
        ledger = self.ledger
        ledger.stale.discard(id(self))
        if ledger.live.pop(id(self), None) is not None and self.call is not None:
            self.call[0].note("over", self.call[1])
            if not ledger.waiting and self.call[0] is ledger.tapes.open:
                ledger.tapes.ended(self.call[0])

    __del__ = release


def _references(tensors: Iterable[torch.Tensor]) -> References:
    """Address of each storage -> weak reference and bytes. No other storage gets the address while the reference is there."""
    found = {}
    for storage in itertools.chain.from_iterable(map(storages_of, tensors)):
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        found[storage._cdata] = reference, storage.nbytes()
    return found


def _alive(references: References) -> dict[int, int]:
    return {key: size for key, (reference, size) in references.items() if not reference.expired()}  # type: ignore[no-untyped-call]


class Ledger:
    """The books of the process. Use the one instance, ``LEDGER``.

    ``live``: what waits for its backward; ``stale``: what of it somebody keeps, so that it waits for none. ``last``: the graphs
    of what was compiled last. ``tapes``: of steps. ``totals``: what a share of a step's peak came to, for
    a model and the share as the user wrote it.
    """

    def __init__(self) -> None:
        self.entries: weakref.WeakSet[GraphEntry] = weakref.WeakSet()
        self.live: dict[int, weakref.ref[_Hold]] = {}
        self.stale: set[int] = set()
        self.last: list[GraphEntry] = []
        self.tapes = Tapes()
        self.totals: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, int]] = weakref.WeakKeyDictionary()
        self._last_compiler: object = None
        self._ids, self._runs = itertools.count(), itertools.count()

    def next_id(self) -> str:
        """A name for the next graph: its number in the process."""
        return str(next(self._ids))

    @property
    def waiting(self) -> bool:
        """Whether a step is under way: something waits for its backward, and may still get it."""
        return len(self.live) > len(self.stale)

    def begin(self, graph: Any, name: Name, plan: Planner | None) -> tuple[Tape, int]:
        """A graph is called: see `Tapes.begin`. What was returned before a call that is over, and is made again now, is what
        somebody keeps: it is alive, and no part of the steps to come."""
        tape = self.tapes.open
        if tape is not None and (number := tape.over.get(name)) is not None:
            kept = {key: hold for key, ref in list(self.live.items()) if (hold := ref()) is not None and key not in self.stale}
            if all(hold.call is not None and hold.call[0] is tape and hold.call[1] < number for hold in kept.values()):
                self.stale |= kept.keys()
        return self.tapes.begin(graph, name, self.waiting, plan)

    def chain(self) -> tuple[GraphEntry, ...]:
        """Graphs whose forward has run and whose backward is still to come, in order; one that ran twice, twice."""
        return tuple(hold.entry for hold in self._holds())

    def _holds(self) -> list[_Hold]:
        references = list(self.live.values())  # a copy first: the collector may release some at any moment
        return [hold for reference in references if (hold := reference()) is not None]

    def outside(self, tensors: Sequence[torch.Tensor]) -> Outside:
        """What is alive beside the inputs of a graph that is compiled now."""
        if self.live:
            gc.collect()  # a step that failed is often held by nothing but its own traceback
        own = {abs(key) for key in storages(tensors)}
        holds = self._holds()
        read = (ref() for hold in holds if hold.run is not None for ref in hold.run.read)
        parameters = [tensor for tensor in read if tensor is not None]
        certain = {abs(key): size for key, size in storages(parameters).items() if abs(key) not in own}
        others = {key: size for hold in holds for key, size in hold.alive().items() if key not in own and key not in certain}
        saved = sum(hold.entry.profile.held_bytes - hold.entry.profile.returned_bytes for hold in holds)
        gradients = gradient_bytes([*parameters, *tensors])
        around = bytes_around(tensors)
        return Outside(sum(certain.values()) + gradients + around, sum(others.values()) + saved, around)

    def peak_with(self, profile: Profile) -> int:
        """Peak of the step under way with one more graph."""
        return chain_peak([*(hold.profile for hold in self._holds()), profile])

    def total_of(self, model: torch.nn.Module | None, budget: Budget) -> int | None:
        """What a share of the peak came to for ``model``, in the largest step of training that was seen; None: in none yet."""
        return None if model is None else self.totals.get(model, {}).get(str(budget))

    def _total(self, model: weakref.ref[torch.nn.Module] | None, budget: Budget) -> int | None:
        return None if model is None else self.total_of(model(), budget)

    def raise_total(self, model: torch.nn.Module | None, budget: Budget, total_bytes: int) -> int:
        """A step was seen of which the share comes to ``total_bytes``. Returns what it comes to now."""
        total_bytes = max(total_bytes, self.total_of(model, budget) or 0)
        if model is not None and budget.needs_unplanned_peak:
            self.totals.setdefault(model, {})[str(budget)] = total_bytes
        return total_bytes

    def unplanned_peak_with(self, profile: Profile) -> int:
        """The same without the plans of earlier graphs."""
        profiles = [replace(hold.entry.unplanned or hold.profile, entry=hold.profile.entry) for hold in self._holds()]
        return chain_peak([*profiles, profile])

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

    def ran(self, entry: GraphEntry, inputs: Sequence[object], profile: Profile | None = None) -> Run:
        """A graph is called with ``inputs``, maybe for another module than the one that it was compiled for. ``profile``: of
        this call, where its sizes are others; the books keep the largest."""
        region = region_under_way()
        read = [t for t in (inputs[index] for index in entry.owned) if isinstance(t, torch.Tensor)]
        key = (*map(id, () if region is None else (region.compiler, region.module, region.code)), *map(id, read[:1]))
        run = entry.runs.get(key)
        if run is None or not run.is_for(region, read):
            known = profile or entry.profile
            if entry.runs and profile is None:
                tensors = (t for t in inputs if isinstance(t, torch.Tensor))
                known = replace(known, entry=storages(tensors), owner=owner_of(read))
            reading, shared = tuple(map(weakref.ref, read)), entry.share is not None
            total = functools.partial(self._total, entry.model, entry.budget)
            run = Run(next(self._runs), known, entry.report, region, reading, entry.seen, shared, total)
            entry.runs = {key: run for key, run in entry.runs.items() if not run.is_over()}
            entry.runs[key] = run
            if region is not None and region.compiler is self._last_compiler and entry not in self.last:
                self.last.append(entry)
        elif profile is not None and profile.peak_bytes > run.profile.peak_bytes:
            entry.runs[key] = run = replace(run, profile=profile)
        entry.latest = run
        return run

    def reset(self) -> None:
        """Forget what Dynamo forgets: it calls this for ``torch._dynamo.reset()``."""
        self.entries.clear()
        self.tapes.forget()
        self.totals.clear()
        self._last_compiler = None

    def hold(
        self,
        entry: GraphEntry,
        outputs: Iterable[object],
        on_backward: Callable[[Sequence[torch.Tensor | None]], None] | None = None,
        given: Iterable[torch.Tensor] = (),
        call: tuple[Tape, int] | None = None,
        profile: Profile | None = None,
    ) -> None:
        """The forward of ``entry`` has run: it holds its saved tensors until its backward has.

        ``on_backward`` is told the gradients that the backward received. ``given``: what it read beside parameters. ``call``:
        its place in the tape of the step. ``profile``: of this call, where its sizes are others.
        """
        tensors = [out for out in outputs if isinstance(out, torch.Tensor)]
        node = next((out.grad_fn for out in tensors if out.grad_fn is not None), None)
        if node is None:
            return
        token = _Hold(self, entry, given, tensors, call, profile)

        def begins(_received: Sequence[torch.Tensor | None]) -> None:
            token.see_backward()

        def done(_inputs: Sequence[torch.Tensor | None], received: Sequence[torch.Tensor | None]) -> None:
            token.release()
            if on_backward is not None:
                on_backward(received)

        node.register_prehook(begins)
        node.register_hook(done)


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Distinct storages: key -> bytes. Results of autograd (what another graph of the step returned) have negative keys."""
    found: dict[int, int] = {}
    for tensor in tensors:
        for storage in storages_of(tensor):
            found[-storage._cdata if tensor.grad_fn is not None else storage._cdata] = storage.nbytes()
    return found


def bytes_around(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages that tensors are views of beyond those that the tensors span: a batch keeps all batches alive that
    it was split from."""
    left: dict[int, int] = {}
    for part in itertools.chain.from_iterable(map(parts_of, tensors)):
        storage = part.untyped_storage()
        steps = ((length - 1) * step for length, step in zip(part.shape, part.stride(), strict=True))
        span = (sum(steps) + 1) * part.element_size() if part.numel() else 0
        left[storage._cdata] = left.get(storage._cdata, storage.nbytes()) - span
    return sum(max(0, size) for size in left.values())


def given_of(arguments: Iterable[object]) -> list[torch.Tensor]:
    """What a call of a graph is given beside parameters."""
    return [a for a in arguments if isinstance(a, torch.Tensor) and not isinstance(a, torch.nn.Parameter)]


def owner_of(parameters: Iterable[torch.Tensor]) -> int:
    """See `Profile`."""
    return next((t.untyped_storage()._cdata for t in parameters if t.requires_grad), 0)


def gradients_of(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Storages of the gradients that leaf tensors already have: address -> bytes."""
    found = storages(t.grad for t in tensors if t.is_leaf and t.grad is not None)
    return {abs(key): size for key, size in found.items()}


def gradient_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the gradients that leaf tensors already have."""
    return sum(gradients_of(tensors).values())


LEDGER = Ledger()
