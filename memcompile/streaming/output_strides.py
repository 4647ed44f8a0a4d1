"""Results of a rewritten graph keep their strides, which callers see, whatever the layout of what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from memcompile.step.fxutil import outputs_of
from memcompile.streaming.region import contiguous_strides

Strides = tuple[tuple[int, ...] | None, ...]


def output_strides(graph: fx.Graph) -> Strides:
    """Of each result; None for what is no tensor."""
    return tuple(tuple(value.stride()) if isinstance(value := _value(out), Tensor) else None for out in outputs_of(graph))


def keep_strides(gm: fx.GraphModule, strides: Strides) -> None:
    """Copy results that would have other strides than those, and bring the fake tensors of all nodes up to date.

    What overlaps or has gaps stays as it is.
    """
    inputs = [node.meta.get("val") for node in gm.graph.find_nodes(op="placeholder")]
    mode = next(value.fake_mode for value in inputs if isinstance(value, torch._subclasses.FakeTensor))
    with torch.no_grad():
        _Propagated(gm, mode).propagate_dont_convert_inputs(*inputs)
    results = list(outputs_of(gm.graph))
    for index, (out, wanted) in enumerate(zip(results, strides, strict=True)):
        if wanted is not None and not _same(_value(out), wanted):
            results[index] = _copied(gm.graph, out, wanted)
    gm.graph.output_node().args = (tuple(results),)


class _Propagated(FakeTensorProp):
    """Views of tensors that lie otherwise now are copies, as Inductor makes of them."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        viewed = target is torch.ops.aten.view.default
        return super().call_function(torch.ops.aten.reshape.default if viewed else target, args, kwargs)


def _value(out: object) -> object:
    return out.meta.get("val") if isinstance(out, fx.Node) else None


def _same(value: object, wanted: Sequence[int]) -> bool:
    assert isinstance(value, Tensor)
    return all(length == 1 or one == other for length, one, other in zip(value.shape, value.stride(), wanted, strict=True))


def _copied(graph: fx.Graph, out: fx.Node, wanted: Sequence[int]) -> fx.Node:
    """The result with its axes in the order of the strides, copied, and with its axes as they were."""
    value: Any = out.meta["val"]
    order = sorted(range(value.dim()), key=lambda axis: -wanted[axis])
    if contiguous_strides(tuple(value.shape[axis] for axis in order)) != tuple(wanted[axis] for axis in order):
        return out
    steps: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (torch.ops.aten.permute.default, (order,), {}),
        (torch.ops.aten.clone.default, (), {"memory_format": torch.contiguous_format}),
        (torch.ops.aten.permute.default, ([order.index(axis) for axis in range(value.dim())],), {}),
    ]
    source = {key: kept for key, kept in out.meta.items() if key == "stack_trace"}
    node = out
    for target, arguments, keywords in steps:
        with graph.inserting_before(graph.output_node()), value.fake_mode:
            made = graph.call_function(target, (node, *arguments), keywords)
            made.meta = {**source, "val": target(node.meta["val"], *arguments, **keywords)}
            node = made
    return node
