"""Streaming programs under Inductor: bodies compiled into a workspace, and the lowering of ``memcompile::stream_rows``.

The body of a program is lowered like any inference graph, except that its buffers are views of a workspace at offsets that are
packed at compile time: nothing is allocated from block to block. Private API in use: ``compile_fx_inner``, the wrapper lines
(``arena_lines``), ``register_lowering``, ``empty_strided`` and ``FallbackKernel`` of Inductor.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from memcompile.codegen.inductor.arena_lines import use_slots
from memcompile.codegen.inductor.lowering import recording
from memcompile.codegen.inductor.tiles import sound_tiles
from memcompile.runtime.arena import Slot
from memcompile.runtime.storage import view_of
from memcompile.solvers.places.packing import Buffer, pack, validate
from memcompile.solvers.schedule.simulate import alive
from memcompile.step.fxutil import output_names
from memcompile.step.trace import GraphTrace, step_peak
from memcompile.streaming.program import PROGRAMS, RowBlock, Run, padded_workspace

ALIGNMENT = 64
_ENTERED = threading.local()


class _Counted(BaseException):
    """Ends the lowering of a body as soon as its bytes are known. Not an Exception: Inductor would wrap it."""


def compile_block(graph: fx.GraphModule, *, run: bool = True) -> RowBlock:
    """Lower the body of a program. ``run``: False stops before any kernel is compiled, for a dry run."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.cudagraph_utils import BoxedDeviceIndex
    from torch._inductor.utils import BoxedBool

    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        body = copy.deepcopy(graph)  # Inductor rewrites what it lowers
    inputs = [node.meta["val"] for node in body.graph.find_nodes(op="placeholder")]
    device = inputs[-1].device
    slots: list[tuple[Slot, ...]] = []
    traces: list[GraphTrace] = []

    def place(lowered: Any, _kind: str) -> Callable[[Any, GraphTrace], None]:
        def rewrite(wrapper: Any, trace: GraphTrace) -> None:
            traces.append(trace)
            slots.append(use_slots(wrapper, lowered, "", "forward", device, __name__))
            if not run:
                raise _Counted

        return rewrite

    context = TracingContext(inputs[0].fake_mode)
    function: Any = None
    with (
        tracing(context),
        sound_tiles(),
        recording(output_names(body.graph), lambda _trace, _kind: True, lambda _accepted: None, (0.0,), place),
        config.patch(pattern_matcher=False),  # a product and its bias stay apart (region.body)
        contextlib.suppress(_Counted),
    ):
        function = compile_fx_inner(
            body,
            inputs,
            static_input_idxs=[],
            cudagraphs=BoxedBool(False),
            is_inference=True,
            boxed_forward_device_index=BoxedDeviceIndex(None),
        )
    offsets, height, scratch = _offsets(traces[0], slots[0])
    prepare = functools.partial(_prepare, function, slots[0], offsets) if run else None
    return RowBlock(prepare, height, scratch)


def _offsets(trace: GraphTrace, slots: Sequence[Slot]) -> tuple[list[int], int, int]:
    """Offset of each slot, bytes of the workspace, bytes that kernels allocate beside it."""
    replayed = step_peak(trace)
    lives = {life.name: life for life in replayed.lives if life.birth > 0}
    placed = [lives[slot.name] for slot in slots]
    buffers = [Buffer(life.name, life.birth, life.death or replayed.end, life.size_bytes) for life in placed]
    packing = pack(buffers, alignment=ALIGNMENT)
    validate(buffers, packing.offsets, alignment=ALIGNMENT)
    names = {slot.name for slot in slots}
    others = [life for life in lives.values() if life.name not in names]
    rows = [(life.birth, life.death or replayed.end, life.size_bytes) for life in others]
    begins, ends, sizes = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    beside = alive(begins, ends, sizes, replayed.end)
    return list(packing.offsets), packing.height, int(max(beside, default=0))


def _prepare(
    function: Callable[[list[Tensor]], object], slots: Sequence[Slot], offsets: Sequence[int], workspace: Tensor
) -> Run:
    typed = {slot.dtype: workspace.view(slot.dtype) for slot in slots}
    makers = [
        functools.partial(view_of, typed[slot.dtype], slot.size, slot.stride, offset // slot.dtype.itemsize)
        for slot, offset in zip(slots, offsets, strict=True)
    ]

    def run(tensors: list[Tensor]) -> None:
        _ENTERED.makers = makers
        try:
            function(tensors)
        finally:
            _ENTERED.makers = None  # views hold the block that the workspace lies in

    return run


def enter(_key: str, _half: str, _received: Sequence[object] = ()) -> tuple[None, list[Callable[[], Tensor]]]:
    """What the lowered code of a body calls as it starts: the views that stand for its buffers."""
    return None, _ENTERED.makers


def streaming_refusal() -> str:
    """Why no graph can be streamed with the settings in hand; empty when they can be. Teaches Inductor the operator first."""
    if torch._inductor.config.cpp_wrapper:
        return "the lowered code is a C++ wrapper"
    _register()
    return ""


@functools.cache
def _register() -> None:
    """Teach Inductor ``memcompile::stream_rows``: it allocates the results and the workspace."""
    from torch._inductor.ir import FallbackKernel
    from torch._inductor.lowering import empty_strided, register_lowering

    @register_lowering(torch.ops.memcompile.stream_rows.default, type_promotion_kind=None)
    def lower(key: str, operands: Sequence[Any]) -> list[Any]:
        program = PROGRAMS[key]
        for operand in operands:
            operand.realize()
        taken = [
            FallbackKernel.require_exact_strides(operand, port.stride)
            for operand, port in zip(operands, program.operands, strict=True)
        ]
        results = [
            empty_strided(port.shape, port.stride, dtype=port.dtype, device=program.device) if over is None else taken[over]
            for port, over in zip(program.results, program.in_place, strict=True)
        ]
        workspace = empty_strided([padded_workspace(program)], [1], dtype=torch.uint8, device=program.device)
        read = [operand for index, operand in enumerate(taken) if index not in program.in_place]
        FallbackKernel.create(torch.ops.memcompile.stream_rows_.default, key, read, results, workspace)
        return results
