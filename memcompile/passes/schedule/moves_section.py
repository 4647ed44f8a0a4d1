"""What a plan moves, as rows of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memcompile.passes.schedule.fit import Outcome
from memcompile.passes.schedule.swap import is_static, moved_storages, traffic_of
from memcompile.report.data import DecisionRow, PassReport
from memcompile.solvers.schedule.simulate import absent, simulate
from memcompile.step.fxutil import source_of
from memcompile.units import format_bytes


@dataclass(frozen=True, slots=True)
class SwapReport:
    """The row of the pass, its decisions, and what it adds to plan.json."""

    done: PassReport
    decisions: tuple[DecisionRow, ...]
    plan: Mapping[str, Any]


def swap_report(outcome: Outcome, outside: int) -> SwapReport | None:
    """Of the chosen plan; None where nothing moves. ``outside``: bytes alive beside the graph."""
    chosen, facts = outcome.chosen, outcome.facts
    if chosen is None or facts is None or not chosen.solution.schedule.moves:
        return None
    schedule, links = chosen.solution.schedule, outcome.tiers.links
    rows = moved_storages(facts, schedule, links)
    cost = traffic_of(facts, schedule, links)
    stays = simulate(facts.problem, dataclasses.replace(schedule, moves=())).peak_bytes
    after = outcome.final.peak.peak_bytes + outside
    seconds = facts.problem.total_seconds + chosen.solution.extra_seconds
    away = int(max(absent(schedule.moves, len(schedule.sequence))))
    done = PassReport(
        name="swap",
        peak_before_bytes=min(after + max(0, stays - chosen.solution.peak_bytes), outcome.base.peak.peak_bytes + outside),
        peak_after_bytes=after,
        seconds_before=seconds - cost.extra_s,
        seconds_after=seconds,
        compile_seconds=0.0,
        summary=f"{len(rows)} storages, {format_bytes(away)} away at once, {100 * cost.hidden:.0f} % hidden",
    )
    decisions = tuple(
        DecisionRow("move", row.storage, row.source, row.size_bytes, row.seconds, _why(row.tier, row.times)) for row in rows
    )
    names = facts.problem.storages
    moves = [
        {**dataclasses.asdict(move), "storage": names[move.storage].name, "link": links[move.link].name}
        for move in schedule.moves
    ]
    plan = {
        "moves": moves,
        "moved_bytes": cost.moved_bytes,
        "away_bytes": away,
        "hidden_share": cost.hidden,
        "waited_seconds": cost.waited_s,
        "busy_seconds": cost.busy_s,
        "link_seconds": cost.link_s,
        "links": [dataclasses.asdict(link) for link in links],
    }
    return SwapReport(done, decisions, plan)


def refused_moves(outcome: Outcome) -> tuple[DecisionRow, ...]:
    """Storages that may not leave although there is a tier: those whose size differs from call to call."""
    facts = outcome.facts
    if facts is None or not outcome.tiers.links:
        return ()
    nodes = zip(facts.problem.storages, facts.storage_nodes, strict=True)
    return tuple(
        DecisionRow("refused", storage.name, source_of(node), None, None, "dynamic shapes: it does not move")
        for storage, node in nodes
        if node.op == "call_function" and not is_static(node)
    )


def _why(tier: str, times: int) -> str:
    return f"to {tier}, back before its next use" if times == 1 else f"to {tier}, back {times} times"
