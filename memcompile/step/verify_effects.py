"""Whether a graph that was rewritten still does what it did beside returning values.

For passes whose graphs compute the same by other expressions (tiles, rows, reads of weights), so that value numbering
(``verify_values.py``) finds nothing to compare. Shares no code with the passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from memcompile.step.verify_values import VerificationError, is_effect, viewed, written


@dataclass(frozen=True, slots=True)
class Effects:
    """``happened``: operators with an effect, in order. ``written``: input -> the operators that write it, in order.
    ``read_after``: input -> how many nodes read it after it was written."""

    happened: tuple[str, ...]
    written: Mapping[str, tuple[str, ...]]
    read_after: Mapping[str, int]


@dataclass(slots=True)
class _Reader:
    happened: list[str] = field(default_factory=list)
    written: dict[str, tuple[str, ...]] = field(default_factory=dict)
    read_after: dict[str, int] = field(default_factory=dict)
    source: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def read(self, node: fx.Node) -> None:
        name = str(node.target)
        writes = [self._input(memory) for memory in written(node)]
        for memory in {*map(self._input, node.all_input_nodes)} - {*writes}:
            if memory in self.written:
                self.read_after[memory] = self.read_after.get(memory, 0) + 1
        for memory in writes:
            self.written[memory] = (*self.written.get(memory, ()), name)
        if not writes and is_effect(node) and not _is_ours(node):
            self.happened.append(name)
        view = viewed(node)
        if view is not None:
            self.source[node] = view

    def _input(self, node: fx.Node) -> str:
        while node in self.source:
            node = self.source[node]
        return node.name


def effects_of(graph: fx.Graph) -> Effects:
    """What a graph does beside returning values."""
    reader = _Reader()
    for node in graph.nodes:
        if node.op == "call_function":
            reader.read(node)
    inputs = {node.name for node in graph.find_nodes(op="placeholder")}
    written = {name: writers for name, writers in reader.written.items() if name in inputs}
    return Effects(tuple(reader.happened), written, {name: reader.read_after.get(name, 0) for name in written})


def check_effects(before: Effects, graph: fx.Graph) -> None:
    """Compare with what the graph did before it was rewritten. Raises VerificationError."""
    after = effects_of(graph)
    if before.happened != after.happened:
        raise VerificationError(f"effects changed: {', '.join(before.happened)} before, {', '.join(after.happened)} after")
    for name in sorted({*before.written, *after.written}):
        if before.written.get(name) != after.written.get(name):
            raise VerificationError(f"{name} is written by {after.written.get(name)}, was by {before.written.get(name)}")
        if after.read_after[name] > before.read_after[name]:
            raise VerificationError(f"{name} is read after it was written, where it was read before")


def _is_ours(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "memcompile"
