"""Which kernels Inductor may fuse in a planned graph.

Inductor fuses kernels that read the same data, wherever they stand. A recomputed operation reads what the backward nearby reads
too, so it would be fused with it and run at another time than planned: all their results would be alive together. A part of a
concatenation would be written as soon as it is known, and the whole buffer is alive from its first part on. Fusion across a
library kernel is refused for these two; everything else stays as Inductor decides.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch._inductor.choices import InductorChoices


class PlannedFusion(InductorChoices):
    """Inductor's own heuristics, and no fusion that moves one of the ``recomputed`` FX nodes, or a part of a concatenation,
    over a library kernel."""

    def __init__(self, recomputed: frozenset[str]) -> None:
        super().__init__()
        self.recomputed = recomputed
        self.scheduler: Any = None
        self.barriers: list[int] = []

    def can_fuse_horizontal(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
        return (
            super().can_fuse_horizontal(scheduler, node1, node2, shared_data_score)
            and self._is_remade(node1) == self._is_remade(node2)
            and self._keeps_time(scheduler, node1, node2)
        )

    def can_fuse_vertical(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
        return super().can_fuse_vertical(scheduler, node1, node2, shared_data_score) and self._keeps_time(
            scheduler, node1, node2
        )

    def _is_remade(self, node: Any) -> bool:
        return any(origin.name in self.recomputed for origin in _origins(node))

    def _keeps_time(self, scheduler: Any, node1: Any, node2: Any) -> bool:
        if self.scheduler is not scheduler:
            self.scheduler = scheduler
            self.barriers = sorted(node.min_order for node in scheduler.nodes if node.is_extern())
        first, second = sorted((node1, node2), key=lambda node: node.min_order)
        begin = bisect.bisect_right(self.barriers, first.max_order)
        between = begin < len(self.barriers) and self.barriers[begin] < second.min_order
        return not between or not any(map(self._has_its_time, (*_origins(node1), *_origins(node2))))

    def _has_its_time(self, origin: fx.Node) -> bool:
        return origin.name in self.recomputed or origin.target is torch.ops.aten.cat.default


def _origins(node: Any) -> Iterator[fx.Node]:
    for part in node.get_nodes():
        if part.node is not None:
            yield from part.node.get_origins()
