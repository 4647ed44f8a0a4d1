"""A Dynamo graph through Inductor's compile pipeline, with our partition in it, and our inner compile at its end.

Seams in use (present in PyTorch 2.11 to 2.15): ``compile_fx`` with configuration patches and an inner compile function,
``custom_partitioner_fn``, ``joint_custom_pre_pass`` and ``force_non_lazy_backward_lowering``.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import fx

from memcompile.codegen.inductor.hooks import NO_HOOK, Hook
from memcompile.codegen.inductor.lowering import Accept, Settled, planned, recording
from memcompile.codegen.inductor.miscompiled import CAPTURED, JOINT, respell
from memcompile.codegen.inductor.patterns import StrictPatterns
from memcompile.codegen.inductor.scheduled import Scheduling
from memcompile.codegen.inductor.supplied import Supplied, Supply
from memcompile.codegen.inductor.tiles import sound_tiles
from memcompile.step.facts import UNPLANNED, Planned
from memcompile.step.fxutil import output_names

Partition = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]
Rewrite = Callable[[fx.GraphModule], fx.GraphModule]
InnerCompile = Callable[..., Any]
_JOINT_PASS = "joint_custom_pre_pass"
UNCACHED = {"fx_graph_cache": False, "fx_graph_remote_cache": False}
"""A cached graph would not be planned."""


def compile_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    partition: Partition,
    inner_compile: InnerCompile,
    patches: Mapping[str, object],
) -> Callable[..., Any]:
    """Compile a Dynamo graph through Inductor's pipeline; forward and backward are compiled together, now.

    ``partition(joint, joint_inputs, num_fwd_outputs=..., **kwargs)`` splits a joint graph. ``inner_compile`` turns each half
    into code: ``real_code`` or ``dry.fake_code``. ``patches``: the user's Inductor settings. Inductor's graph caches are
    off: a cached graph would not be planned (compiled kernels are still cached by their source).
    """
    import torch._functorch.config as functorch_config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.custom_graph_pass import CustomPartitionerFn

    partitions = [partition]

    class Partitioner(CustomPartitionerFn):
        def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
            return partitions[0](gm, joint_inputs, **kwargs)

        def uuid(self) -> None:
            return None

    respell(gm.graph, CAPTURED)
    with (
        functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
        _collector_paused(),
        StrictPatterns() as strict,
        sound_tiles(),
    ):
        settings = {**patches, **UNCACHED, "custom_partitioner_fn": Partitioner(), **_respelling(strict, patches)}
        compiled = compile_fx(gm, list(example_inputs), inner_compile=inner_compile, config_patches=settings)
    partitions.clear()  # torch's configuration remembers the last settings, and with them all that the partition knows
    return cast("Callable[..., Any]", compiled)


def _respelling(strict: StrictPatterns, patches: Mapping[str, object]) -> dict[str, object]:
    """The setting that spells ATen graphs so that Inductor compiles them right, in front of the passes that the user set."""
    from torch._inductor import config

    own: Any = patches.get(_JOINT_PASS, getattr(config, _JOINT_PASS))

    def first(graph: fx.Graph) -> None:
        strict.trace_again()
        respell(graph, JOINT)
        for own_pass in own if isinstance(own, list | tuple) else filter(None, [own]):
            own_pass(graph)

    return {_JOINT_PASS: first}


def real_code(
    rewrite_inference: Rewrite,
    plan: Callable[[], Planned],
    accept: Accept,
    settled: Settled,
    on_code: Callable[[str, str], None],
    hook: Hook = NO_HOOK,
    supply: Supply | None = None,
) -> InnerCompile:
    """The inner compile of a real compilation.

    ``rewrite_inference`` may replace an inference graph before it is lowered; inputs that it adds come from ``supply`` at each
    call. ``plan()``: what lowering must keep of the plan. ``accept``, ``settled``: see ``recording``; ``accept`` sees the final
    trace of each graph last. ``hook``: where passes take part.
    ``on_code(source, kind)`` sees the generated module of each graph.
    """
    from torch._inductor.compile_fx import compile_fx_inner

    def inner_compile(graph: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        kind = "inference" if kwargs.get("is_inference") else "backward" if kwargs.get("is_backward") else "forward"
        if kind == "inference":
            graph = rewrite_inference(graph)
        added = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")[len(inputs) :]]
        kept = plan()
        scheduled = (hook.scheduling or Scheduling(enabled=False)).when(kept is UNPLANNED)
        with recording(output_names(graph.graph), accept, settled, place=hook.place, scheduling=scheduled), planned(kept):
            code = compile_fx_inner(graph, [*inputs, *added], **kwargs)
        on_code(getattr(code, "source_code", ""), kind)
        return Supplied(code, supply) if added and supply is not None else code

    return inner_compile


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's garbage collector: it would look again and again through graphs that are all in use (a sixth of the
    time)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
