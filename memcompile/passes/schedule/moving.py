"""The moves of a schedule as nodes of a joint graph (``runtime/transfers/operators.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from memcompile.runtime.transfers.sources import Moved, Mover, moved
from memcompile.solvers.schedule.problem import Move

Step = Callable[[fx.Graph, fx.Node], fx.Node | None]
"""Appends nodes to a graph, given the node that holds the storage now; returns the node that holds it from then on, if another
one does."""


class Moving:
    """The steps of ``moves`` in the order of the executions around them. ``tiers``: names by link.

    ``all_moved``: what has left so far; ``moved`` and ``tickets``: the last instance of each storage that left, and the node
    that stands for its copy.
    """

    def __init__(self, moves: Sequence[Move], nodes: Sequence[fx.Node], tiers: Sequence[str], mover: Mover | None) -> None:
        self.nodes, self.tiers, self.mover = nodes, tiers, mover
        self.moved: dict[int, Moved] = {}
        self.all_moved: list[Moved] = []
        self.tickets: dict[int, fx.Node] = {}
        self._before: dict[int, list[tuple[int, Step]]] = {}
        self._after: dict[int, list[tuple[int, Step]]] = {}
        for move in moves:
            if not move.copied:
                self._after.setdefault(move.out, []).append((move.storage, partial(self._out, move)))
                self._before.setdefault(move.gone, []).append((move.storage, partial(self._gone, move)))
        for move in moves:
            self._before.setdefault(move.back, []).append((move.storage, partial(self._back, move)))
        for move in moves:
            self._before.setdefault(move.need, []).append((move.storage, partial(self._need, move)))

    def before(self, position: int) -> Iterator[tuple[fx.Node, Step]]:
        """Storages and what happens to them before an execution: waits for copies out, starts of copies in, waits for them."""
        return ((self.nodes[storage], step) for storage, step in self._before.get(position, ()))

    def after(self, position: int) -> Iterator[tuple[fx.Node, Step]]:
        """Storages that leave, after an execution."""
        return ((self.nodes[storage], step) for storage, step in self._after.get(position, ()))

    def _out(self, move: Move, graph: fx.Graph, held: fx.Node) -> None:
        self.moved[move.storage] = moved(held.name, self.tiers[move.link], held.meta["val"], self.mover)
        self.all_moved.append(self.moved[move.storage])
        self._call(graph, move, "swap_out", held)

    def _gone(self, move: Move, graph: fx.Graph, held: fx.Node) -> None:
        self._call(graph, move, "swap_out_wait", held, self.tickets[move.storage])

    def _call(self, graph: fx.Graph, move: Move, name: str, *args: fx.Node) -> None:
        key = self.moved[move.storage].key
        self.tickets[move.storage] = node = graph.call_function(getattr(torch.ops.memcompile, name).default, (*args, key))
        with _fake_mode(args[0]):
            node.meta["val"] = torch.empty(1, dtype=torch.int64, device="cpu")

    def _back(self, move: Move, graph: fx.Graph, held: fx.Node) -> fx.Node:
        args = (self.tickets[move.storage], self.moved[move.storage].key)
        return _like(graph.call_function(torch.ops.memcompile.swap_in.default, args), held)

    def _need(self, move: Move, graph: fx.Graph, held: fx.Node) -> fx.Node:
        args = (held, self.tickets[move.storage], self.moved[move.storage].key)
        return _like(graph.call_function(torch.ops.memcompile.swap_in_wait.default, args), held)


def _fake_mode(node: fx.Node) -> Any:
    return node.meta["val"].fake_mode


def _like(node: fx.Node, held: fx.Node) -> fx.Node:
    value = held.meta["val"]
    with value.fake_mode:
        node.meta["val"] = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.device)
    node.meta.update({key: held.meta[key] for key in ("stack_trace",) if key in held.meta})
    return node
