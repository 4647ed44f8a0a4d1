"""Optimizers: three steps of one, compiled, on parameters that are written in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.operators.cases import Sample
from tests.operators.program import SEED, Compile, Results

SHAPES = ((8, 16), (16, 8), (12, 16))
STEPS = 3


@dataclass(frozen=True)
class OptimizerProgram:
    """``optimizer.step`` after gradients of fixed random numbers. Results: parameters, and the state of the optimizer."""

    samples: tuple[Sample]
    train: bool = False

    @property
    def source(self) -> str:
        sample = self.samples[0]
        return f"torch.compile({sample.entry}(parameters, {sample.kwargs}).step)()"

    def run(self, compiler: Compile, dtype: torch.dtype | None = None) -> Results:
        sample = self.samples[0]
        draw = torch.Generator().manual_seed(SEED)
        kind = dtype or torch.float32

        def random(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=draw).to(kind)

        parameters = [nn.Parameter(random(shape)) for shape in SHAPES]
        optimizer = sample.call(parameters, **sample.kwargs)

        def closure() -> Tensor:
            return torch.stack([p.square().sum() for p in parameters]).sum()

        def step() -> Any:
            return optimizer.step(closure) if sample.entry == "LBFGS" else optimizer.step()

        function = compiler(step)
        torch.manual_seed(SEED)
        for _ in range(STEPS):
            for parameter in parameters:
                parameter.grad = random(tuple(parameter.shape))
            function()
        results: Results = {f"0.parameter {i}": p.detach() for i, p in enumerate(parameters)}
        for i, parameter in enumerate(parameters):
            state = optimizer.state[parameter]
            results |= {f"0.state {i} {n}": v.detach() for n, v in state.items() if isinstance(v, Tensor)}
        return results
