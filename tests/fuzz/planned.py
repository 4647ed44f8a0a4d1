"""The backend up to the kernels: everything of a compilation but the C++ compiler, and an interpreter in the place of kernels.

Capture, passes, partition, plan, extraction and verification are the session's own. So are ("lowered") the lowering of what was
planned, its exact peak, the placing of its buffers and the check of the places; or ("planned") they are left to the model of the
lowering, which takes a fraction of the time. The interpreter runs the graphs that would have been compiled with PyTorch's
kernels: it shows what planning did to the program, not what a kernel does, and measures no peak.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

import memcompile
from memcompile.codegen.inductor.compile import Rewrite, real_code
from memcompile.codegen.inductor.fusion_model import predict
from memcompile.codegen.inductor.hooks import Hook
from memcompile.codegen.inductor.surface import surface
from memcompile.compiling.dryrun import predict_graphs
from memcompile.compiling.session import Session
from memcompile.errors import MemcompileError
from memcompile.machine.support import check_devices
from memcompile.options import Options
from memcompile.runtime.ledger import LEDGER
from memcompile.step.fxutil import outputs_of
from tests.planned_eagerly import _Interpreter


class _Lowered(BaseException):
    """Ends a lowering before its kernels are compiled. Not an Exception: Inductor would wrap it."""


def predicting(
    rewrite_inference: Rewrite, plan: Callable[[], Any], accept: Callable[..., bool], *_others: Any, **_hooks: Any
) -> Callable[..., Any]:
    """In the place of ``real_code``: runs each graph by an interpreter; its trace is the model's."""

    def inner_compile(graph: fx.GraphModule, _inputs: Sequence[Any], **kwargs: Any) -> Any:
        kind = "inference" if kwargs.get("is_inference") else "backward" if kwargs.get("is_backward") else "forward"
        graph = rewrite_inference(graph) if kind == "inference" else graph
        accept(predict(graph.graph, plan()), kind)
        return _run_by(graph)

    return inner_compile


def interpreting(
    rewrite_inference: Rewrite,
    plan: Callable[[], Any],
    accept: Callable[..., bool],
    settled: Callable[[bool], None],
    on_code: Callable[[str, str], None],
    hook: Hook,
    supply: Any,
) -> Callable[..., Any]:
    """In the place of ``real_code``, and by it: lowers each graph, and then runs it by an interpreter."""
    to_run: list[fx.GraphModule] = []

    def rewritten(graph: fx.GraphModule) -> fx.GraphModule:
        graph = rewrite_inference(graph)
        to_run.append(_copied(graph))
        return graph

    def stopping(lowered: Any, kind: str) -> Callable[..., None]:
        rewrite = None if hook.place is None else hook.place(lowered, kind)

        def then(*args: Any) -> None:
            if rewrite is not None:
                rewrite(*args)
            raise _Lowered

        return then

    stopped = dataclasses.replace(hook, place=stopping)
    lowering = real_code(rewritten, plan, accept, settled, on_code, hook=stopped, supply=supply)

    def inner_compile(graph: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        to_run.clear()
        if not kwargs.get("is_inference"):
            to_run.append(_copied(graph))
        with contextlib.suppress(_Lowered):
            lowering(graph, inputs, **kwargs)
        (graph,) = to_run
        _settle_layouts(graph)
        return _run_by(graph)

    return inner_compile


def _copied(graph: fx.GraphModule) -> fx.GraphModule:
    """As it is before it is lowered, which changes it."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        return copy.deepcopy(graph)


def _settle_layouts(graph: fx.GraphModule) -> None:
    """What the compiled code would have told the joint graph's runtime: nothing, the interpreter keeps the layouts."""
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.output_strides is not None and not context.output_strides:
        context.output_strides.extend([None] * len(outputs_of(graph.graph)))


def _run_by(graph: fx.GraphModule) -> Callable[[list[Any]], Any]:
    def call(arguments: list[Any]) -> Any:
        given = list(arguments)
        arguments.clear()
        with torch.no_grad():
            return _Interpreter(graph).run(*given)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def planned_backend(options: Mapping[str, object], lowered: bool = True) -> Callable[..., Any]:
    """``backend="memcompile"`` with ``options``, its kernels interpreted. ``lowered``: with exact peaks and places."""
    parsed = Options.from_mapping(options if lowered else {**options, "arena": "off"})
    ways: dict[str, Any] = {"code": interpreting} if lowered else {"code": predicting, "lowering": lambda _hook: predict_graphs}

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        device = check_devices(t.device for t in inputs if isinstance(t, torch.Tensor))
        try:
            return Session(gm, inputs, parsed, device, **ways).compile()
        except MemcompileError as error:
            raise surface(error) from None

    return backend


def forget() -> None:
    """What the process still knows of earlier programs."""
    torch._dynamo.reset()
    LEDGER.reset()
    LEDGER.live.clear()
    gc.collect()
    memcompile.release()  # arenas that lie idle would be counted for the next one
