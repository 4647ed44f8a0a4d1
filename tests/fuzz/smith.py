"""Networks of NNSmith (Liu et al., ASPLOS 2023) in the place of our own programs: the same runs, the same judge.

NNSmith draws a graph of operators and lets an SMT solver choose shapes that fit. It is no dependency of the project: ``make
fuzz-nnsmith`` installs what is used of it into a folder of its own.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

from tests.fuzz.programs import DOUBLED, Way

ELEMENTS = 1 << 14
"""Of a tensor, at most."""


class Network(nn.Module):
    """The operators of a generated graph, in order; its leaves are the outputs."""

    def __init__(self, graph: Any, double: bool) -> None:
        super().__init__()
        from nnsmith.abstract.op import Input
        from nnsmith.materialize.torch.forward import forward_fn

        self.double_precision = double
        self.modules_ = nn.ModuleList()
        self.steps: list[tuple[Any, tuple[str, ...], tuple[str, ...]]] = []
        for instruction in graph.insts:
            if not isinstance(instruction.iexpr.op, Input):
                function = forward_fn(instruction.iexpr.op)
                if isinstance(function, nn.Module):
                    self.modules_.append(function)
                self.steps.append((function, tuple(instruction.iexpr.args), tuple(instruction.retvals())))
        self.given, self.wanted = tuple(graph.input_var()), tuple(graph.leaf_var())

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Leaves of the graph for its inputs."""
        values = dict(zip(self.given, args, strict=True))
        for function, names, results in self.steps:
            found = function(*(values[name] for name in names))
            values.update(zip(results, found if isinstance(found, (tuple, list)) else (found,), strict=True))
        return tuple(values[name] for name in self.wanted)


@dataclass(frozen=True)
class SmithProgram:
    """Stands where a ``programs.Program`` stands. ``seed``: see ``generate``; ``number`` makes the weights."""

    seed: int
    number: int
    way: Way = field(default_factory=Way)
    is_random: bool = False
    body: tuple[Any, ...] = ()
    graph: Any = field(default=None, compare=False, repr=False)

    @property
    def features(self) -> tuple[str, ...]:
        """Operators of the graph."""
        return tuple(sorted({f"nnsmith {type(i.iexpr.op).__name__}" for i in self.graph.insts} | {self.way.mode}))

    @property
    def code(self) -> str:
        """What is in it; half precision is named for the tolerance."""
        return str(self.graph).replace("f16", "float16")

    def __str__(self) -> str:
        return f"# tests.fuzz.smith.generate({self.seed})\n" + "".join(f"# {line}\n" for line in self.code.splitlines())

    def load(self, double: bool = False) -> SmithProgram | _InDouble:
        """Itself: the graph is executed as it is."""
        return _InDouble(self) if double else self

    def model(self, way: Way) -> nn.Module:
        """A new network with its own, always equal, weights."""
        torch.manual_seed(self.number)
        return Network(self.graph, False).train(way.training)

    def inputs(self, _rows: int, call: int) -> list[Tensor]:
        """New inputs of one call, around one."""
        torch.manual_seed(1000 + call)
        return [_input(self.graph.vars[name], self.way.mode == "train") for name in self.graph.input_var()]


@dataclass(frozen=True)
class _InDouble:
    program: SmithProgram

    def model(self, way: Way) -> nn.Module:
        """In double precision, casts between the operators too."""
        from nnsmith.abstract.dtype import DType

        model: Any = self.program.model(way)
        model._apply(_doubled)
        run, types = model.forward, DType.torch

        def forward(*args: Tensor) -> tuple[Tensor, ...]:
            with mock.patch.object(DType, "torch", lambda self: DOUBLED.get(types(self), types(self))):
                leaves: tuple[Tensor, ...] = run(*args)
                return leaves

        model.forward = forward
        return cast("nn.Module", model)

    def inputs(self, rows: int, call: int) -> list[Tensor]:
        """The same numbers."""
        return [_doubled(value) for value in self.program.inputs(rows, call)]


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.detach().to(DOUBLED.get(tensor.dtype, tensor.dtype)).requires_grad_(tensor.requires_grad)


def _input(like: Any, train: bool) -> Tensor:
    dtype = like.dtype.torch()
    value = torch.rand(like.shape) * 2 + 0.1
    if dtype.is_floating_point or dtype.is_complex:
        return value.to(dtype).requires_grad_(train)
    return value.round().to(dtype)


@functools.cache
def _operators() -> tuple[Any, ...]:
    from nnsmith.abstract.extension import activate_ext
    from nnsmith.materialize import Model
    from nnsmith.narrow_spec import auto_opset

    with _quiet():
        kind = Model.init("torch")
        kind.add_seed_setter()
        operators = auto_opset(kind, None)
        activate_ext(opset=operators, factory=None)
    return tuple(operators)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def generate(seed: int) -> SmithProgram:
    """The network of a seed, trained where it can be."""
    from nnsmith.graph_gen import model_gen

    from tests.fuzz.run import Invalid, eager

    for attempt in range(100):
        draw = random.Random(f"smith {seed} {attempt}")
        number, nodes = draw.randrange(1 << 30), draw.randrange(5, 16)
        with _quiet():
            made = model_gen(
                opset=list(_operators()),
                method="symbolic-cinit",
                seed=number,
                max_elem_per_tensor=ELEMENTS,
                max_nodes=nodes,
                timeout_ms=10000,
            )
            graph = made.make_concrete()
        for mode in draw.choice((("train", "no_grad"), ("no_grad",))):
            program = SmithProgram(seed, number, Way(mode=mode, rows=(0,) * draw.choice((1, 2))), graph=graph)
            try:
                eager(program)  # type: ignore[arg-type]
                eager(program, double=True)  # type: ignore[arg-type]
                return program
            except Invalid:
                continue
    raise AssertionError(f"nothing valid for seed {seed}")
