"""Kernels of passes run in Triton's interpreter, as those of ``codegen`` do."""

from tests.codegen.conftest import interpreted

__all__ = ["interpreted"]
