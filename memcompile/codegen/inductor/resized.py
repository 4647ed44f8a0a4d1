"""A captured graph with its sizes as symbols anew, so that it can be compiled once more outside of Dynamo, for other sizes than
it was captured with.

Seams in use (present in PyTorch 2.11 to 2.15): ``ShapeEnv`` (``create_symbol``, ``create_symintnode``,
``produce_guards_expression``), ``SYMPY_INTERP`` and ``TracingContext``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP, DimDynamic, ShapeEnv

Holds = Callable[[Sequence[int]], bool]
"""Whether code may run with these sizes of its inputs, in the order of `symbols_of`."""


@dataclass(frozen=True)
class Resized:
    """``inputs``: fakes, in the order of the graph's. ``sizes``: symbols that are inputs. ``mode``: they live in it."""

    inputs: list[Any]
    sizes: list[torch.SymInt]
    mode: FakeTensorMode

    def compiling(self) -> contextlib.AbstractContextManager[Any]:
        """While active, what is compiled keeps the symbols."""
        return torch._guards.tracing(torch._guards.TracingContext(self.mode))

    def holds(self) -> Holds:
        """After compiling: a check of all that was taken for granted."""
        assert self.mode.shape_env is not None
        text = self.mode.shape_env.produce_guards_expression(self.sizes, ignore_static=False)
        if text is None:
            return lambda _sizes: True
        names, code = [f"t{i}" for i in range(len(self.sizes))], compile(text, "<sizes>", "eval")
        return lambda sizes: bool(eval(code, SYMPY_INTERP, {"L": dict(zip(names, sizes, strict=True))}))


def resized(gm: fx.GraphModule, inputs: Sequence[Any], sizes: dict[int, int]) -> Resized | None:
    """``gm`` (changed in place: what its inputs are) ready to be compiled for ``sizes`` (input -> size); None where that cannot
    be told from how it was captured: strides that are no numbers of those symbols, inputs that share a storage, or begin
    somewhere inside of it, or are not dense."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    captured = [node.meta.get("example_value") for node in placeholders]
    if not all(map(_is_simple, captured, inputs)) or _share(inputs):
        return None
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    hints = {captured[place].node.expr: size for place, size in sizes.items()}
    lengths = [length for value in captured for length in _lengths(value) if isinstance(length, torch.SymInt)]
    if any(length.node.expr.free_symbols - hints.keys() for length in lengths):
        return None
    symbols = {
        old: env.create_symbol(size, ConstantSource(f"size{place}"), DimDynamic.DYNAMIC)
        for (old, size), place in zip(hints.items(), sizes, strict=True)
    }

    def renewed(length: int | torch.SymInt) -> Any:
        if isinstance(length, int):
            return length
        expression = length.node.expr
        return env.create_symintnode(expression.xreplace(symbols), hint=int(expression.xreplace(hints)))

    fakes: list[Any] = []
    for node, value, given in zip(placeholders, captured, inputs, strict=True):
        fake = renewed(value) if isinstance(value, torch.SymInt) else _fake(mode, value, given, renewed)
        fakes.append(fake)
        node.meta["example_value"] = fake
    return Resized(fakes, [fakes[place] for place in sizes], mode)


def _is_simple(captured: object, given: object) -> bool:
    """Whether an input is a symbol, or a dense tensor that begins where its storage does, as Dynamo made sure of."""
    if isinstance(captured, torch.SymInt):
        return isinstance(given, int)
    if not isinstance(captured, FakeTensor) or not isinstance(given, torch.Tensor):
        return False
    return (
        type(given) in (torch.Tensor, torch.nn.Parameter) and given.layout == torch.strided and captured.storage_offset() == 0
    )


def _share(inputs: Sequence[Any]) -> bool:
    storages = [value.untyped_storage()._cdata for value in inputs if isinstance(value, torch.Tensor)]
    return len(set(storages)) < len(storages)


def _lengths(value: Any) -> Sequence[int | torch.SymInt]:
    return (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else (value,)


def _fake(
    mode: FakeTensorMode, captured: Any, given: torch.Tensor, renewed: Callable[[int | torch.SymInt], Any]
) -> torch.Tensor:
    if all(isinstance(length, int) for length in _lengths(captured)):
        return mode.from_tensor(given, static_shapes=True)
    shape, strides = [renewed(length) for length in captured.shape], [renewed(step) for step in captured.stride()]
    with mode, torch.enable_grad():
        fake = torch.empty_strided(shape, strides, dtype=given.dtype, device=given.device, requires_grad=given.requires_grad)
        return fake if given.is_leaf else fake.view_as(fake)
