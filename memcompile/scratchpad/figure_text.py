"""What a scratchpad moves, in words."""

from __future__ import annotations

from memcompile.scratchpad.figure import ScratchpadLevel, ScratchpadReport
from memcompile.units import format_bytes, format_seconds


def scratchpad_text(plan: ScratchpadReport) -> str:
    """What moves and what is proven, on a line or two."""
    moved = f"{format_bytes(plan.moved_bytes)} moved beside {format_bytes(plan.compulsory_bytes)} compulsory"
    given = f", {format_bytes(plan.given_bytes)} in the order of the graph" if plan.given_bytes > plan.moved_bytes else ""
    parts = [f"{format_bytes(plan.size_bytes)} for {len(plan.steps)} operators: {moved}{given} ({proof_text(plan)})"]
    parts += [level_text(level) for level in plan.levels[1:]]
    parts += [f"weights are streamed, {format_bytes(plan.weight_bytes)}"] if plan.weight_bytes else []
    return "; ".join(parts)


def proof_text(plan: ScratchpadReport) -> str:
    """The certificate."""
    if plan.status == "optimal":
        return "optimal"
    bound = f"no order moves less than {format_bytes(plan.bound_bytes)}" if plan.bound_bytes else "no bound for other orders"
    if plan.status == "optimal for the order":
        return f"optimal for the order; {bound}"
    return f"this order moves at least {format_bytes(plan.order_bound_bytes)}; {bound}"


def level_text(level: ScratchpadLevel) -> str:
    """Traffic behind one of the further memories."""
    time = f" in {format_seconds(level.seconds)}" if level.seconds else ""
    total = level.moved_bytes + level.compulsory_bytes
    return f"{level.name} of {format_bytes(level.size_bytes)}: {format_bytes(total)} with what is behind it{time}"
