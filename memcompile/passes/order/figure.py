"""The orders of a graph's kernels, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from memcompile.report.data import Status
from memcompile.report.figure import Figure
from memcompile.units import format_bytes, format_pair


@dataclass(frozen=True, slots=True)
class OrderReport:
    """The order of the kernels of one half (``kind``), or of an inference graph; peaks are of its own buffers and of the inputs
    that die in it.

    ``before_bytes``: as Inductor orders them. ``bound_bytes``: no order has a smaller peak. ``apart``: loops that no longer
    share a function with the next ones.
    """

    kind: str
    kernels: int
    before_bytes: int
    after_bytes: int
    bound_bytes: int
    apart: int
    status: Status
    method: str
    seconds: float

    def line(self) -> str:
        """Peaks of one half by itself, as Inductor orders its kernels and as they run."""
        if self.after_bytes == self.before_bytes:
            peak = f"{format_bytes(self.after_bytes)} as Inductor has it"
        else:
            peak = f"{format_pair(self.before_bytes, self.after_bytes)} by {self.method}"
        proof = "optimal" if self.status == "optimal" else f"none is below {format_bytes(self.bound_bytes)}"
        return f"{self.kind} {peak} ({proof})"


@dataclass(frozen=True, slots=True)
class Orders(Figure):
    """Those of the halves of a graph without a recompute plan, which has an order of its own."""

    name: ClassVar[str] = "schedule"
    label: ClassVar[str] = "order"

    orders: tuple[OrderReport, ...]

    @property
    def shown(self) -> bool:
        """A graph with a plan has none."""
        return bool(self.orders)

    def line(self) -> str:
        """One after the other."""
        return "; ".join(order.line() for order in self.orders)
