"""K3 in the interpreter: few rows, the columns of each loop split over programs."""

from __future__ import annotations

import pytest
import torch

from tests.triton.bodies import ffn, gated, projection, rank_to_rank
from tests.triton.test_rows_kernel import TOLERANCE, check


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_ffn_of_few_rows(interpreted, rows, dtype):
    check(ffn(rows, 48, 40, 200, dtype), method="decode")
