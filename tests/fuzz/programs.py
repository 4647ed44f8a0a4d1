"""A random program as data: a few lines of Python that a person can read, made from a seed only.

``str(program)`` is a script that runs it. ``program.load()`` is the same text, executed: its model and its inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Mode = Literal["train", "no_grad", "inference_mode"]

COLUMNS = 32
"""Length of every last dimension; few sizes, so that equal kernels are compiled once."""

HEADER = """\
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
"""

OPERATORS = """\
@torch.library.custom_op("memcompile_fuzz::bump", mutates_args=("x",))
def bump(x: torch.Tensor, by: float) -> None:
    x.add_(by)


@torch.library.custom_op("memcompile_fuzz::bump_and_sum", mutates_args=("x",))
def bump_and_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x.add_(y)
    return x.sum(0)


@bump_and_sum.register_fake
def _(x, y):
    return x.new_empty(x.shape[1:])


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g
"""
"""Operators that write, and an autograd function; part of the scripts that use them."""


@dataclass(frozen=True)
class Way:
    """How the program is called.

    ``rows``: the length of the first dimension at each call (``dynamic``: marked so before the first). ``optimizer``: its step
    is compiled too. ``accumulate``: gradients stay between calls. ``same_inputs``: what one call wrote, the next one reads.
    """

    mode: Mode = "train"
    training: bool = True
    rows: tuple[int, ...] = (48,)
    dynamic: bool = False
    accumulate: bool = False
    optimizer: str = ""
    same_inputs: bool = False


@dataclass(frozen=True)
class Line:
    """A statement of ``forward`` and the feature that it is there for."""

    text: str
    feature: str


@dataclass(frozen=True)
class Program:
    """``setup``: lines of ``__init__``; ``inputs``: name and expression of each; ``returns``: expressions."""

    seed: int
    setup: tuple[str, ...]
    inputs: tuple[tuple[str, str], ...]
    body: tuple[Line, ...]
    returns: tuple[str, ...]
    way: Way = Way()

    @property
    def features(self) -> tuple[str, ...]:
        """What the program does, each once."""
        way = self.way
        of_way = {
            way.mode: True,
            "eval": not way.training,
            "called again": len(way.rows) > 1,
            "other sizes": len(set(way.rows)) > 1,
            "dynamic": way.dynamic,
            "accumulation": way.accumulate,
            "optimizer": bool(way.optimizer),
            "same inputs again": way.same_inputs,
            "tied weights": any("tied" in line for line in self.setup),
            "several outputs": len(self.returns) > 1,
        }
        return tuple(sorted({line.feature for line in self.body} | {name for name, holds in of_way.items() if holds}))

    @property
    def is_random(self) -> bool:
        """Whether eager in another precision may draw other numbers."""
        return any(line.feature in ("dropout", "random numbers") for line in self.body)

    @property
    def code(self) -> str:
        """The model and its inputs."""
        body = [line.text for line in self.body]
        names = "".join(f", {name}" for name, _ in self.inputs)
        result = ", ".join(self.returns) + ("," if len(self.returns) == 1 else "")
        forward = "\n".join(f"        {line}" for text in body for line in text.split("\n"))
        setup = "".join(f"        {line}\n" for line in self.setup)
        inputs = "".join(f"        {expression},\n" for _, expression in self.inputs)
        operators = f"\n\n{OPERATORS}" if any(word in forward for word in ("bump", "Doubled")) else ""
        return (
            f"{HEADER}{operators}\n\nclass Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n{setup}\n"
            f"    def forward(self{names}):\n{forward}\n        return {result.rstrip(',') if len(self.returns) == 1 else result}\n\n\n"
            f"def inputs(n, call):\n    torch.manual_seed(100 + call)\n    return [\n{inputs}    ]\n"
        )

    def __str__(self) -> str:
        """A script: the program, and how it is called."""
        way = self.way
        lines = ["torch.manual_seed(0)", f"model = Model().train({way.training})"]
        lines += ["compiled = torch.compile(model, backend='memcompile', options=OPTIONS)"]
        if way.optimizer:
            lines += [f"optimizer = torch.optim.{way.optimizer}(model.parameters())"]
            lines += ["optimizer.step = torch.compile(optimizer.step, backend='memcompile', options=OPTIONS)"]
        lines += [f"for call, n in enumerate({way.rows}):"]
        fresh = ["args = inputs(n, call)"] + (["mark_rows_dynamic(args)"] if way.dynamic else [])
        lines += [f"    {'if call == 0: ' if way.same_inputs else ''}{text}" for text in fresh]
        if way.mode == "train":
            lines += ["    outputs = compiled(*args)", "    loss_of(outputs).backward()"]
            lines += ["    optimizer.step()"] if way.optimizer else []
            lines += [] if way.accumulate else ["    model.zero_grad()"]
        else:
            lines += [f"    with torch.{way.mode}():", "        outputs = compiled(*args)"]
        return self.code + "\n\n" + "\n".join(lines) + "\n"

    def load(self, double: bool = False) -> Loaded:
        """The program, executed. ``double``: every type in it is the double-precision one."""
        return _load(self.code, double)

    def without(self, index: int) -> Program:
        """Without one line of the body."""
        return dataclasses.replace(self, body=self.body[:index] + self.body[index + 1 :])


DOUBLED = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float16: torch.float64,
    torch.complex64: torch.complex128,
}


@dataclass(frozen=True)
class Loaded:
    """An executed program. A model in double precision starts from the numbers of the one in single precision."""

    model_class: Callable[[], nn.Module]
    make: Callable[[int, int], list[Any]]
    double: bool

    def model(self, way: Way) -> nn.Module:
        """A new model with its own, always equal, weights."""
        torch.manual_seed(0)
        model: Any = self.model_class().train(way.training)
        made: nn.Module = model._apply(self._as_double) if self.double else model
        return made

    def inputs(self, rows: int, call: int) -> list[Any]:
        """New inputs of one call."""
        made = self.make(rows, call)
        return [self._as_double(value) if isinstance(value, torch.Tensor) else value for value in made] if self.double else made

    @staticmethod
    def _as_double(tensor: torch.Tensor) -> torch.Tensor:
        dtype = DOUBLED.get(tensor.dtype)
        return tensor if dtype is None else tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)


_numbers = itertools.count()


def _load(code: str, double: bool) -> Loaded:
    if "bump" in code or "Doubled" in code:
        code = code.replace(OPERATORS, "")
    if double:
        for low, high in DOUBLED.items():
            code = code.replace(str(low), str(high))
    name = f"<program {next(_numbers)}>"
    space: dict[str, Any] = {"__name__": name, **_operators()}
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)  # for whoever shows a line of it
    exec(compile(code, name, "exec"), space)
    return Loaded(space["Model"], space["inputs"], double)


@functools.cache
def _operators() -> dict[str, Any]:
    """They can be registered once in a process."""
    space: dict[str, Any] = {"__name__": "memcompile_fuzz", "torch": torch}
    exec(compile(OPERATORS, "<operators>", "exec", dont_inherit=True), space)
    return {name: space[name] for name in ("bump", "bump_and_sum", "Doubled")}
