"""What a plan computes again and moves, as a part of the report."""

from __future__ import annotations

from typing import Any

from memcompile.passes.base import Section, Times, refusals
from memcompile.passes.schedule.fit import Attempt, Outcome
from memcompile.passes.schedule.moves_section import SwapReport, refused_moves, swap_report
from memcompile.passes.schedule.rematerialize import Recomputation, recomputations
from memcompile.report.data import DecisionRow, PassReport
from memcompile.step.facts import Facts
from memcompile.step.fxutil import readable
from memcompile.step.lowered import texts_of


def section_of(outcome: Outcome, outside: int) -> Section:
    """``outside``: bytes alive beside the graph."""
    if outcome.chosen is None or outcome.facts is None:
        status = "optimal" if outcome.fitted.fits else "none"
        return Section(times=Times(0.0, 0.0, 0.0, status, "nothing to do"))  # type: ignore[arg-type]
    return _planned(outcome, outcome.chosen, outcome.facts, outside)


def _planned(outcome: Outcome, chosen: Attempt, facts: Facts, outside: int) -> Section:
    solution, problem = chosen.solution, facts.problem
    rows = recomputations(facts, solution.schedule)
    base_seconds = problem.total_seconds
    bound = f", bound {_percent(solution.lower_bound_seconds, base_seconds)}" if solution.status != "heuristic" else ""
    swap = swap_report(outcome, outside)
    done = PassReport(
        name="rematerialize",
        peak_before_bytes=outcome.base.peak.peak_bytes + outside,
        peak_after_bytes=outcome.final.peak.peak_bytes + outside if swap is None else swap.done.peak_before_bytes,
        seconds_before=base_seconds,
        seconds_after=base_seconds + solution.extra_seconds if swap is None else swap.done.seconds_before,
        compile_seconds=outcome.plan_seconds + outcome.lower_seconds,
        summary=f"{len(rows)} storages recomputed ({solution.status}{bound})",
    )
    return Section(
        passes=(done,) if swap is None else (done, swap.done),
        decisions=(
            *map(_decision, rows),
            *(() if swap is None else swap.decisions),
            *refusals(facts.refused),
            *refused_moves(outcome),
        ),
        times=Times(
            base_seconds + solution.extra_seconds,
            base_seconds + solution.lower_bound_seconds,
            base_seconds,
            solution.status,
            solution.method,
        ),
        plan=_numbers(outcome, chosen, facts, swap),
        graphs={"joint after rematerialize": readable(chosen.joint.module), **texts_of("after rematerialize", chosen.lowered)},
    )


def _decision(row: Recomputation) -> DecisionRow:
    why = "dropped after its last use in the forward" if row.times == 1 else f"made again {row.times} times"
    return DecisionRow("recompute", row.storage, row.source, row.size_bytes, row.seconds, why)


def _numbers(outcome: Outcome, chosen: Attempt, facts: Facts, swap: SwapReport | None) -> dict[str, Any]:
    """For plan.json."""
    solution, problem = chosen.solution, facts.problem
    return {
        "schedule": [problem.ops[op].name for op in solution.schedule.sequence],
        "backward_starts_at": solution.schedule.split,
        "model_peak_bytes": solution.peak_bytes,
        "exact_peak_bytes": outcome.final.peak.peak_bytes,
        "targets": [attempt.target_bytes for attempt in outcome.attempts],
        "trial_lowerings": sum(not attempt.trusted for attempt in outcome.attempts),
        "plan_seconds": outcome.plan_seconds,
        "lower_seconds": outcome.lower_seconds,
        "ops": len(problem.ops),
        "storages": len(problem.storages),
        **({} if swap is None else swap.plan),
    }


def _percent(seconds: float, total: float) -> str:
    return f"{100 * seconds / total:.1f} %" if total else "0 %"
