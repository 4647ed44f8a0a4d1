"""Ways to run a program: eagerly, through plain Inductor, through the backend with its kernels or interpreted."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import fx

from memcompile.codegen.inductor.compile import compile_graph
from memcompile.compiling.dryrun import predict_graphs
from memcompile.compiling.session import Session
from memcompile.options import Options
from memcompile.runtime.ledger import Ledger
from tests.operators.program import Compile
from tests.planned_eagerly import interpreted

QUICK: Mapping[str, Any] = {"cpp.simdlen": 1, "aot_inductor.debug_compile": True, "compile_threads": 1}
"""Scalar kernels, compiled without optimisation."""
SAME_DRAWS: Mapping[str, Any] = {"fallback_random": True}
SMALLEST: Mapping[str, object] = {"memory_budget": 1, "on_infeasible": "best_effort", "solver_time_limit_s": 1.0}
BUDGETS: Mapping[str, Mapping[str, object]] = {"none": {}, "smallest": SMALLEST}


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """As it is."""
    return function


def inductor(function: Callable[..., Any]) -> Callable[..., Any]:
    """Plain ``torch.compile``."""
    torch._dynamo.reset()
    return torch.compile(function, options={**QUICK, **SAME_DRAWS})


def ours(budget: str) -> Compile:
    """The backend. ``budget``: a name of ``BUDGETS``."""

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        torch._dynamo.reset()
        options: dict[str, Any] = {**BUDGETS[budget], "inductor": {**QUICK, **SAME_DRAWS}}
        return torch.compile(function, backend="memcompile", options=options)

    return compiler


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """While active, what is compiled is lowered and written as Python and C++ as ever, but the C++ is not compiled: the graphs
    that were lowered are interpreted."""
    from torch._inductor import compile_fx
    from torch._inductor.async_compile import AsyncCompile

    inner = compile_fx.compile_fx_inner

    @functools.wraps(inner)
    def lowered(graph: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        with torch._subclasses.fake_tensor.unset_fake_temporarily():
            kept = copy.deepcopy(graph)
        inner(graph, inputs, **kwargs)
        return interpreted(kept, inputs)

    with (
        mock.patch.object(compile_fx, "compile_fx_inner", lowered),
        mock.patch.object(AsyncCompile, "cpp_pybinding", lambda *_args: _never),
        mock.patch.object(AsyncCompile, "cpp", lambda *_args: _never),
    ):
        yield


def predicted(gm: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """One graph planned from the model of what Inductor fuses; nothing is lowered, the planned graphs are interpreted."""
    cpu = torch.device("cpu")
    session = Session(gm, inputs, options, cpu, Ledger(), lowering=lambda _hook: predict_graphs, trust=False)

    def code(graph: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        return interpreted(session.inference(graph) if kwargs.get("is_inference") else graph, inputs)

    return compile_graph(session.gm, session.inputs, session.partition, code, options.inductor)


def planned(function: Callable[..., Any]) -> Callable[..., Any]:
    """Planned at the smallest budget, and interpreted."""
    torch._dynamo.reset()
    options = Options.from_mapping({**SMALLEST, "inductor": {**QUICK, **SAME_DRAWS}})
    return torch.compile(function, backend=lambda gm, inputs: predicted(gm, inputs, options))


def _never(*_args: Any) -> None:
    raise AssertionError("a kernel that was not compiled was called")
