"""A small graph around some samples, written as Python source: a product and a nonlinearity before and after each call.

Before: every floating-point tensor of a sample is the result of a product with an identity and of a leaky ReLU of slope 1, which
together give exactly the value that went in, so that what is rounded or compared in the operator is the same in every run.
After: half of each output is returned, and a product of its arcus tangent with a constant goes into the loss. A buffer, mutated
at the end, takes the losses of the samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.operators.cases import Sample

SEED = 7
WIDEST = 16
"""Columns of the products around a sample, at most."""
PLAIN = (int, float, bool, str, type(None))
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
Results = dict[str, Any]
"""What a run leaves behind by name: "0.out1" is an output of sample 0, "0.grad t3" a gradient, "0.loss" its loss."""


def enter(x: Tensor, eye: Tensor | None, order: tuple[int, ...]) -> Tensor:
    """``x`` itself, as an intermediate. ``order``: a permutation of its dimensions that makes it contiguous."""
    if x.is_complex():
        return torch.view_as_complex(enter(torch.view_as_real(x), eye, (*order, x.dim())))
    dense = x.permute(order)
    h = dense if eye is None else dense.reshape(-1, eye.shape[0]) @ eye
    h = nn.functional.leaky_relu(h, 1.0)
    inverse = [order.index(i) for i in range(len(order))]
    return h.reshape(dense.shape).permute(inverse)


def leave(value: Any, weights: dict[int, Tensor], found: list[Any]) -> Tensor:
    """Append what ``value`` holds to ``found``; returns its loss."""
    terms: list[Tensor] = [weights[1].new_zeros(())]
    _leave(value, weights, found, terms)
    return torch.stack(terms).sum()


def _leave(value: Any, weights: dict[int, Tensor], found: list[Any], terms: list[Tensor]) -> None:
    if isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            _leave(part, weights, found, terms)
        return
    if not isinstance(value, Tensor):
        found.append(value)
        return
    if value.layout is not torch.strided:
        value = value.to_dense()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if value.dtype not in FLOATS:
        found.append(value)
        return
    found.append(value.detach() * 0.5)
    width = width_of(value.numel())
    if width:
        terms.append((value.reshape(-1, width).to(weights[width].dtype).atan() @ weights[width]).sum())


def width_of(numel: int) -> int:
    """Columns that so many elements are looked at in; 0 where there are none."""
    width = WIDEST if numel else 0
    while width and numel % width:
        width -= 1
    return width


@dataclass(frozen=True)
class Program:
    """Samples in one function ``step(t, w, state)``: ``t`` the tensors, ``w`` constants by width, ``state`` a buffer.

    ``train``: with a backward. ``source``: the text of the function. ``owners``: the sample of each tensor.
    """

    samples: tuple[Sample, ...]
    train: bool
    source: str
    tensors: tuple[Tensor, ...]
    owners: tuple[int, ...]
    constants: dict[str, Any]

    def run(self, compiler: Compile, dtype: torch.dtype | None = None) -> Results:
        """One step from fixed random state; ``dtype``: that of float32 tensors instead."""
        tensors = [_fresh(tensor, dtype) for tensor in self.tensors]
        modules = {name: _fresh_module(v, dtype) for name, v in self.constants.items() if isinstance(v, nn.Module)}
        scope = {"enter": enter, "leave": leave, "torch": torch, **self.constants, **modules}
        exec(compile(self.source, "<program>", "exec"), scope)
        weights = constants(dtype or torch.float32)
        state = torch.zeros(len(self.samples), dtype=dtype or torch.float32)
        torch.manual_seed(SEED)
        with torch.set_grad_enabled(self.train):
            losses, found = compiler(scope["step"])(tensors, weights, state)
            if losses.requires_grad:
                losses.sum().backward()
        results: Results = {}
        for number, values in enumerate(found):
            results |= {f"{number}.out{i}": value for i, value in enumerate(values)}
            results |= {f"{number}.loss": losses[number], f"{number}.state": state[number]}
        for i, (tensor, owner) in enumerate(zip(tensors, self.owners, strict=True)):
            results[f"{owner}.input t{i}"] = tensor
            if tensor.grad is not None:
                results[f"{owner}.grad t{i}"] = tensor.grad
        for name, module in modules.items():
            results |= {f"{name[2:]}.grad {n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
            results |= {f"{name[2:]}.buffer {n}": b for n, b in module.named_buffers()}
        return {name: v.detach() if isinstance(v, Tensor) else v for name, v in results.items()}


def constants(dtype: torch.dtype) -> dict[int, Tensor]:
    """By width: what outputs are multiplied with; by minus the width: identities."""
    found = {w: torch.linspace(-0.7, 1.1, 2 * w, dtype=dtype).reshape(w, 2) for w in range(1, WIDEST + 1)}
    return found | {-w: torch.eye(w, dtype=dtype) for w in range(1, WIDEST + 1)}


def program(samples: Sequence[Sample], train: bool) -> Program:
    """The samples in one graph."""
    return _Writer(tuple(samples), train).program()


class _Writer:
    """Writes the source of a program."""

    def __init__(self, samples: tuple[Sample, ...], train: bool) -> None:
        self.samples, self.train = samples, train
        self.lines: list[str] = []
        self.tensors: list[Tensor] = []
        self.owners: list[int] = []
        self.constants: dict[str, Any] = {}

    def program(self) -> Program:
        for number, sample in enumerate(self.samples):
            self._write(number, sample)
        losses = ", ".join(f"l{number}" for number in range(len(self.samples)))
        found = ", ".join(f"r{number}" for number in range(len(self.samples)))
        self.lines += [f"losses = torch.stack([{losses}])", "state.mul_(0.5).add_(losses.detach())"]
        self.lines += [f"return losses, [{found}]"]
        source = "def step(t, w, state):\n" + "".join(f"    {line}\n" for line in self.lines)
        return Program(self.samples, self.train, source, tuple(self.tensors), tuple(self.owners), self.constants)

    def _write(self, number: int, sample: Sample) -> None:
        self.number = number
        self.known: dict[int, str] = {}
        call, finish = f"op{number}", ""
        self.constants[call] = sample.call
        if sample.finish is not None:
            finish = f"finish{number}"
            self.constants[finish] = sample.finish
        arguments = self._arguments(sample, self._intermediate)
        self.lines += [f"r{number} = []", f"l{number} = leave({finish}({call}({', '.join(arguments)})), w, r{number})"]
        if sample.variant == "inplace":
            written = self._add(sample.args[0].detach())
            rest = self._arguments(sample, lambda t: f"{self._intermediate(t)}.detach()")[1:]
            self.lines.append(f"{call}({', '.join([written, *rest])})")

    def _arguments(self, sample: Sample, tensor: Callable[[Tensor], str]) -> list[str]:
        texts = [self._text(arg, tensor) for arg in sample.args]
        return [*texts, *(f"{name}={self._text(arg, tensor)}" for name, arg in sample.kwargs.items())]

    def _text(self, value: Any, tensor: Callable[[Tensor], str]) -> str:
        if isinstance(value, Tensor):
            return tensor(value)
        if type(value) in (list, tuple):
            inside = "".join(f"{self._text(part, tensor)}, " for part in value)
            return f"[{inside}]" if type(value) is list else f"({inside})"
        if type(value) is dict:
            return "{" + ", ".join(f"{k!r}: {self._text(part, tensor)}" for k, part in value.items()) + "}"
        if type(value) in PLAIN and not (isinstance(value, float) and not math.isfinite(value)):
            return repr(value)
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return str(value)
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def _add(self, tensor: Tensor) -> str:
        self.tensors.append(tensor)
        self.owners.append(self.number)
        return f"t[{len(self.tensors) - 1}]"

    def _intermediate(self, tensor: Tensor) -> str:
        if id(tensor) in self.known:
            return self.known[id(tensor)]
        name = place = self._add(tensor)
        ordinary = tensor.layout is torch.strided and type(tensor) in (Tensor, nn.Parameter) and not tensor.is_quantized
        if ordinary and (tensor.is_complex() or tensor.dtype in FLOATS):
            name = f"a{len(self.tensors) - 1}"
            width = width_of(tensor.numel() * (2 if tensor.is_complex() else 1))
            finite = bool(tensor.detach().isfinite().all()) and tensor.dtype in (torch.float32, torch.complex64)
            eye = f"w[-{width}]" if width and finite else "None"
            self.lines.append(f"{name} = enter({place}, {eye}, {_order(tensor)})")
        self.known[id(tensor)] = name
        return name


def _order(tensor: Tensor) -> tuple[int, ...]:
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.dim()), key=lambda i: -strides[i]))
    return order if tensor.permute(order).is_contiguous() else tuple(range(tensor.dim()))


def _fresh(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    new = tensor.detach().clone()
    if dtype is not None:
        new = new.to(_cast(new.dtype, dtype))
    return new.requires_grad_(tensor.requires_grad)


def _cast(kind: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return {torch.float32: dtype, torch.complex64: torch.complex128}.get(kind, kind)


def _fresh_module(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    new = copy.deepcopy(module)
    return new if dtype is None else new.to(dtype)


def differentiable(sample: Sample) -> bool:
    """Whether something that goes into the sample takes a gradient."""
    leaves = pytree.tree_leaves((sample.args, sample.kwargs))
    module = sample.call if isinstance(sample.call, nn.Module) else None
    parameters = [] if module is None else [p for p in module.parameters() if p.requires_grad]
    return bool(parameters) or any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
