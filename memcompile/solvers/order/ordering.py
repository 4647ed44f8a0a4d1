"""The order of kernels with the smallest peak: the problem and its answer, as plain data, and the exact replay of an order.

A storage is alive from the first to the last kernel that touches it. On top of that, two habits of lowered code decide the
peak. A kernel may write over a storage that it reads as the last one. And loops that become one function (on the CPU, all
loops between two library calls) give nothing back before that function ends, unless they are kept apart there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["call", "kernel", "loops", "none"]
"""``call``: what died before it is given back as it starts, what dies in it as it ends. ``kernel``: as it ends. ``loops``:
joins its neighbours, gives back with the next call or where it is kept apart. ``none``: no code."""
Status = Literal["optimal", "bounded"]


@dataclass(frozen=True, slots=True)
class OrderStorage:
    """``at_start``: alive before the first kernel. ``at_end``: never given back."""

    name: str
    size_bytes: int
    at_start: bool = False
    at_end: bool = False


@dataclass(frozen=True, slots=True)
class OrderKernel:
    """``touches``: the storages that it reads or writes. ``after``: the kernels that must have run.

    ``inplace``: pairs of a storage and those that it may take over, the first that nobody else will touch, of the same size
    (one that it allocates itself among them).
    ``scratch_bytes``: alive only while it runs.
    """

    name: str
    touches: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    inplace: tuple[tuple[int, tuple[int, ...]], ...] = ()
    scratch_bytes: int = 0
    kind: Kind = "kernel"


@dataclass(frozen=True)
class OrderProblem:
    """Kernels in an order that is allowed: ``after`` names earlier ones only."""

    kernels: tuple[OrderKernel, ...]
    storages: tuple[OrderStorage, ...]

    @cached_property
    def touchers(self) -> tuple[int, ...]:
        """Per storage the kernels that touch it, as bits."""
        masks = [0] * len(self.storages)
        for k, kernel in enumerate(self.kernels):
            for s in kernel.touches:
                masks[s] |= 1 << k
        return tuple(masks)

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Per kernel all that must have run, directly or not, as bits."""
        masks: list[int] = []
        for kernel in self.kernels:
            mask = 0
            for other in kernel.after:
                mask |= masks[other] | 1 << other
            masks.append(mask)
        return tuple(masks)

    @cached_property
    def behind(self) -> tuple[int, ...]:
        """Per kernel all that can only run later, as bits."""
        masks = [0] * len(self.kernels)
        for k in reversed(range(len(self.kernels))):
            for other in self.kernels[k].after:
                masks[other] |= masks[k] | 1 << k
        return tuple(masks)

    @cached_property
    def entry_bytes(self) -> int:
        """Bytes alive before the first kernel."""
        return sum(storage.size_bytes for storage in self.storages if storage.at_start)

    def allows(self, order: Sequence[int]) -> bool:
        """Whether ``order`` has every kernel once, each after those that it must follow."""
        place = {k: i for i, k in enumerate(order)}
        if len(order) != len(self.kernels) or len(place) != len(order):
            return False
        return all(place[other] < place[k] for k, kernel in enumerate(self.kernels) for other in kernel.after)


@dataclass(frozen=True, slots=True)
class OrderSolution:
    """An answer. ``peak_bytes``: of ``sequence`` with the loops of ``apart`` kept from joining what follows them.

    ``bound_bytes``: no allowed order has a smaller peak, however loops join. ``seconds``: spent on it.
    """

    sequence: tuple[int, ...]
    apart: frozenset[int]
    peak_bytes: int
    bound_bytes: int
    method: str
    seconds: float = 0.0

    @property
    def status(self) -> Status:
        """Whether the peak is proven to be the smallest."""
        return "optimal" if self.peak_bytes <= self.bound_bytes else "bounded"


def live_bytes(problem: OrderProblem, order: Sequence[int], apart: Collection[int] | None = None) -> Iterator[int]:
    """Bytes alive while each kernel of ``order`` runs.

    ``apart``: the loops that are kept from joining what follows; None: every kernel gives back what dies in it as it ends.
    """
    left = [mask.bit_count() for mask in problem.touchers]
    started = [storage.at_start for storage in problem.storages]
    live, dead = problem.entry_bytes, 0
    for k in order:
        kernel = problem.kernels[k]
        if kernel.kind == "call":
            live, dead = live - dead, 0
        fresh = [s for s in kernel.touches if not started[s]]
        added = sum(problem.storages[s].size_bytes for s in fresh)
        taken: set[int] = set()
        for s, candidates in kernel.inplace:
            if s in fresh:
                over = next((c for c in candidates if left[c] == 1 and c not in taken), None)
                if over is not None:
                    taken.add(over)
                    added -= problem.storages[s].size_bytes
        yield live + added + kernel.scratch_bytes
        live += added
        for s in kernel.touches:
            started[s] = True
            left[s] -= 1
            if not left[s] and not problem.storages[s].at_end and s not in taken:
                dead += problem.storages[s].size_bytes
        if apart is None or kernel.kind in ("call", "kernel") or k in apart:
            live, dead = live - dead, 0


def peak_of(problem: OrderProblem, order: Sequence[int], apart: Collection[int] | None = None) -> int:
    """Highest number of bytes alive, entry and end included. Arguments: see ``live_bytes``."""
    return max(problem.entry_bytes, max(live_bytes(problem, order, apart), default=0))


def kept_apart(problem: OrderProblem, order: Sequence[int], limit_bytes: int) -> frozenset[int]:
    """The fewest loops of ``order`` to keep from joining what follows, so that no kernel exceeds ``limit_bytes`` for it."""
    apart: set[int] = set()
    while True:
        running: int | None = None
        for k, live in zip(order, live_bytes(problem, order, apart), strict=True):
            if live > limit_bytes and running is not None:
                apart.add(running)
                break
            kind = problem.kernels[k].kind
            if kind == "loops":
                running = k if k not in apart else None
            elif kind != "none":
                running = None
        else:
            return frozenset(apart)
