"""Inductor without its code generator: its passes rewrite a program, and an interpreter runs what they make of it.

A case takes a fraction of a second, and a pass that changes the meaning of a program shows in its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx

from memcompile.codegen.inductor.compile import compile_graph
from memcompile.codegen.inductor.partition import default_partition
from tests.planned_eagerly import interpreted


def after_passes(graph: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
    """Stands in for Inductor's lowering: the last passes in front of it, then eager execution."""
    from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
    from torch._inductor.virtualized import V

    view_to_reshape(graph)  # type: ignore[no-untyped-call]
    with V.set_fake_mode(torch._guards.detect_fake_mode(inputs)):
        post_grad_passes(graph, bool(kwargs.get("is_inference")))
    return interpreted(graph, inputs)


def plain(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A Dynamo backend: the passes of plain Inductor."""
    import torch._functorch.config as functorch_config
    from torch._inductor.compile_fx import compile_fx

    with functorch_config.patch(enable_autograd_cache=False):
        patches = {"fx_graph_cache": False, "fx_graph_remote_cache": False}
        return cast("Callable[..., Any]", compile_fx(gm, list(inputs), inner_compile=after_passes, config_patches=patches))


def ours(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A Dynamo backend: the same passes where memcompile compiles."""

    def partition(gm: fx.GraphModule, joint_inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        graphs = default_partition(gm, joint_inputs, num_fwd_outputs, **kwargs)
        return graphs.forward, graphs.backward

    return compile_graph(gm, inputs, partition, after_passes, {})
