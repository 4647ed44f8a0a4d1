"""The passes, in the order in which they run, and the loop that runs them: read this file first.

    Dynamo's graph ─> AOTAutograd ─> capture: the joint graph of a training step, or a graph for inference
                      partition      as plain torch.compile does (``codegen/inductor/partition.py``)
                      step           forward and backward, within the budget
                      Inductor       lowers what is left; lowered: where passes took part in that
                      last gate      the exact peak of what was compiled (``session.py``)

A pass plans on a graph that stays as it is, and makes another one by its plan. After each, whatever it did: the graph still
takes and returns the same and is sound, and a captured one has the same effects. Then the pass's own check. What crashes is
named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from memcompile.codegen.inductor.hooks import Hook
from memcompile.codegen.inductor.surface import raised_by_inductor, surface, wrapped
from memcompile.compiling.unchanged import check_unchanged
from memcompile.errors import MemcompileError, PassError
from memcompile.logs import get_logger
from memcompile.passes.arena.arena import ArenaPlaces
from memcompile.passes.base import Captured, Context, Made, Pass, Plan, Refused, Request, Section, Stage, refusals
from memcompile.passes.order.order import KernelOrder
from memcompile.passes.rows.rows import RowStreaming
from memcompile.passes.schedule.schedule import JointSchedule
from memcompile.passes.scratchpad.scratchpad import ScratchpadPlans
from memcompile.passes.tiles.tiles import ImageTiles
from memcompile.passes.weights.weights import WeightReads
from memcompile.step.facts import StepGraphs
from memcompile.step.lowered import Fitted

log = get_logger(__name__)

PASSES: tuple[Pass[Any, Any], ...] = (
    RowStreaming(),
    WeightReads(),
    ScratchpadPlans(),
    ImageTiles(),
    JointSchedule(),
    KernelOrder(),
    ArenaPlaces(),
)

G = TypeVar("G", Captured, StepGraphs, Made)


@dataclass(frozen=True, slots=True)
class Done:
    """A pass that did something to a graph, or refused to."""

    by: Pass[Any, Any]
    plan: Plan

    def section(self, made: Made) -> Section:
        """Its part of the report."""
        if isinstance(self.plan, Refused):
            return Section(decisions=refusals(self.plan.rows), notes=self.plan.notes)
        return self.by.section(self.plan, made)


def hooks_of(request: Request) -> dict[str, Hook]:
    """What takes part in lowering one graph, by the pass that it is of."""
    return {each.name: hook for each in PASSES if (hook := each.hook(request)) is not None}


def run(stage: Stage, graph: G, ctx: Context, done: list[Done], refuse: Callable[[Fitted], None]) -> G:
    """The passes of a stage, one after the other; each that did something is entered into ``done``. ``refuse``: raises where a
    plan does not keep the budget and has to."""
    for each in PASSES:
        if each.stage == stage and (stage == "lowered" or not any(before.plan.settles for before in done)):
            with _named(each.name, goes_on=stage != "lowered" and ctx.options.fallback == "inductor"):
                graph, plan = _one(each, graph, ctx)
                if plan is not None:
                    done.append(Done(each, plan))
                if plan is not None and plan.fitted is not None:
                    refuse(plan.fitted)
    return graph


def _one(each: Pass[Any, Any], graph: G, ctx: Context) -> tuple[G, Plan | None]:
    """Plan, apply, check."""
    plan = each.plan(graph, ctx)
    if plan is None or isinstance(plan, Refused):
        return graph, plan
    after = each.apply(graph, plan)
    if after is not graph:
        check_unchanged(graph, after)
    each.check(graph, after, plan)
    return after, plan


def fitted_in(done: Iterable[Done]) -> Fitted | None:
    """What became of the budget, as it stands."""
    return next((fitted for each in done if (fitted := each.plan.fitted) is not None), None)


@contextlib.contextmanager
def _named(name: str, goes_on: bool) -> Iterator[None]:
    """A bug of ours in a pass: named, with its cause. ``goes_on``: the user chose to go on without the pass.

    What Inductor cannot compile by itself stays an error of Inductor's.
    """
    try:
        yield
    except MemcompileError:
        raise
    except Exception as error:
        if (own := wrapped(error)) is not None:
            raise surface(own) from None
        if raised_by_inductor(error):
            raise
        if not goes_on:
            raise PassError(name, f"{type(error).__name__}: {error}") from error
        log.warning(
            "%s failed, Inductor compiles the graph as it is: %s", name, str(error)
        )  # records live long, frames with them
