"""Regions of an inference graph: from one neck, where little is alive, to the next.

Along the nodes that are row-local for some rows, the bytes alive rise and fall: in a transformer they fall to the width of the
residual stream between attention and feed-forward network and rise to the hidden in between. A region from neck to neck keeps
all of the hill inside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from memcompile.step.cost import is_extern
from memcompile.step.fxutil import is_view, tensors_of
from memcompile.streaming.profile import LiveProfile
from memcompile.streaming.region import RowRegion, enclose, spread
from memcompile.streaming.rules import NotRowLocalError, RowAxes, normal, shape_of

TOLERANCE = 1.05
"""A neck may be that much wider than the narrowest one, when it is nearer."""
LEAST_SHARE = 0.5
"""A hill that is not twice as high as its necks stays as it is."""


@dataclass(frozen=True, slots=True)
class Found:
    """A region, and the bytes that it saves: the top of the hill above both necks."""

    region: RowRegion
    saved_bytes: int


def regions_between_necks(
    graph: fx.Graph, seeds: Collection[fx.Node], least_bytes: int, coarse: Collection[fx.Node] = ()
) -> list[Found]:
    """Disjoint regions around ``seeds``, each the finest there is, that save ``least_bytes`` or more; around ``coarse``, only
    of items of a batch."""
    found: list[Found] = []
    taken: set[fx.Node] = set()
    for finest in (True, False):
        for seed in seeds if finest else (*seeds, *coarse):
            if seed in taken:
                continue
            for rows, total in possible_rows(graph, seed, finest):
                hill = _hill(graph, seed, rows, total, taken, closed=finest)
                if hill is not None and hill.saved_bytes >= least_bytes:
                    found.append(hill)
                    taken.update(hill.region.nodes)
                    break
    return found


def possible_rows(graph: fx.Graph, seed: fx.Node, finest: bool) -> Iterator[tuple[RowAxes, int]]:
    """What the rows of a product may be: each row of its left operand; or the items of a batch that attention is over."""
    shape = shape_of(seed)
    axis = len(shape) - 2
    if finest:
        yield normal(shape, axis, axis, 1), shape[axis]
        return
    batches = {shape_of(node)[0] for node in graph.nodes if "attention" in str(node.target) and tensors_of(node)}
    for batch in sorted(batches, reverse=True):
        if 1 < batch < shape[axis] and shape[axis] % batch == 0:
            yield normal(shape, axis, axis, shape[axis] // batch), batch


def _hill(
    graph: fx.Graph, seed: fx.Node, rows: RowAxes, total: int, taken: Collection[fx.Node], *, closed: bool
) -> Found | None:
    """The region around a seed. ``closed``: not one that begins wider than it ends because other nodes cut it off: coarser rows
    go on there."""
    known, inside = spread(seed, rows, total)
    inside -= set(taken)
    if seed not in inside:
        return None
    run, cut = _run(graph, seed, inside)
    profile = LiveProfile(run, known)
    begin, end = _necks(run, profile.before, profile.during, run.index(seed))
    if closed and cut and profile.before[begin] > TOLERANCE * profile.before[end]:
        return None
    nodes = _with_views(graph, run[begin:end], inside)
    try:
        region = enclose(nodes, {n: known[n] for n in nodes}, total)
    except NotRowLocalError:
        return None
    saved = profile.hill(begin, end)
    return Found(region, saved) if saved >= LEAST_SHARE * max(profile.during[begin:end]) else None


def _with_views(graph: fx.Graph, nodes: Collection[fx.Node], inside: Collection[fx.Node]) -> list[fx.Node]:
    """The nodes with the views that they read, without the views that only others read: storages cross, not views of them."""
    chosen = set(nodes)
    while unread := {n for n in chosen if is_view(n) and not chosen & set(n.users)}:
        chosen -= unread
    while read := {s for n in chosen for s in n.all_input_nodes if s not in chosen and s in inside and is_view(s)}:
        chosen |= read
    return [node for node in graph.nodes if node in chosen]


def _run(graph: fx.Graph, seed: fx.Node, inside: Collection[fx.Node]) -> tuple[list[fx.Node], bool]:
    """The row-local nodes around the seed up to the first node on each side that depends on such nodes without being one; and
    whether there is one before them."""
    order = list(graph.nodes)
    reached: set[fx.Node] = set()
    for node in order:
        if any(source in inside or source in reached for source in node.all_input_nodes):
            reached.add(node)
    place = order.index(seed)
    first = next((i for i in range(place, -1, -1) if order[i] in reached and order[i] not in inside), -1)
    last = next((i for i in range(place, len(order)) if order[i] in reached and order[i] not in inside), len(order))
    return [node for node in order[first + 1 : last] if node in inside], first >= 0


def _necks(run: Sequence[fx.Node], before: Sequence[int], during: Sequence[int], seed: int) -> tuple[int, int]:
    """Where a region around a node begins and ends: at the nearest narrow places on both sides.

    It takes in what follows as long as that frees more than it leaves alive.
    """
    narrow = TOLERANCE * min(before[: seed + 1])
    begin = max(i for i in range(seed + 1) if before[i] <= narrow)
    narrow = TOLERANCE * min(before[seed + 1 :])
    end = min(i for i in range(seed + 1, len(before)) if before[i] <= narrow)
    while end + 1 < len(before) and during[end] > before[end + 1]:
        end += 1
    library = next((i for i in range(end, len(run)) if is_extern(run[i])), len(run))
    end = max(i for i in range(end, library + 1) if before[i] <= max(narrow, before[end]))
    return begin, end
