"""A torch.compile that lowers nothing and runs nothing: capture, joint graph, partition, and a callable of fake outputs.

The parts of the pipeline in front of the lowering are the real ones (Dynamo, Inductor's passes on the joint graph, its
decompositions), so the graphs are those that a real compilation would plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from memcompile.codegen.inductor import Partition, Rewrite
from memcompile.fxutil import outputs_of


def compile_dry(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    partition: Partition,
    rewrite_inference: Rewrite,
    patches: Mapping[str, object],
) -> Callable[..., Any]:
    """Like ``inductor.compile_graph`` up to the lowering. The callable takes and returns fake tensors with autograd history."""
    import torch._functorch.config as functorch_config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.custom_graph_pass import CustomPartitionerFn

    class Partitioner(CustomPartitionerFn):
        def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
            return partition(gm, joint_inputs, **kwargs)

        def uuid(self) -> None:
            return None

    def inner_compile(graph: fx.GraphModule, _inputs: Sequence[Any], **kwargs: Any) -> Any:
        if kwargs.get("is_inference"):
            graph = rewrite_inference(graph)
        return _FakeCode(graph)

    settings = {
        **patches,
        "custom_partitioner_fn": Partitioner(),
        "fx_graph_cache": False,
        "fx_graph_remote_cache": False,
    }
    with functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True):
        compiled: Any = compile_fx(gm, list(example_inputs), inner_compile=inner_compile, config_patches=settings)
    return compiled  # type: ignore[no-any-return]


class _FakeCode:
    """Stands for compiled code: returns tensors of the right shapes that hold no memory."""

    _boxed_call = True

    def __init__(self, graph: fx.GraphModule) -> None:
        outputs = outputs_of(graph.graph)
        self.outputs = [out.meta["val"] if isinstance(out, fx.Node) else out for out in outputs]

    def __call__(self, args: list[Any]) -> list[Any]:
        args.clear()
        mode = torch._guards.detect_fake_mode()
        return [_again(out, mode) if isinstance(out, torch.Tensor) else out for out in self.outputs]


def _again(value: torch.Tensor, mode: Any) -> torch.Tensor:
    """A new fake tensor with the layout of ``value``, in the fake mode that is active where the code is called."""
    if mode is None:
        return value
    with mode:
        size, stride = tuple(map(_hint, value.shape)), tuple(map(_hint, value.stride()))
        return torch.empty_strided(size, stride, dtype=value.dtype, device=value.device)


def _hint(length: Any) -> int:
    return int(length.node.hint) if isinstance(length, torch.SymInt) else int(length)
