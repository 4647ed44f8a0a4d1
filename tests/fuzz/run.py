"""Runs a program in any way, keeps all that it leaves, and says how two ways differ."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.fuzz.programs import Program

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What stands for ``torch.compile(function, ...)``."""


class Invalid(Exception):
    """Eager itself does not run the program, or its numbers are of no use."""


@dataclass
class Seen:
    """What a run left, by name: values that may round differently, and facts that are equal or not."""

    values: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """Eager."""
    return function


def run(program: Program, wrap: Wrap = as_it_is, double: bool = False) -> Seen:
    """All calls of the program; its model and the step of its optimizer are wrapped."""
    loaded, way, seen = program.load(double), program.way, Seen()
    model = loaded.model(way)
    function = wrap(model)
    optimizer = None
    if way.optimizer:
        optimizer = getattr(torch.optim, way.optimizer)(model.parameters(), lr=0.01, foreach=False)
        step = wrap(optimizer.step)
    held: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    args: list[Any] = []
    for call, rows in enumerate(way.rows):
        if call == 0 or not way.same_inputs:
            args = loaded.inputs(rows, call)
            if way.dynamic:
                mark_rows(args, rows)
        torch.manual_seed(200 + call)
        with mode_of(program):
            outputs = function(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        _see_outputs(seen, call, outputs, args)
        held += [
            (f"output {i} of call {call}, later", o, _copy(o)) for i, o in enumerate(outputs) if _independent(o, args, model)
        ]
        if way.mode == "train":
            loss_of(outputs).backward()
        _see_state(seen, call, model, args)
        if optimizer is not None:
            step()
            _see_state(seen, call, model, args, " after the step")
        if way.mode == "train" and not way.accumulate:
            model.zero_grad(set_to_none=True)
            for arg in args:
                if isinstance(arg, torch.Tensor):
                    arg.grad = None
    for name, output, before in held:
        seen.facts[name] = bool(torch.equal(_copy(output), before))
    return seen


def eager(program: Program, double: bool = False) -> Seen:
    """What the program does. Raises ``Invalid``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # autocast is off in double precision, as it should be
            seen = run(program, double=double)
    except (RuntimeError, IndexError, ValueError, TypeError, NameError, AttributeError, SyntaxError, StopIteration) as error:
        raise Invalid(f"{type(error).__name__}: {error}") from error
    for name, value in seen.values.items():
        if isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.numel() and not value.abs().max() < 1e6:
            raise Invalid(f"{name} is not finite")
    return seen


def mode_of(program: Program) -> contextlib.AbstractContextManager[Any]:
    """Gradients or none."""
    if program.way.mode == "inference_mode":
        return torch.inference_mode()
    return torch.set_grad_enabled(program.way.mode == "train")


def mark_rows(args: list[Any], rows: int) -> None:
    """The first dimension of every input is dynamic."""
    for arg in args:
        if isinstance(arg, torch.Tensor) and arg.dim() and arg.shape[0] == rows and arg.stride(0) != 0:
            torch._dynamo.mark_dynamic(arg, 0)


def loss_of(outputs: tuple[Any, ...]) -> Any:
    """A scalar that depends on every value of every differentiable output, on each in another way."""
    terms = []
    for out in outputs:
        if isinstance(out, torch.Tensor) and out.requires_grad:
            real = torch.view_as_real(out) if out.is_complex() else out
            real = real.double() if real.dtype == torch.float64 else real.float()
            weights = torch.cos(torch.arange(real.numel(), dtype=real.dtype)).view(real.shape)
            terms.append(real.sum() if real.dim() == 0 else (real * weights).mean())
    if not terms:
        raise ValueError("no output has a gradient")
    return torch.stack(terms).sum()


def _see_outputs(seen: Seen, call: int, outputs: tuple[Any, ...], args: list[Any]) -> None:
    for i, out in enumerate(outputs):
        name = f"output {i} of call {call}"
        seen.values[name] = _copy(out) if isinstance(out, torch.Tensor) else out
        if isinstance(out, torch.Tensor):
            others = {**{f"input {k}": a for k, a in enumerate(args)}, **{f"output {k}": o for k, o in enumerate(outputs[:i])}}
            seen.facts[f"{name}: requires_grad"] = out.requires_grad
            seen.facts[f"{name}: strides"] = (
                tuple(s for s, n in zip(out.stride(), out.shape, strict=True) if n > 1)
                if out.layout == torch.strided and out.numel()
                else ()
            )
            seen.facts[f"{name}: overlaps"] = tuple(
                k for k, other in others.items() if isinstance(other, torch.Tensor) and _overlap(out, other)
            )


def _see_state(seen: Seen, call: int, model: nn.Module, args: list[Any], when: str = "") -> None:
    for i, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            seen.values[f"input {i} after call {call}{when}"] = _copy(arg)
            seen.values[f"gradient of input {i}, call {call}{when}"] = _copy(arg.grad) if arg.grad is not None else None
    for name, parameter in model.named_parameters():
        seen.values[f"parameter {name} after call {call}{when}"] = _copy(parameter)
        seen.values[f"gradient of {name}, call {call}{when}"] = _copy(parameter.grad) if parameter.grad is not None else None
        if parameter.grad is not None:
            seen.facts[f"gradient of {name}, call {call}{when}: layout"] = str(parameter.grad.layout)
    for name, buffer in model.named_buffers():
        seen.values[f"buffer {name} after call {call}{when}"] = _copy(buffer)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.to_dense() if tensor.layout != torch.strided else tensor.clone()


def _independent(out: object, args: list[Any], model: nn.Module) -> bool:
    """An output that nothing may change later."""
    others = [*args, *model.parameters(), *model.buffers()]
    return isinstance(out, torch.Tensor) and not any(isinstance(o, torch.Tensor) and _overlap(out, o) for o in others)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.layout != torch.strided or b.layout != torch.strided or not a.numel() or not b.numel():
        return False
    (first, end), (start, last) = _range(a), _range(b)
    return first < last and start < end


def _range(t: torch.Tensor) -> tuple[int, int]:
    reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (reach + 1) * t.element_size()


@contextlib.contextmanager
def fresh_dynamo() -> Iterator[None]:
    """No program finds what another one compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
