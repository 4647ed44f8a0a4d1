"""K1 in the interpreter: results equal fp64 within the rounding of the graph's dtype."""

from __future__ import annotations

import pytest
import torch

from memcompile.codegen.triton.kernel import generate
from tests.triton.bodies import Case, ffn, gated, projection, rank_to_rank

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Errors relative to the largest result: a few roundings of the dtype, for results and for what lies between products."""


def check(case: Case, decomposed: bool = False, method: str = "rows") -> None:
    kernel = generate(case.body(decomposed), case.rows, name="kernel", method=method)
    dtype = next(t.dtype for t in case.operands if t.is_floating_point())
    for result, exact in zip(kernel.load()(*case.operands), case.exact(), strict=True):
        error = (result - exact).abs().max() / exact.abs().max()
        assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_projection(interpreted, dtype):
    check(projection(21, 64, 40, dtype))


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_ffn(interpreted, dtype, decomposed):
    check(ffn(21, 48, 40, 100, dtype), decomposed)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gated(interpreted, dtype):
    check(gated(33, 48, 24, 96, dtype))


@pytest.mark.parametrize("rank", [8, 40, 96, 240, 384])
def test_ranks(interpreted, rank):
    check(rank_to_rank(5, rank, rank + 70))
    check(ffn(17, rank + 30, rank, rank + 64, torch.bfloat16))


@pytest.mark.parametrize("name", ["gelu_tanh", "silu", "relu", "tanh", "softplus", "hardswish", "elu", "leaky_relu"])
def test_activations(interpreted, name):
    functions = torch.nn.functional
    act = (lambda t: functions.gelu(t, approximate="tanh")) if name == "gelu_tanh" else getattr(functions, name)
    for decomposed in (False, True):
        check(ffn(9, 32, 16, 50, act=act), decomposed)
