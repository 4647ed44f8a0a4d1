"""Vectors of C++ loops that Inductor stores right.

It tiles up to two loops. Where a loop lies between the two and the inner one is a reduction, it takes that loop for the inner
one, and stores the rest of a row as a whole vector: over the next row, and behind the last one over memory of others
(pytorch/pytorch#196681). Such loops stay scalar. Private API in use: ``TilingSelect.select_tiling``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def sound_tiles() -> Iterator[None]:
    """While active, no loops are tiled that would be stored beyond their end."""
    from torch._inductor.codegen.cpp import KernelOpStats, TilingSelect

    chooser: Any = TilingSelect
    select = chooser.select_tiling

    def sound(tiling: Any, bodies: Any, sizes: Sequence[Any]) -> Any:
        chosen = select(tiling, bodies, sizes)
        outer = max((len(loops) for loops, _reduced in sizes), default=0)
        return ([], [], KernelOpStats()) if misses_the_end(chosen[1], outer) else chosen

    chooser.select_tiling = sound
    try:
        yield
    finally:
        chooser.select_tiling = select


def misses_the_end(tiled: Sequence[int], outer: int) -> bool:
    """Whether the ``tiled`` loops of a nest, whose loops from ``outer`` on are reductions, are a pair with a loop between."""
    return len(tiled) == 2 and tiled[0] < outer <= tiled[1] and tiled[1] != tiled[0] + 1
