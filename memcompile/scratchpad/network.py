"""A captured inference graph -> operators and tensors of a scratchpad problem.

Tensors are what depends on an input; parameters, and what is made of them alone, are weights. Views are the tensor that they
view. Elementwise work behind an operator is part of it as long as one tensor leaves it, as accelerators do it: a normalisation,
an activation, a scale behind a convolution. All else is an operator of its own, additions and concatenations too.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from operator import getitem

import torch
from torch import fx

from memcompile.solvers.scratchpad.problem import ScratchpadOp, ScratchpadProblem, Tensor
from memcompile.step.cost import numel
from memcompile.step.fxutil import base_of, is_view, node_bytes, op_name, outputs_of, source_of, tensors_of

MOST_FUSED = 24
"""Elementwise operations that are looked at behind one operator."""
_ELEMENTWISE = frozenset({"_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm", "clone"})
"""In inference, beside those that PyTorch tags as such. A clone gives another layout."""
_SUMS = frozenset({"sum", "mean"})


def problem_of(graph: fx.Graph, weights: Collection[fx.Node], bytes_per_element: int | None = None) -> ScratchpadProblem:
    """``weights``: the placeholders that are parameters or buffers. ``bytes_per_element``: None for those of each data type."""
    return _Builder(graph, weights, bytes_per_element).build()


class _Builder:
    def __init__(self, graph: fx.Graph, weights: Collection[fx.Node], bytes_per_element: int | None) -> None:
        self.graph, self.element = graph, bytes_per_element
        self.weights = [n for n in graph.nodes if n.op == "get_attr" or (n.op == "placeholder" and n in weights)]
        self.inputs = [
            n for n in graph.nodes if n.op == "placeholder" and n not in weights and isinstance(n.meta.get("val"), torch.Tensor)
        ]
        self.place: dict[fx.Node, int] = {}
        """Nodes that run, by their place in the graph."""
        self.maker: dict[fx.Node, fx.Node] = {}
        """Per tensor the node that makes it; inputs make themselves."""
        self.reads: dict[fx.Node, list[fx.Node]] = {}
        self.read_by: dict[fx.Node, list[fx.Node]] = {}
        self._read()
        self.returned = {base_of(out) for out in outputs_of(graph) if isinstance(out, fx.Node)}
        self._inline()

    def _read(self) -> None:
        depends = set(self.inputs)
        for node in self.inputs:
            self.maker[node] = node
            self.read_by[node] = []
        for index, node in enumerate(self.graph.nodes):
            if node.op != "call_function" or not any(source in depends for source in node.all_input_nodes):
                continue
            depends.add(node)
            if is_view(node) or node.target is getitem:
                continue
            self.place[node] = index
            bases = (base_of(source) for source in node.all_input_nodes)
            self.reads[node] = [base for base in dict.fromkeys(bases) if base in self.maker]
            for base in self.reads[node]:
                self.read_by[base].append(node)
            for result in _results(node):
                self.maker[result] = node
                self.read_by[result] = []

    def _inline(self) -> None:
        """Products that are larger than what they read, and are summed at once, are never whole: Inductor writes the product of
        a matrix and one row that way."""
        for node in reversed(list(self.place)):
            readers = self.read_by.get(node, [])
            if len(readers) != 1 or node in self.returned or op_name(readers[0]) not in _SUMS or not _is_elementwise(node):
                continue
            reads = self.reads[node]
            if self._bytes(node) > sum(map(self._bytes, reads)):
                del self.place[node], self.maker[node]
                others = [base for base in self.reads[readers[0]] if base is not node]
                self.reads[readers[0]] = list(dict.fromkeys((*others, *reads)))
                for base in reads:
                    self.read_by[base] = [readers[0] if reader is node else reader for reader in self.read_by[base]]

    def build(self) -> ScratchpadProblem:
        """The problem, its operators in the order of the graph."""
        numbers: dict[fx.Node, int] = {}
        tensors: list[Tensor] = []

        def number(node: fx.Node) -> int:
            if node not in numbers:
                numbers[node] = len(tensors)
                is_input = node.op == "placeholder"
                tensors.append(Tensor(node.name, self._bytes(node), is_input, node in self.returned))
            return numbers[node]

        ops: list[ScratchpadOp] = []
        fused: set[fx.Node] = set()
        for leader in self.place:
            if leader in fused:
                continue
            group = self._group(leader)
            fused |= group
            reads = [base for node in self._ordered(group) for base in self.reads[node] if self.maker[base] not in group]
            writes = self._leaving(group)
            if writes:
                read = tuple(map(number, dict.fromkeys(reads)))
                ops.append(ScratchpadOp(leader.name, read, tuple(map(number, writes)), source_of(leader)))
        return ScratchpadProblem(tuple(ops), tuple(tensors), sum(map(self._bytes, self.weights)))

    def _group(self, leader: fx.Node) -> set[fx.Node]:
        """``leader`` and the elementwise operations behind it that leave one tensor: as many as there are."""
        group, best = {leader}, {leader}
        waiting: list[tuple[int, fx.Node]] = []
        self._push(waiting, leader)
        seen: set[fx.Node] = set()
        while waiting and len(group) < MOST_FUSED:
            _, node = heapq.heappop(waiting)
            if node in seen:
                continue
            seen.add(node)
            if _is_elementwise(node) and all(self.maker[base] in group for base in self.reads[node]):
                group.add(node)
                self._push(waiting, node)
                if len(self._leaving(group)) <= 1:
                    best = set(group)
        return best

    def _push(self, waiting: list[tuple[int, fx.Node]], node: fx.Node) -> None:
        for result in _results(node):
            for reader in self.read_by[result]:
                heapq.heappush(waiting, (self.place[reader], reader))

    def _leaving(self, group: Collection[fx.Node]) -> list[fx.Node]:
        """Tensors made in ``group`` that are read outside of it, or returned; if there is none, what its last node makes."""
        made = [result for node in self._ordered(group) for result in _results(node)]
        leaving = [
            result for result in made if result in self.returned or any(node not in group for node in self.read_by[result])
        ]
        return leaving or made[-1:]

    def _ordered(self, group: Collection[fx.Node]) -> list[fx.Node]:
        return sorted(group, key=self.place.__getitem__)

    def _bytes(self, node: fx.Node) -> int:
        if self.element is None:
            return node_bytes(node)
        return sum(numel(tensor) for tensor in tensors_of(node)) * self.element


def _results(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node makes: itself, or its items."""
    if isinstance(node.meta.get("val"), torch.Tensor):
        return [node]
    return [user for user in node.users if user.target is getitem and tensors_of(user)]


def _is_elementwise(node: fx.Node) -> bool:
    pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return pointwise or op_name(node) in _ELEMENTWISE
