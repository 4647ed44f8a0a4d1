"""K1 in the interpreter: results equal fp64 within the rounding of the graph's dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from memcompile.codegen.triton.kernel import generate
from tests.codegen.triton.bodies import Case, core, ffn, gated, normalized, projection, random, rank_to_rank, rows_first

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Errors relative to the largest result: a few roundings of the dtype, for results and for what lies between products."""


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def check(case: Case, decomposed: bool = False, method: Literal["rows", "decode"] = "rows") -> None:
    kernel = generate(case.body(decomposed), case.rows, name="kernel", method=method)
    dtype = torch.float32 if all(t.dtype == torch.float32 for t in case.operands) else case.operands[-1].dtype
    for result, exact in zip(kernel.load()(*case.operands), case.exact(), strict=True):
        error = (result - exact).abs().max() / exact.abs().max()
        assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_ffn(interpreted: None, dtype: torch.dtype, decomposed: bool) -> None:
    check(ffn(21, 48, 40, 100, dtype), decomposed)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gated(interpreted: None, dtype: torch.dtype) -> None:
    check(gated(33, 48, 24, 96, dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_epilogues_of_a_projection(interpreted: None, dtype: torch.dtype) -> None:
    check(projection(21, 64, 40, dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_casts_and_scales_before_the_first_product(interpreted: None, dtype: torch.dtype) -> None:
    check(normalized(19, 70, 24, 50, dtype))


def test_products_between_rank_space_tensors_and_several_results(interpreted: None) -> None:
    check(core(40, 100, 40))


@pytest.mark.parametrize("rank", [8, 40, 96, 240, 384, 1000])
def test_ranks(interpreted: None, rank: int) -> None:
    check(rank_to_rank(5, rank, rank + 70))
    check(ffn(17, rank + 30, rank, rank + 64, torch.bfloat16))


@pytest.mark.parametrize("rows", [1, 32, 65])
def test_numbers_of_rows_that_the_kernel_was_not_generated_for(interpreted: None, rows: int) -> None:
    kernel = generate(ffn(32, 32, 16, 48).body(), (True, *[False] * 6), name="kernel")
    case = ffn(rows, 32, 16, 48)
    assert torch.allclose(kernel.load()(*case.operands)[0].double(), case.exact()[0], atol=2e-6, rtol=0)
    assert kernel.load()(case.operands[0][:0], *case.operands[1:])[0].shape == (0, 32)


@pytest.mark.parametrize("name", ["silu", "relu", "tanh", "softplus", "hardswish", "elu", "leaky_relu", "sigmoid", "hardtanh"])
def test_activations(interpreted: None, name: str) -> None:
    for decomposed in (False, True):
        check(ffn(9, 32, 16, 50, act=getattr(F, name)), decomposed)


@pytest.mark.parametrize(
    "act",
    [
        lambda t: F.gelu(t, approximate="tanh"),
        lambda t: (t * t + 1).rsqrt() - t.abs().sqrt() + (t.abs() + 2).reciprocal(),
        lambda t: torch.where((t > -0.5) & (t <= 1), t.clamp(-0.3, 0.4), 1 - t),
        lambda t: torch.maximum(t.exp(), t.neg()) / (t.pow(2) + t.pow(3).abs() + 1),
        lambda t: torch.expm1(t) + torch.log1p(t.abs()) + torch.add(t, t, alpha=3).masked_fill(t < 0, 2.0),
        lambda t: (t.abs() + 3.0) ** -0.5 + (t.abs() + 3.0) ** 1.5 + (t.abs() + 3.0) ** -2,
    ],
)
def test_expressions(interpreted: None, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
    check(ffn(9, 32, 16, 50, act=act))


def test_a_scaled_sum_with_a_residual_as_its_bias(interpreted: None) -> None:
    def function(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.addmm(x, x @ u, v, beta=0.5, alpha=3.0),)

    check(rows_first([random(9, 48)], [random(48, 16), random(16, 48)], function))


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_masked_column_does_no_harm_where_its_value_is_infinite(interpreted: None) -> None:
    case = ffn(9, 32, 16, 50, act=torch.reciprocal)
    case.operands[3].add_(9.0)
    check(case)


def test_not_a_number_stays_one(interpreted: None) -> None:
    def made(act: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
        return lambda p, b, a: (act(p @ b) @ a,)

    for act in (F.relu, lambda t: t.clamp(-1, 1), lambda t: torch.maximum(t, -t)):
        case = rows_first([random(4, 16)], [random(16, 40), random(40, 16)], made(act))
        case.operands[0][2] = float("nan")
        result = generate(case.body(), case.rows, name="kernel").load()(*case.operands)[0]
        assert result[2].isnan().all() and result[[0, 1, 3]].isfinite().all()


def test_results_are_written_into_given_tensors(interpreted: None) -> None:
    case = rank_to_rank(20, 16, 40)
    whole = torch.full((40, 16), float("nan"))
    generate(case.body(), case.rows, name="kernel").load()(*case.operands, out=(whole[10:30],))
    assert torch.allclose(whole[10:30].double(), case.exact()[0], atol=2e-6)
    assert whole[:10].isnan().all() and whole[30:].isnan().all()


def test_columns_of_a_larger_tensor(interpreted: None) -> None:
    wide = random(20, 100) * 4
    case = rank_to_rank(20, 16, 40)
    check(Case(case.function, (wide[:, 30:46], *case.operands[1:]), case.rows))


def test_operands_of_another_layout_are_refused(interpreted: None) -> None:
    case = ffn(20, 32, 16, 48)
    launch = generate(case.body(), case.rows, name="kernel").load()
    x, a1, *rest = case.operands
    for wrong in ((x, a1.t().contiguous().t(), *rest), (x.bfloat16(), a1, *rest), (x[:, :30], a1, *rest)):
        with pytest.raises(ValueError, match="has to be"):
            launch(*wrong)
    with pytest.raises(ValueError, match="out"):
        launch(*case.operands, out=(torch.empty(19, 32),))
