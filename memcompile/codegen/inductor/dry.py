"""Code that lowers nothing and runs nothing, for dry runs: a callable of fake outputs.

The parts of the pipeline in front of the lowering are the real ones (Dynamo, Inductor's passes on the joint graph, its
decompositions), so the graphs are those that a real compilation would plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from memcompile.codegen.inductor.compile import InnerCompile, Rewrite
from memcompile.step.fxutil import hint, outputs_of


def fake_code(rewrite_inference: Rewrite) -> InnerCompile:
    """The inner compile of a dry run: its code takes and returns fake tensors with autograd history."""

    def inner_compile(graph: fx.GraphModule, _inputs: Sequence[Any], **kwargs: Any) -> Any:
        return _FakeCode(rewrite_inference(graph) if kwargs.get("is_inference") else graph)

    return inner_compile


class _FakeCode:
    """Stands for compiled code: returns tensors of the right shapes that hold no memory."""

    _boxed_call = True

    def __init__(self, graph: fx.GraphModule) -> None:
        outputs = outputs_of(graph.graph)
        self.outputs = [out.meta["val"] if isinstance(out, fx.Node) else out for out in outputs]

    def __call__(self, args: list[Any]) -> list[Any]:
        args.clear()
        mode = torch._guards.detect_fake_mode()
        return [_again(out, mode) for out in self.outputs]


def _again(value: Any, mode: Any) -> Any:
    """A new fake tensor with the layout of ``value``, in the fake mode that is active where the code is called; a size as it
    counts."""
    if isinstance(value, torch.SymInt):
        return hint(value)
    if mode is None or not isinstance(value, torch.Tensor):
        return value
    with mode:
        size = tuple(map(hint, value.shape))
        if value.layout is not torch.strided:
            return torch.empty(size, dtype=value.dtype, device=value.device, layout=value.layout)
        return torch.empty_strided(size, tuple(map(hint, value.stride())), dtype=value.dtype, device=value.device)
