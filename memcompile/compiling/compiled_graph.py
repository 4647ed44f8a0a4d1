"""The callable that Dynamo calls: it picks the plan of each call, and plans again where a step differs from what was planned
for."""

from __future__ import annotations

import functools
import gc
import itertools
import math
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from memcompile.codegen.inductor.resized import Holds
from memcompile.compiling.run import StepPlan, plan_step
from memcompile.errors import BudgetInfeasibleError
from memcompile.logs import get_logger
from memcompile.options import Options
from memcompile.runtime.arena import BLOCKS
from memcompile.runtime.ledger import LEDGER, GraphEntry, given_of, gradient_bytes, gradients_of, storages
from memcompile.runtime.profile import Profile
from memcompile.runtime.tape import Course
from memcompile.solvers.calls.choose import LEAST, Share

log = get_logger(__name__)

State = tuple[bool, bool]
"""Whether gradients of earlier steps are there, and whether gradients arrive for more than a loss."""
Sizes = tuple[int, ...]
"""Of the inputs of a call, where they differ from call to call."""
Again = Callable[[Sequence[Any], bool, Share | None, Sizes], "CompiledGraph"]
"""From the inputs of a call, whether gradients arrive for more than a loss, a share and sizes to what is compiled for it."""
GROWTH = 1.25
"""By how much sizes are planned larger than those that no plan fits, so that sizes that grow are planned for a few times."""


_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Variant:
    """One plan of a graph, compiled. ``spare``: sizes -> what calls with them leave of the budget while nothing waits for a
    backward. ``holds``: whether it may be called with some sizes."""

    function: Callable[..., Any]
    entry: GraphEntry
    spare: dict[Sizes, float] = field(default_factory=dict)
    holds: Holds = field(default=lambda _sizes: True)

    def at(self, sizes: Sizes) -> Profile | None:
        """What a call with these sizes takes; None where it is what all calls take."""
        return self.entry.sized(sizes) if self.entry.sized is not None else None


class CompiledGraph:
    """The compiled graph as Dynamo calls it. ``keeps``: what lives as long as it: lowered code finds it by name or key.

    Before each call the gradients that the parameters already have are counted: a plan made for an empty ``.grad`` is made
    again, once, for a step that accumulates. So is a plan that took the loss for the only output that gets a gradient, once
    another one got its own. A call in a step that was planned together gets its share of that; in one that nobody knows yet, a
    plan that fits beside all that is alive. ``again``: None where there is no budget.
    ``resized``: variants for some sizes, the latest first. ``holds``: see `Variant`; None: for those it was compiled with.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        entry: GraphEntry,
        keeps: Iterable[object],
        tensors: Sequence[torch.Tensor],
        tangents_held: bool,
        options: Options,
        again: Again | None,
    ) -> None:
        self.entry, self.tangents_held, self.options, self.again = entry, tangents_held, options, again
        self.keeps: list[object] = list(keeps)
        self.number = next(_NUMBERS)
        state = again is not None and gradient_bytes(tensors) > 0, tangents_held
        self.variants: dict[tuple[State, Share | None], Variant] = {(state, entry.share): Variant(function, entry)}
        self.resized: dict[tuple[State, Share | None], list[Variant]] = {}
        self.holds: Holds | None = None
        self.parameters = [weakref.ref(t) for t in tensors if t.is_leaf and t.requires_grad] if again is not None else []
        self.trains = entry.report.kind == "train"

    def __call__(self, *args: Any) -> Any:
        state = any((p := ref()) is not None and p.grad is not None for ref in self.parameters), self.tangents_held
        sizes = tuple([args[place] for place in self.entry.places])
        if not self.trains and not LEDGER.waiting:  # a step of its own
            variant = self._alone(args, state, sizes)
            LEDGER.ran(variant.entry, args, variant.at(sizes))
            return variant.function(*args)
        plan = None if self.again is None else plan_step
        tape, number = LEDGER.begin(self, (self.number, *state), plan)
        if self.again is not None and tape.planned is not None:
            variant = self._planned(args, state, sizes, tape.planned, number)
        else:
            variant = self._fitting(args, state, sizes) if LEDGER.waiting else self._alone(args, state, sizes)
        profile = variant.at(sizes)
        tape.calls[number].ran_as(variant.entry, LEDGER.ran(variant.entry, args, profile), sizes)
        outputs = variant.function(*args)
        tape.note("returned", number)
        if self.trains:
            LEDGER.hold(variant.entry, outputs, self._see_tangents, given_of(args), (tape, number), profile)
        return outputs

    def _see_tangents(self, tangents: Sequence[torch.Tensor | None]) -> None:
        """What the backward received: more than the gradient of a scalar means that such tensors are alive throughout."""
        self.tangents_held = self.tangents_held or any(t is not None and t.dim() > 0 for t in tangents)

    def limit_bytes(self, entry: GraphEntry) -> int | None:
        """The budget of a step that this graph is part of; None without one, and where it is a share of nobody knows what
        yet."""
        budget = self.options.memory_budget
        if not budget.needs_unplanned_peak:
            return entry.report.budget_bytes
        return LEDGER.total_of(entry.of_model(), budget)

    def _limit_at(self, entry: GraphEntry, sizes: Sizes) -> int | None:
        """The budget of a step with these sizes: a share of the peak is one of the largest step, which nobody knows in the
        middle of one that was not seen before."""
        budget, unplanned = self.options.memory_budget, entry.unplanned_sized
        if budget.needs_unplanned_peak and unplanned is not None and entry.share is None and not LEDGER.waiting:
            total = budget.resolve(unplanned_peak_bytes=unplanned(sizes).peak_bytes, free_bytes=0)
            return LEDGER.raise_total(entry.of_model(), budget, total or 0)
        tape = LEDGER.tapes.open
        if budget.needs_unplanned_peak and LEDGER.waiting and (tape is None or tape.planned is None):
            return None
        return self.limit_bytes(entry)

    def _alone(self, args: Sequence[Any], state: State, sizes: Sizes) -> Variant:
        """The first call of a step that nobody planned: as the graph was compiled first, where that fits with these sizes."""
        share = self.entry.share
        if self.again is None:
            return next(iter(self.variants.values()))
        if (variant := self._known(state, share, sizes)) is None:
            return self._made(args, state, share, sizes)
        if LEDGER.live or (spare := variant.spare.get(sizes)) is None:
            spare = self._spare(variant, args, sizes)
        if spare < 0:
            return self._fitting(args, state, sizes)
        if not LEDGER.live:
            variant.spare[sizes] = spare
        if variant.entry.sized is not None and BLOCKS.blocks:
            BLOCKS.leave(spare)
        return variant

    def _planned(self, args: Sequence[Any], state: State, sizes: Sizes, course: Course, number: int) -> Variant:
        """Call ``number`` of a step that was planned. A variant that takes more than its plan makes the rest be chosen anew."""
        plan: StepPlan = course.plan
        if not number and BLOCKS.blocks and None not in course.shares:  # whose graph makes room for its own arena
            BLOCKS.leave(plan.spare_bytes)
        while (variant := self._known(state, course.shares[number], sizes)) is None:
            plan.met(number, self._made(args, state, course.shares[number], sizes).entry)
        if sizes == course.sizes[number] or self._spare(variant, args, sizes) >= 0:
            return variant
        return self._fitting(args, state, sizes)

    def _fitting(self, args: Sequence[Any], state: State, sizes: Sizes) -> Variant:
        """A plan that fits beside what is alive: where calls wait for their backwards the one that holds least, else the
        fastest. Raises `BudgetInfeasibleError` where there is none."""
        share = LEAST if LEDGER.waiting else None
        known = [variant for (of, _), variant in self.variants.items() if of == state]
        known += [v for (of, _), made in self.resized.items() if of == state for v in made if v.holds(sizes)]
        known.sort(key=lambda v: v.entry.profile.held_bytes if LEDGER.waiting else v.entry.extra_seconds)
        for variant in known:
            if self.again is None or self._spare(variant, args, sizes) >= 0:
                return variant
        if LEDGER.waiting and gc.collect() and not LEDGER.waiting:  # a step that failed, held by nothing but its own traceback
            return self._alone(args, state, sizes)
        return self._made(args, state, share, sizes)

    def _spare(self, variant: Variant, args: Sequence[Any], sizes: Sizes) -> float:
        """What a call leaves of the budget beside what is alive, with what came before it in its step; below zero it does not
        fit. A plan that was made for all calls, and runs by itself, does."""
        if not LEDGER.live and variant.at(sizes) is None:
            return math.inf
        if (limit := self._limit_at(variant.entry, sizes)) is None:
            return math.inf
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        profile = (variant.at(sizes) or variant.entry.profile).entered(storages(tensors))
        return limit - LEDGER.peak_with(replace(profile, existing=gradients_of(tensors)))

    def _known(self, state: State, share: Share | None, sizes: Sizes) -> Variant | None:
        if (variant := self.variants.get((state, share))) is not None:
            return variant
        return next((variant for variant in self.resized.get((state, share), ()) if variant.holds(sizes)), None)

    def _made(self, args: Sequence[Any], state: State, share: Share | None, sizes: Sizes) -> Variant:
        """For these sizes, and for others as far as it holds. Where it is not the first that is made for sizes, larger ones are
        to come: it is planned for those, if the budget has a plan for them."""
        assert self.again is not None
        log.info("graph %s: planned again for another step (%s, %s, %s)", self.entry.report.graph_id, state, share, sizes)
        if LEDGER.tapes.open is not None:
            LEDGER.tapes.open.spoilt = True
        others = self.resized.setdefault((state, share), [])
        made = self._larger(args, share, sizes) if sizes and others else None
        made = made or self.again(args, self.tangents_held, share, sizes)
        self.keeps.append(made)
        (variant,) = made.variants.values()
        if not sizes:
            self.variants[state, share] = variant
            return variant
        variant = replace(variant, holds=made.holds or functools.partial(operator.eq, sizes))
        others.insert(0, variant)
        return variant

    def _larger(self, args: Sequence[Any], share: Share | None, sizes: Sizes) -> CompiledGraph | None:
        """Planned for larger sizes than those; None where the budget has no plan for them, or the code would not hold for
        these."""
        assert self.again is not None
        try:
            made = self.again(args, self.tangents_held, share, tuple(math.ceil(GROWTH * size) for size in sizes))
        except BudgetInfeasibleError:
            return None
        return made if made.entry.report.fits and made.holds is not None and made.holds(sizes) else None
