"""What became of the weights that are not in memory, as rows of the report."""

from __future__ import annotations

import dataclasses
from typing import Any

from memcompile.passes.weights.search import WeightPlan
from memcompile.report.data import DecisionRow, PassReport
from memcompile.units import format_bytes

ASSUMED_NOTE = "no weight was read yet: the speed of reads is assumed, not measured"


def weights_pass(plan: WeightPlan | None, outside: int) -> tuple[PassReport, ...]:
    """The row of the pass. ``outside``: bytes alive beside the graph; without a budget, peaks are not known here."""
    if plan is None:
        return ()
    prefetch = plan.streamed.prefetch
    before = plan.base.peak.peak_bytes + outside if plan.base is not None else 0
    after = plan.lowered.peak.peak_bytes + outside if plan.lowered is not None else 0
    summary = (
        f"{format_bytes(prefetch.streamed_bytes)} read in a step, {format_bytes(plan.streamed.resident_bytes)} stay, "
        f"{100 * prefetch.hidden:.0f} % hidden"
    )
    return (PassReport("weights", before, after, plan.total_s, prefetch.seconds, plan.plan_seconds, summary),)


def weights_decisions(plan: WeightPlan | None) -> tuple[DecisionRow, ...]:
    """What is read, largest first, and what stays."""
    if plan is None:
        return ()
    rows = sorted(plan.streamed.rows, key=lambda row: -row[0].size_bytes)
    moves = [
        DecisionRow(
            "move", weight.name, source, weight.size_bytes, plan.link.read_s(weight.size_bytes),
            f"from {weight.tier}, read {lead} operation{'s' * (lead != 1)} before its use",
        )
        for weight, source, lead in rows
    ]  # fmt: skip
    kept = sorted(plan.streamed.residents, key=lambda weight: -weight.size_bytes)
    return (*moves, *(DecisionRow("keep", w.name, "", w.size_bytes, None, "stays in memory between calls") for w in kept))


def weights_plan(plan: WeightPlan | None) -> dict[str, Any]:
    """For plan.json."""
    if plan is None:
        return {}
    prefetch = plan.streamed.prefetch
    return {
        "weights": {
            "weight_bytes": plan.weight_bytes,
            "streamed_bytes": prefetch.streamed_bytes,
            "resident_bytes": plan.streamed.resident_bytes,
            "reads": len(prefetch.starts),
            "hidden_share": prefetch.hidden,
            "waited_seconds": prefetch.waited_s,
            "link_seconds": prefetch.link_s,
            "link": dataclasses.asdict(plan.link),
            "model_peak_bytes": prefetch.peak_bytes,
            "plan_seconds": plan.plan_seconds,
        }
    }


def weights_times(plan: WeightPlan | None) -> dict[str, Any]:
    """Seconds of a step: with the plan, at least, and with all weights in memory."""
    if plan is None:
        return {}
    bound = max(plan.total_s, plan.streamed.prefetch.link_s)
    return {"planned_seconds": plan.streamed.prefetch.seconds, "lower_bound_seconds": bound, "base_seconds": plan.total_s}


def weights_notes(plan: WeightPlan | None) -> tuple[str, ...]:
    """What to know."""
    return (ASSUMED_NOTE,) if plan is not None and plan.link_assumed else ()
