"""A graph that Dynamo captured, compiled once more for other sizes, which stay symbols."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._inductor.compile_fx import compile_fx

from memcompile.codegen.inductor.resized import Resized, resized
from memcompile.step.symbols import symbols_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

Function = Callable[..., Any]


def captured(function: Function, *inputs: Tensor) -> tuple[fx.GraphModule, list[Any]]:
    """The graph of ``function``, whose inputs have rows that differ from call to call, and what it was called with."""
    seen: list[tuple[fx.GraphModule, list[Any]]] = []

    def backend(gm: fx.GraphModule, given: list[Any]) -> Function:
        seen.append((copy.deepcopy(gm), [each.node.hint if isinstance(each, torch.SymInt) else each for each in given]))
        return gm.forward

    for tensor in inputs:
        torch._dynamo.mark_dynamic(tensor, 0)
    torch.compile(function, backend=backend)(*inputs)
    return seen[0]


def anew(gm: fx.GraphModule, inputs: list[Any], size: int) -> Resized | None:
    return resized(gm, inputs, dict.fromkeys(symbols_of(gm.graph), size))


def compiled(gm: fx.GraphModule, found: Resized) -> Function:
    with found.compiling():
        function = compile_fx(gm, found.inputs, config_patches={"cpp.simdlen": 1, "fx_graph_cache": False})
    assert callable(function)
    return function


def arguments(inputs: list[Any], rows: int, like: Tensor) -> list[Any]:
    """Those of a call with so many rows."""
    x = torch.randn(rows, *like.shape[1:], requires_grad=like.requires_grad)
    return [rows if isinstance(value, int) else x if value is like else value for value in inputs]


def test_numbers_and_gradients_at_sizes_that_it_never_saw() -> None:
    weight = torch.randn(8, 8, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return (x @ weight).sin() * x.shape[0]

    like = torch.randn(6, 8, requires_grad=True)
    gm, inputs = captured(function, like)
    found = anew(gm, inputs, 48)
    assert found is not None
    code, holds = compiled(gm, found), found.holds()
    for rows in (6, 48, 33, 100):
        assert holds((rows,))
        given = arguments(inputs, rows, like)
        x = next(value for value in given if isinstance(value, Tensor) and value.shape == (rows, 8))
        (out,) = code(*given)
        torch.testing.assert_close(out, function(x), rtol=1e-4, atol=1e-4)
        ours = torch.autograd.grad(out.sum(), (x, weight))
        for a, b in zip(ours, torch.autograd.grad(function(x).sum(), (x, weight)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_what_is_taken_for_granted_is_checked() -> None:
    gm, inputs = captured(lambda x: x.view(2, -1).sin(), torch.randn(6, 8))
    gm.graph.find_nodes(op="call_method", target="view")[0].args = (*gm.graph.find_nodes(op="placeholder")[-1:], 32, -1)
    gm.recompile()
    found = anew(gm, inputs, 48)
    assert found is not None
    compiled(gm, found)
    holds = found.holds()
    assert holds((48,)) and holds((8,)) and not holds((6,)) and not holds((47,))


def test_what_cannot_be_told_is_left_alone() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), y.cos()

    whole = torch.randn(12, 8)
    gm, inputs = captured(function, whole[:6], torch.randn(5, 8))
    assert anew(gm, inputs, 8) is not None
    for others in ((whole[:6], whole[6:]), (whole[6:], torch.randn(5, 8))):  # one storage; a beginning inside of one
        torch._dynamo.reset()
        gm, inputs = captured(function, *others)
        assert anew(gm, inputs, 8) is None
