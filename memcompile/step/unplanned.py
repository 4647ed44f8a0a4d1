"""What of a step is left as it is because there is no plan for it: named in the report, counted as well as it can be.

Sizes that only the step knows, sparse tensors, branches and loops of their own. None of them is a reason to refuse a graph.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from memcompile.step.facts import StepGraphs
from memcompile.step.fxutil import op_name, source_of, tensors_of
from memcompile.step.symbols import unknown_sizes

Refused = tuple[str, str, str]
"""(name of the FX node, "model.py:61", why)."""


def unplanned(graphs: StepGraphs | None) -> tuple[Refused, ...]:
    """One row for each node of the step, in order."""
    halves = [] if graphs is None else [half.graph for half in (graphs.forward, graphs.backward) if half is not None]
    rows: dict[str, Refused] = {}
    for name, source, why in (row for graph in halves for row in (*_sizes(graph), *_odd(graph))):
        rows.setdefault(name, (name, source, why))
    return tuple(rows.values())


def _sizes(graph: fx.Graph) -> Iterator[Refused]:
    for size in unknown_sizes(graph):
        counted = f"the most it can be, {size.counted}" if size.bounded else f"{size.counted}, as Inductor assumes"
        advice = "" if size.bounded else "; torch._check(size <= n) gives it a bound"
        why = f"a size that only the step knows: counted as {counted}{advice}; runs once"
        yield size.node.name, source_of(size.node), why


def _odd(graph: fx.Graph) -> Iterator[Refused]:
    for node in graph.nodes:
        layouts = {tensor.layout for tensor in tensors_of(node)} - {torch.strided}
        if layouts and node.op == "call_function":
            layout = str(next(iter(layouts))).removeprefix("torch.")
            yield node.name, source_of(node), f"{layout}: no dense tensor; counted as its indices and values, and kept"
        elif node.op == "call_function" and any(isinstance(_attribute(arg), fx.GraphModule) for arg in node.args):
            why = "graphs inside this one run as they are; they count as the largest of them"
            if op_name(node).startswith("flex_attention") and not any(tensor.is_cuda for tensor in tensors_of(node)):
                why = "a kernel of Inductor's that takes scratch inside: not counted, so that the peak may be higher"
            yield node.name, source_of(node), why


def _attribute(argument: object) -> object:
    """What an argument stands for, where it is something that the graph has by name."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    return getattr(argument.graph.owning_module, str(argument.target), None)
