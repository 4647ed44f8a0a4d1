"""Graphs as golden texts: a line a node, and before and after a pass side by side."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import fx

import memcompile
from memcompile.compiling import pipeline
from memcompile.passes.base import Captured, Pass
from memcompile.step.facts import StepGraphs
from memcompile.step.fxutil import op_name, outputs_of

WIDTH = 60
KEY = re.compile(r"\b[0-9a-f]{12}\b|(?<=\w)#\d+\b")
"""Of a program, a weight or a storage: it depends on the version of torch, or on the process."""
PREDICTED = {"lower": False}
"""Nothing is lowered: quick, and the same on every machine."""


def before_and_after(
    which: Pass[Any, Any], model: torch.nn.Module, *inputs: torch.Tensor, options: Mapping[str, object] = PREDICTED
) -> tuple[str, str]:
    """The graph of a dry run in front of a pass and behind it; forward and backward of a step one after the other.

    ``which`` runs first where it is not in the list.
    """
    listed = any(type(each) is type(which) for each in pipeline.PASSES)
    passes = pipeline.PASSES if listed else (which, *pipeline.PASSES)
    found: list[str] = []
    one = pipeline._one

    def watched(each: Any, graph: Any, ctx: Any) -> Any:
        after, plan = one(each, graph, ctx)
        if type(each) is type(which):
            found[:] = [text_of(graph), text_of(after)]
        return after, plan

    with mock.patch.object(pipeline, "_one", watched), mock.patch.object(pipeline, "PASSES", passes):
        memcompile.plan(model, *inputs, options=options)
    before, after = found
    return before, after


def text_of(graph: Captured | StepGraphs) -> str:
    """``mm = mm(x, w)``."""
    if isinstance(graph, Captured):
        return "\n".join(_lines(graph.gm.graph))
    halves = [half.graph for half in (graph.forward, graph.backward) if half is not None]
    return "\n\n".join("\n".join(_lines(half)) for half in halves)


def _lines(graph: fx.Graph) -> Iterator[str]:
    yield f"{', '.join(node.name for node in graph.find_nodes(op='placeholder'))} = inputs"
    for node in graph.nodes:
        if node.op == "call_function":
            arguments = [*map(_text, node.args), *(f"{key}={_text(value)}" for key, value in node.kwargs.items())]
            yield f"{node.name} = {op_name(node)}({', '.join(arguments)})"
    yield f"return {', '.join(map(_text, outputs_of(graph)))}"


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return value.name if isinstance(value, fx.Node) else KEY.sub("...", str(value).removeprefix("torch."))


def side_by_side(before: str, after: str, width: int = WIDTH) -> str:
    """Lines that are alike stand beside each other; long ones are cut."""
    left, right = ([_cut(line, width) for line in text.splitlines()] for text in (before, after))
    rows: list[tuple[str, str]] = []
    for _, i, j, k, m in difflib.SequenceMatcher(a=left, b=right, autojunk=False).get_opcodes():
        old, new = left[i:j], right[k:m]
        height = max(len(old), len(new))
        rows += zip(old + [""] * (height - len(old)), new + [""] * (height - len(new)), strict=True)
    return "\n".join(f"{a:<{width}} {b}".rstrip() for a, b in rows)


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3]}..."
