"""Whether a planned step computes what the unplanned one does, by value numbering: equal expressions get equal numbers.

Outputs, gradients, what is written in place and every effect of one step are compared with those of the other. Memory that is
written has the number of its content at the time, so that a read on the wrong side of a write is another value. What draws
random numbers, communicates, asserts or calls an operator of higher order is an effect: it happens once, in its half, in its
place among the effects. Shares no code with the planners, nor with their question of what is pure.

Value numbering: Cocke and Schwartz, Programming Languages and Their Compilers, 1970.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import fx

from memcompile.step.facts import StepGraphs


class VerificationError(AssertionError):
    """A pass broke an invariant. Always a bug of memcompile; the message names the node."""


@dataclass(slots=True)
class Numbers:
    """Numbers of expressions: an operator with the numbers of what it reads."""

    known: dict[object, int] = field(default_factory=dict)

    def of(self, *expression: object) -> int:
        """The number of an expression, a new one where it is new."""
        return self.known.setdefault(expression, len(self.known))


@dataclass(frozen=True, slots=True)
class Half:
    """What one graph did. ``outputs``: name (of the node) and number. ``effects``: operator and number of each, in order.
    ``writes``: name of an input -> the number of its last content."""

    outputs: tuple[tuple[str, int | None], ...]
    effects: tuple[tuple[str, int], ...]
    writes: Mapping[str, int]


def check_values(before: StepGraphs, after: StepGraphs) -> None:
    """Compare a planned step with the unplanned one. Raises VerificationError."""
    numbers = Numbers()
    old, new = (_forward_and_backward(graphs, numbers) for graphs in (before, after))
    for name, a, b in zip(("forward", "backward"), old, new, strict=False):
        _same_effects(name, a, b)
        count = before.num_user_outputs if name == "forward" else len(a.outputs)
        for index, ((node, was), (_, now)) in enumerate(zip(a.outputs[:count], b.outputs[:count], strict=True)):
            if was != now:
                raise VerificationError(f"output {index} of the {name}, {node}, is another value than before")


def _forward_and_backward(graphs: StepGraphs, numbers: Numbers) -> list[Half]:
    forward = number_graph(graphs.forward.graph, "forward", numbers, {})
    if graphs.backward is None:
        return [forward]
    saved = {name: value for name, value in forward.outputs[graphs.num_user_outputs :] if value is not None}
    return [forward, number_graph(graphs.backward.graph, "backward", numbers, saved)]


def _same_effects(half: str, old: Half, new: Half) -> None:
    if [name for name, _ in old.effects] != [name for name, _ in new.effects]:
        before, after = ([name for name, _ in found.effects] for found in (old, new))
        raise VerificationError(f"effects of the {half} changed: {_text(before)} before, {_text(after)} after")
    for (name, was), (_, now) in zip(old.effects, new.effects, strict=True):
        if was != now:
            raise VerificationError(f"{name} in the {half} gets other values than before")
    if old.writes != new.writes:
        names = sorted(name for name in {*old.writes, *new.writes} if old.writes.get(name) != new.writes.get(name))
        raise VerificationError(f"the {half} leaves other values in {', '.join(names)} than before")


def _text(names: list[str]) -> str:
    return ", ".join(names) or "none"


def number_graph(graph: fx.Graph, half: str, numbers: Numbers, given: Mapping[str, int]) -> Half:
    """Number every value of a graph. ``given``: numbers of placeholders that are known; another one is its name."""
    return _Numbering(half, numbers, given).run(graph)


@dataclass(slots=True)
class _Numbering:
    """``value``: number of each node as it ran. ``content``: of memory that was written since. ``source``: of views,
    what they are views of."""

    half: str
    numbers: Numbers
    given: Mapping[str, int]
    value: dict[fx.Node, int] = field(default_factory=dict)
    content: dict[fx.Node, int] = field(default_factory=dict)
    source: dict[fx.Node, fx.Node] = field(default_factory=dict)
    effects: list[tuple[str, int]] = field(default_factory=list)

    def run(self, graph: fx.Graph) -> Half:
        for node in graph.nodes:
            if node.op == "output":
                outputs = tuple((getattr(out, "name", ""), self._output(out)) for out in node.args[0])
            elif node.op == "placeholder":
                name = str(node.target)
                self.value[node] = self.given[name] if name in self.given else self.numbers.of("input", name)
            elif node.op == "get_attr":
                self.value[node] = self.numbers.of("attribute", str(node.target))
            else:
                self._call(node)
        writes = {memory.name: number for memory, number in self.content.items() if memory.op == "placeholder"}
        return Half(outputs, tuple(self.effects), writes)

    def _output(self, out: object) -> int | None:
        return self._now(out) if isinstance(out, fx.Node) else None

    def _call(self, node: fx.Node) -> None:
        passed = _PASSES_ON.get(str(node.target))
        if passed is not None:  # moves hand on what they are given
            given = node.args[passed]
            assert isinstance(given, fx.Node)
            self.value[node] = self._now(given)
            return
        expression = (str(node.target), self._frozen(node.args), self._frozen(node.kwargs))
        memories = list(written(node))
        if not memories and is_effect(node):
            self.value[node] = self.numbers.of("effect", self.half, len(self.effects), *expression)
            self.effects.append((str(node.target), self.value[node]))
            return
        self.value[node] = self.numbers.of(*expression)
        for index, argument in enumerate(memories):
            self.content[self._memory(argument)] = self.numbers.of("written", index, self.value[node])
        view_of = memories[0] if memories else viewed(node)
        if view_of is not None:
            self.source[node] = view_of

    def _memory(self, node: fx.Node) -> fx.Node:
        while node in self.source:
            node = self.source[node]
        return node

    def _now(self, node: fx.Node) -> int:
        """The number of a node's value at this moment: memory behind it may have been written since it was made."""
        if not self.content:
            return self.value[node]
        chain = [node]
        while chain[-1] in self.source:
            chain.append(self.source[chain[-1]])
        if chain[-1] not in self.content:
            return self.value[node]
        number = self.content[chain[-1]]
        for view in reversed(chain[:-1]):
            if next(written(view), None) is None:
                number = self.numbers.of(str(view.target), number, self._frozen(view.args[1:]), self._frozen(view.kwargs))
        return number

    def _frozen(self, argument: object) -> object:
        """An argument as something to compare: nodes by their numbers, anything else by what it looks like."""
        if isinstance(argument, fx.Node):
            return ("value", self._now(argument))
        if isinstance(argument, (list, tuple)):
            return tuple(map(self._frozen, argument))
        if isinstance(argument, dict):
            return tuple((name, self._frozen(value)) for name, value in argument.items())
        if isinstance(argument, slice):
            return ("slice", self._frozen((argument.start, argument.stop, argument.step)))
        return (type(argument).__name__, repr(argument))


_PASSES_ON = {
    "memcompile.swap_out.default": 0,
    "memcompile.swap_out_wait.default": 1,
    "memcompile.swap_in.default": 0,
    "memcompile.swap_in_wait.default": 1,
}
"""Which argument of the operators of a move carries the value on."""


def _arguments(node: fx.Node) -> Iterator[tuple[Any, Any]]:
    """(argument of the schema, what is given for it) of a call, what stands for it where nothing is."""
    schema = node.target._schema  # type: ignore[union-attr]
    for index, argument in enumerate(schema.arguments):
        given = node.kwargs.get(argument.name, argument.default_value)
        yield argument, node.args[index] if index < len(node.args) else given


def written(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes whose memory a call writes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for argument, given in _arguments(node):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (one for one in (given if isinstance(given, (list, tuple)) else [given]) if isinstance(one, fx.Node))


def viewed(node: fx.Node) -> fx.Node | None:
    """What the result of a call is a view of; None for that of a number."""
    if node.target is getitem:
        whole = node.args[0]
        return whole if isinstance(whole, fx.Node) and viewed(whole) is not None else None
    if isinstance(node.target, torch._ops.OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns):
        given = next((given for argument, given in _arguments(node) if argument.alias_info is not None), None)
        return given if isinstance(given, fx.Node) else None
    return None


def is_effect(node: fx.Node) -> bool:
    """Whether a call, which writes nothing that it is given, changes more than its result."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if any(argument.name == "dropout_p" and given == 0 for argument, given in _arguments(node)):
        return False  # attention that drops nothing
    name = node.target._schema.name
    return not node.target._schema.returns or node.is_impure() or name.startswith(_EFFECTS)


_EFFECTS = ("prims::inductor_seed", "_c10d_functional::", "_c10d_functional_autograd::", "c10d::", "c10d_functional::")
"""Beginnings of names of operators that have an effect which PyTorch does not mark."""
