"""One ledger for the process: what every compiled graph keeps alive, and which graphs make one step.

A step may consist of several compiled graphs (graph breaks). While the second one is compiled, the saved tensors of the first
are alive: they count towards the budget of both. A graph *holds* memory from the end of its forward until its backward has run
or its autograd node has died.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from memcompile.errors import NoReportError
from memcompile.report.data import GraphReport, Report


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


@dataclass(eq=False)
class GraphEntry:
    """One compiled graph of a model."""

    profile: Profile
    report: GraphReport
    tensors: tuple[weakref.ref[torch.Tensor], ...]
    code: object = None


@dataclass(eq=False)
class Group:
    """The graphs of one model, in the order in which they were compiled."""

    entries: list[GraphEntry] = field(default_factory=list)
    chains: list[tuple[GraphEntry, ...]] = field(default_factory=list)
    measured_peak_bytes: int | None = None


class _Hold:
    """A forward that ran and whose backward has not."""

    def __init__(self, ledger: Ledger, entry: GraphEntry) -> None:
        self.ledger, self.entry = ledger, entry
        ledger.live[id(self)] = entry

    def release(self) -> None:
        self.ledger.live.pop(id(self), None)

    __del__ = release


class Ledger:
    """The books of the process. Use the one instance, ``LEDGER``."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.live: dict[int, GraphEntry] = {}
        self.last: Group | None = None
        self._ids = itertools.count()

    def next_id(self) -> str:
        """A name for the next graph: its number in the process."""
        return str(next(self._ids))

    def chain(self) -> tuple[GraphEntry, ...]:
        """Graphs whose forward has run and whose backward is still to come, in order."""
        return tuple(dict.fromkeys(self.live.values()))

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

    def add(self, entry: GraphEntry) -> None:
        """Enter a graph: into the group of the step under way, or of the model whose tensors it reads."""
        chain = self.chain()
        group = self._group_of(chain[-1]) if chain else self._group_sharing(entry)
        if group is None:
            group = Group()
            self.groups.append(group)
        group.entries.append(entry)
        group.chains.append((*chain, entry))
        self.last = group

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

    def report(self, model: Callable[..., Any]) -> Report:
        """All graphs of a compiled model or function."""
        group = self._group_for(model)
        if group is None:
            raise NoReportError()
        return report_of(group, type(getattr(model, "_orig_mod", model)).__name__)

    def last_report(self) -> Report:
        """All graphs of the model compiled last."""
        if self.last is None:
            raise NoReportError("any model")
        return report_of(self.last)

    def _group_of(self, entry: GraphEntry) -> Group | None:
        return next((group for group in self.groups if entry in group.entries), None)

    def _group_sharing(self, entry: GraphEntry) -> Group | None:
        mine = {id(ref()) for ref in entry.tensors if ref() is not None}
        for group in self.groups:
            for other in group.entries:
                if any(id(ref()) in mine for ref in other.tensors if ref() is not None):
                    return group
                if not mine and not other.tensors and entry.code is not None and other.code is entry.code:
                    return group
        return None

    def _group_for(self, model: Callable[..., Any]) -> Group | None:
        module = getattr(model, "_orig_mod", model)
        if isinstance(module, torch.nn.Module):
            mine = {id(t) for t in itertools.chain(module.parameters(), module.buffers())}
            for group in reversed(self.groups):
                if any(id(ref()) in mine for entry in group.entries for ref in entry.tensors):
                    return group
            # A module that reads no parameter is known by its code; another instance's graphs are not its own.
            code = getattr(module.forward, "__code__", None)
            found = (g for g in reversed(self.groups) if any(e.code is code and not e.tensors for e in g.entries))
            return next(found, None) if code is not None else None
        code = getattr(getattr(module, "_torchdynamo_orig_callable", module), "__code__", None)
        found = (g for g in reversed(self.groups) if code is not None and any(e.code is code for e in g.entries))
        return next(found, None)


def report_of(group: Group, model: str = "") -> Report:
    """A report over the graphs of a group; the step's peak is the highest of its chains."""
    return Report(
        graphs=[entry.report for entry in group.entries],
        step_peak_bytes=max((chain_peak([e.profile for e in chain]) for chain in group.chains), default=None),
        measured_peak_bytes=group.measured_peak_bytes,
        model=model,
        versions={"torch": torch.__version__},
    )


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
