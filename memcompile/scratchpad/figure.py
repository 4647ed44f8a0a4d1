"""How a network runs in a small fast memory: plain frozen data, as in ``data``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from memcompile.report.figure import Figure


@dataclass(frozen=True, slots=True)
class ScratchpadStep:
    """An operator, in the order in which they run. ``live_bytes``: in the scratchpad meanwhile. ``source``: the user's line."""

    name: str
    live_bytes: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class ScratchpadStay:
    """A tensor lies at ``offset`` in steps ``[begin, end)``. ``loaded``: it comes from the memory behind before step ``begin``;
    ``stored``: it goes there after that step."""

    tensor: str
    size_bytes: int
    begin: int
    end: int
    offset: int
    loaded: bool
    stored: bool


@dataclass(frozen=True, slots=True)
class ScratchpadTransfer:
    """Before ("load") or after ("store") step ``step``. ``compulsory``: any plan moves these bytes."""

    step: int
    tensor: str
    kind: Literal["load", "store"]
    size_bytes: int
    compulsory: bool


@dataclass(frozen=True, slots=True)
class ScratchpadLevel:
    """A memory, and what moves between it and the one behind it. ``size_bytes``: 0 where there is room for all.

    ``bound_bytes``: in this order no fewer than that move beyond the compulsory ones. ``seconds``: of all transfers, 0 where
    the bandwidth is not known.
    """

    name: str
    size_bytes: int
    height_bytes: int
    moved_bytes: int
    compulsory_bytes: int
    bound_bytes: int
    seconds: float
    stays: tuple[ScratchpadStay, ...] = ()
    transfers: tuple[ScratchpadTransfer, ...] = ()


@dataclass(frozen=True, slots=True)
class ScratchpadReport(Figure):
    """Order, offsets over time and transfers. ``moved_bytes``: those that are not compulsory; of weights, which are streamed,
    there are ``weight_bytes`` beside.

    ``status``: "optimal", "optimal for the order", or "bounded". ``order_bound_bytes``: no plan in this order moves fewer;
    ``bound_bytes``: none in any order does. ``needed_bytes``: the smallest scratchpad that holds each operator.
    ``given_bytes``: moved in the order of the graph with the best replacement, places aside. ``levels``: the scratchpad, then
    the memories behind it that have a size; their steps are the transfers of the one before. ``bytes_per_element``: 0 for those
    of each data type. ``seconds``: of the search.
    """

    name: ClassVar[str] = "scratchpad"
    label: ClassVar[str] = "scratchpad"
    title: ClassVar[str] = "Scratchpad"
    file: ClassVar[str] = "scratchpad"

    size_bytes: int
    needed_bytes: int
    compulsory_bytes: int
    moved_bytes: int
    given_bytes: int
    order_bound_bytes: int
    bound_bytes: int
    status: str
    method: str
    seconds: float
    weight_bytes: int = 0
    bytes_per_element: int = 0
    steps: tuple[ScratchpadStep, ...] = ()
    levels: tuple[ScratchpadLevel, ...] = ()

    @property
    def gap(self) -> float:
        """The share of the moved bytes that is not proven to be needed."""
        return 1 - self.bound_bytes / self.moved_bytes if self.moved_bytes else 0.0

    def line(self) -> str:
        """What moves and what is proven."""
        from memcompile.scratchpad.figure_text import scratchpad_text

        return scratchpad_text(self)

    def chart(self, *, file: bool = False) -> str:
        """Places over the operators."""
        from memcompile.scratchpad.figure_chart import scratchpad_chart

        return scratchpad_chart(self, file=file)

    def derived(self) -> Mapping[str, Any]:
        """The gap."""
        return {"gap": self.gap}
