"""What became of the weights that are not in memory, as a part of the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memcompile.passes.base import Section, Times
from memcompile.passes.weights.search import WeightPlan
from memcompile.report.data import DecisionRow, PassReport
from memcompile.units import format_bytes

ASSUMED_NOTE = "no weight was read yet: the speed of reads is assumed, not measured"


def section_of(plan: WeightPlan, outside: int) -> Section:
    """``outside``: bytes alive beside the graph."""
    return Section(
        passes=(_row(plan, outside),),
        decisions=tuple(_decisions(plan)),
        notes=(ASSUMED_NOTE,) if plan.link_assumed else (),
        times=_times(plan),
        plan={"weights": _numbers(plan)},
    )


def _row(plan: WeightPlan, outside: int) -> PassReport:
    """Without a budget, peaks are not known here."""
    prefetch = plan.streamed.prefetch
    before = plan.base.peak.peak_bytes + outside if plan.base is not None else 0
    after = plan.lowered.peak.peak_bytes + outside if plan.lowered is not None else 0
    summary = (
        f"{format_bytes(prefetch.streamed_bytes)} read in a step, {format_bytes(plan.streamed.resident_bytes)} stay, "
        f"{100 * prefetch.hidden:.0f} % hidden"
    )
    return PassReport("weights", before, after, plan.total_s, prefetch.seconds, plan.plan_seconds, summary)


def _decisions(plan: WeightPlan) -> Iterator[DecisionRow]:
    """What is read, largest first, and what stays."""
    for weight, source, lead in sorted(plan.streamed.rows, key=lambda row: -row[0].size_bytes):
        why = f"from {weight.tier}, read {lead} operation{'s' * (lead != 1)} before its use"
        yield DecisionRow("move", weight.name, source, weight.size_bytes, plan.link.read_s(weight.size_bytes), why)
    for weight in sorted(plan.streamed.residents, key=lambda weight: -weight.size_bytes):
        yield DecisionRow("keep", weight.name, "", weight.size_bytes, None, "stays in memory between calls")


def _times(plan: WeightPlan) -> Times:
    """Seconds of a step: with the plan, at least, and with all weights in memory."""
    prefetch, fitted = plan.streamed.prefetch, plan.fitted
    seconds = prefetch.seconds, max(plan.total_s, prefetch.link_s), plan.total_s
    if fitted is None:
        return Times(*seconds)
    return Times(*seconds, "optimal" if fitted.fits else "none", "nothing to do")


def _numbers(plan: WeightPlan) -> dict[str, Any]:
    """For plan.json."""
    prefetch = plan.streamed.prefetch
    return {
        "weight_bytes": plan.weight_bytes,
        "streamed_bytes": prefetch.streamed_bytes,
        "resident_bytes": plan.streamed.resident_bytes,
        "reads": len(prefetch.starts),
        "hidden_share": prefetch.hidden,
        "waited_seconds": prefetch.waited_s,
        "link_seconds": prefetch.link_s,
        "link": {"read_bytes_per_s": plan.link.read_bytes_per_s, "latency_s": plan.link.latency_s},
        "model_peak_bytes": prefetch.peak_bytes,
        "plan_seconds": plan.plan_seconds,
    }
