"""memcompile's errors pass through Dynamo as what they are."""

import traceback
from typing import Any

import pytest
import torch

from memcompile.codegen.surface import surface
from memcompile.errors import BudgetInfeasibleError, MemcompileError


def refuse(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    try:
        raise BudgetInfeasibleError(1, 2, 1)
    except MemcompileError as error:
        raise surface(error)  # noqa: B904 (it is the same error)


def test_dynamo_does_not_wrap() -> None:
    torch._dynamo.reset()
    with pytest.raises(BudgetInfeasibleError, match="does not fit in 1 B") as caught:
        torch.compile(torch.nn.Linear(2, 2), backend=refuse)(torch.ones(1, 2))
    assert type(caught.value).__name__ == "BudgetInfeasibleError"
    assert caught.value.floor_bytes == 2
    assert str(caught.value) == str(BudgetInfeasibleError(1, 2, 1))
    files = [frame.filename for frame in traceback.extract_tb(caught.tb)]
    assert not any("convert_frame" in file for file in files)


def test_twice_is_once() -> None:
    error = BudgetInfeasibleError(1, 2, 1)
    assert surface(surface(error)) is error
    assert type(surface(BudgetInfeasibleError(1, 2, 1))) is type(error)
