"""Which kernels Inductor may fuse in a planned graph.

Inductor fuses kernels that read the same data, wherever they stand. A recomputed operation reads what the backward nearby reads
too, so it would be fused with it and run at another time than planned: all their results would be alive together. A part of a
concatenation would be written as soon as it is known, and the whole buffer is alive from its first part on. The sums of many
gradients would wait for the last one. Fusion across a library kernel is refused (transfers of moves are none); everything else
stays as Inductor decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx
from torch._inductor.choices import InductorChoices

from memcompile.codegen.inductor.swapped import is_move
from memcompile.step.fxutil import none_between


class PlannedFusion(InductorChoices):
    """Inductor's own heuristics, no fusion over a library kernel, and none of one of the ``recomputed`` FX nodes with another
    operation that only reads the same data."""

    def __init__(self, recomputed: frozenset[str]) -> None:
        super().__init__()
        self.recomputed = recomputed
        self.scheduler: Any = None
        self.barriers: list[int] = []

    def can_fuse_horizontal(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
        return (
            super().can_fuse_horizontal(scheduler, node1, node2, shared_data_score)
            and self._is_recomputed(node1) == self._is_recomputed(node2)
            and self._is_near(scheduler, node1, node2)
        )

    def can_fuse_vertical(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
        return super().can_fuse_vertical(scheduler, node1, node2, shared_data_score) and self._is_near(scheduler, node1, node2)

    def _is_near(self, scheduler: Any, node1: Any, node2: Any) -> bool:
        """Whether no library kernel stands between the two."""
        if self.scheduler is not scheduler:
            self.scheduler = scheduler
            self.barriers = sorted(node.min_order for node in scheduler.nodes if node.is_extern() and not is_move(node.node))
        first, second = sorted((node1, node2), key=lambda node: node.min_order)
        return none_between(self.barriers, first.max_order, second.min_order)

    def _is_recomputed(self, node: Any) -> bool:
        return any(origin.name in self.recomputed for origin in origins_of(node))


def origins_of(node: Any) -> Iterator[fx.Node]:
    """The FX nodes that a (fused) scheduler node computes."""
    for part in node.get_nodes():
        if part.node is not None:
            yield from part.node.get_origins()
