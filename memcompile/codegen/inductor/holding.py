"""Sparse tensors hold the tensors that they were made of, which Inductor does not know.

The gradient of ``nn.Embedding(sparse=True)`` is a sparse tensor whose values are a buffer of the backward. No schema says so,
and Inductor lets the next kernel write over that buffer: the gradient is wrong. Told that the result is a view, it leaves it
alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memcompile.codegen.inductor.results import held_inputs


@contextlib.contextmanager
def holding() -> Iterator[None]:
    """While active, Inductor takes a sparse result for a view of what it was made of."""
    from torch._inductor.ir import FallbackKernel

    kernels: Any = FallbackKernel
    known = kernels.get_inputs_that_alias_output

    def aliased(kernel: Any) -> Any:
        return [*known(kernel), *held_inputs(kernel)]

    kernels.get_inputs_that_alias_output = aliased
    try:
        yield
    finally:
        kernels.get_inputs_that_alias_output = known
