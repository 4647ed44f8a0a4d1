"""An order that moves few bytes, part by part, with a bound for each: what can be proven is, what cannot is searched.

A part of which the order given moves nothing, or is the only one, is done. Small ones are solved by ``exact.py``. The others
start from the order given and from one with a small peak, and are annealed, as a whole and in windows (``annealing.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memcompile.solvers.order.ordering import OrderKernel, OrderProblem, OrderStorage
from memcompile.solvers.order.ordering_solve import solve
from memcompile.solvers.scratchpad.bound import lower_bound
from memcompile.solvers.scratchpad.exact import cheapest
from memcompile.solvers.scratchpad.gaps import peak_bytes
from memcompile.solvers.scratchpad.parts import sections
from memcompile.solvers.scratchpad.problem import ScratchpadProblem
from memcompile.solvers.scratchpad.replacement import replace


@dataclass(frozen=True, slots=True)
class ScratchpadEffort:
    """How much work a plan may take; the same work gives the same plan on any machine.

    ``states``: of a complete search of one part. ``peak_steps``: of the search for a small peak. ``tries``: orders that
    annealing runs, of one part, and more of a small one: as many as take ``steps`` operators.
    """

    states: int = 40_000
    peak_steps: int = 60_000
    tries: int = 100_000
    steps: int = 50_000_000


@dataclass(frozen=True, slots=True)
class Ordered:
    """``moved_bytes``: with the best replacement, places aside. ``bound_bytes``: no order moves fewer."""

    order: tuple[int, ...]
    moved_bytes: int
    bound_bytes: int
    method: str


def order_of(problem: ScratchpadProblem, size_bytes: int, effort: ScratchpadEffort) -> Ordered:
    """The best order found for a network, part by part; equal parts are solved once."""
    parts = sections(problem)
    known: dict[object, Ordered] = {}
    order, moved, bound = list[int](), 0, 0
    methods = list[str]()
    for part in parts:
        key = _shape_of(part.problem)
        if key not in known:
            known[key] = _order_of_part(part.problem, size_bytes, effort)
        found = known[key]
        order += part.order(found.order)
        moved, bound = moved + found.moved_bytes, bound + found.bound_bytes
        methods.append(found.method)
    return Ordered(tuple(order), moved, bound, ", ".join(dict.fromkeys(m for m in methods if m)) or GIVEN)


GIVEN = "the order given"


def _shape_of(problem: ScratchpadProblem) -> object:
    """All that matters to an order."""
    tensors = tuple((t.size_bytes, t.is_input, t.is_output) for t in problem.tensors)
    return tensors, tuple((op.reads, op.writes) for op in problem.ops)


def _is_chain(problem: ScratchpadProblem) -> bool:
    """Whether only one order is allowed."""
    return all(op - 1 in sources for op, sources in enumerate(problem.sources) if op)


def _order_of_part(problem: ScratchpadProblem, size_bytes: int, effort: ScratchpadEffort) -> Ordered:
    given = tuple(range(len(problem.ops)))
    base = replace(problem, given, size_bytes)
    if not base.moved_bytes or _is_chain(problem):
        return Ordered(given, base.moved_bytes, base.bound_bytes, "")
    found = cheapest(problem, size_bytes, effort.states, base.moved_bytes)
    if found.order is not None:
        return Ordered(found.order, found.bound_bytes, found.bound_bytes, "complete search")
    if found.bound_bytes >= base.moved_bytes:
        return Ordered(given, base.moved_bytes, base.moved_bytes, "")
    best = Ordered(given, base.moved_bytes, found.bound_bytes, "")
    small = smallest_peak(problem, effort.peak_steps)
    if peak_bytes(problem, small) <= size_bytes:
        return Ordered(small, 0, 0, "smallest peak")
    bound = max(found.bound_bytes, lower_bound(problem, size_bytes))
    from memcompile.solvers.scratchpad.annealing import improved  # numba loads slowly

    order, method = improved(problem, size_bytes, [given, small], max(effort.tries, effort.steps // len(problem.ops)))
    moved = replace(problem, order, size_bytes).moved_bytes
    if moved < best.moved_bytes:
        best = Ordered(order, moved, bound, method)
    return Ordered(best.order, best.moved_bytes, min(bound, best.moved_bytes), best.method)


def smallest_peak(problem: ScratchpadProblem, steps: int) -> tuple[int, ...]:
    """An order with a small peak: for as many bytes as that nothing moves but what is compulsory."""
    storages = tuple(OrderStorage(tensor.name, tensor.size_bytes) for tensor in problem.tensors)
    kernels = tuple(
        OrderKernel(op.name, touched, sources)
        for op, touched, sources in zip(problem.ops, problem.touches, problem.sources, strict=True)
    )
    given: Sequence[int] = range(len(kernels))
    return solve(OrderProblem(kernels, storages), {GIVEN: given}, steps).sequence
