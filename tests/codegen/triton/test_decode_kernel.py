"""K3 in the interpreter: few rows, the columns of each loop split over programs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from memcompile.codegen.triton.kernel import generate
from memcompile.errors import KernelRefusedError
from tests.codegen.triton.bodies import Case, core, ffn, gated, normalized, projection, rank_to_rank
from tests.codegen.triton.test_rows_kernel import TOLERANCE, check


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 40])
def test_ffn_of_few_rows(interpreted: None, rows: int, dtype: torch.dtype) -> None:
    check(ffn(rows, 48, 40, 200, dtype), method="decode")


@pytest.mark.parametrize(
    "case",
    [
        lambda: gated(3, 48, 24, 300, torch.bfloat16),
        lambda: projection(5, 64, 40),
        lambda: rank_to_rank(7, 240, 300),
        lambda: normalized(2, 70, 24, 50),
    ],
    ids=["gated", "projection", "rank_to_rank", "normalized"],
)
def test_other_bodies(interpreted: None, case: Callable[[], Case]) -> None:
    check(case(), method="decode")


@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_several_tiles_a_program(interpreted: None, tiles: int) -> None:
    case = ffn(3, 80, 24, 300)
    kernel = generate(case.body(), case.rows, name="kernel", method="decode")
    (result,) = kernel.module().launch(*case.operands, config=kernel.config.as_dict() | {"TILES": tiles})
    assert torch.allclose(result.double(), case.exact()[0], atol=4e-6)


def test_shares_are_summed_in_the_same_order_in_every_run(interpreted: None) -> None:
    case = ffn(3, 48, 24, 300, torch.float32)
    launch = generate(case.body(), case.rows, name="kernel", method="decode").load()
    first, second = launch(*case.operands)[0], launch(*case.operands)[0]
    assert torch.equal(first, second)


def test_a_product_between_narrow_tensors_is_refused() -> None:
    case = core(4, 100, 40)
    with pytest.raises(KernelRefusedError, match="both sides of a product are narrow"):
        generate(case.body(), case.rows, name="kernel", method="decode")
