"""Graphs as the backend sees them, without lowering: inference graphs and joint graphs after Inductor's joint-graph passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from memcompile.codegen.inductor.compile import compile_graph
from memcompile.codegen.inductor.partition import default_partition
from memcompile.step.fxutil import outputs_of
from tests.planned_eagerly import _Interpreter


class _Captured(Exception):
    """The graph is known; nothing is compiled."""


def captured(function: Callable[..., Any], *inputs: Tensor, train: bool) -> fx.GraphModule:
    """The one graph of ``function``: the joint graph of its training, or its inference graph."""
    found: list[fx.GraphModule] = []

    def catch(gm: fx.GraphModule, joint_inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        with torch._subclasses.fake_tensor.unset_fake_temporarily():
            found.append(copy.deepcopy(gm))
        return default_partition(gm, joint_inputs, num_fwd_outputs, **kwargs)

    def inner(gm: fx.GraphModule, _inputs: Sequence[Any], **kwargs: Any) -> Any:
        if kwargs.get("is_inference"):
            found.append(gm)
        return lambda _arguments: [None] * len(outputs_of(gm.graph))

    def backend(gm: fx.GraphModule, example: Sequence[Any]) -> Any:
        compile_graph(gm, example, catch, inner, {})
        raise _Captured

    torch._dynamo.reset()
    with torch.set_grad_enabled(train):
        try:
            torch.compile(function, backend=backend, fullgraph=True)(*inputs)
        except Exception as error:  # Dynamo wraps what a backend raises
            if not found:
                raise error
    (module,) = found
    return module


def random_inputs(module: fx.GraphModule, seed: int = 0) -> list[Any]:
    """Random tensors for the placeholders of a graph, floating-point ones in double precision where the graph's are."""
    torch.manual_seed(seed)
    values = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    return [_random(value) if isinstance(value, Tensor) else value for value in values]


def _random(value: Tensor) -> Tensor:
    if not value.dtype.is_floating_point:
        return torch.arange(value.numel()).view(value.shape).to(value.dtype)
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(
        torch.randn(value.shape, dtype=value.dtype)
    )


def run(module: fx.GraphModule, inputs: Sequence[Any], seed: int = 0) -> list[Any]:
    """Outputs of a graph by PyTorch's own kernels, from a fixed random state."""
    torch.manual_seed(seed)
    return [out for out in pytree.tree_leaves(_Interpreter(module).run(*inputs)) if out is not None]
