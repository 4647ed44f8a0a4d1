"""Kernels run in Triton's interpreter here; those that are compiled for a GPU are not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder
cast_of_triton, dot_of_triton = Builder.cast_impl, Builder.create_dot


def to_float32(bits: np.ndarray) -> np.ndarray:
    """bfloat16 numbers, which the interpreter holds as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def cast_rounding_to_nearest(self: Any, src: Any, dst_type: Any) -> Any:
    """The interpreter truncates fp32 to bfloat16; a GPU rounds to the nearest."""
    if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
        bits = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(bits, tl.bfloat16)
    return cast_of_triton(self, src, dst_type)


def dot_of_floats(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """The interpreter multiplies the bits of bfloat16 numbers as integers; sums of products are in fp32."""
    if a.dtype.scalar in (tl.bfloat16, tl.float16):
        widen = to_float32 if a.dtype.scalar == tl.bfloat16 else np.float32
        a, b = (interpreter.TensorHandle(widen(operand.data), tl.float32) for operand in (a, b))
    return dot_of_triton(self, a, b, d, input_precision, max_num_imprecise_acc)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are loaded now run in the interpreter, with bfloat16 as on a GPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(Builder, "cast_impl", cast_rounding_to_nearest)
    monkeypatch.setattr(Builder, "create_dot", dot_of_floats)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels that are loaded now are compiled, and not found in a cache."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
