"""``generate_rows``: from a chain of inverted residuals to a kernel's source, to a function that runs it, to a program."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

from memcompile.codegen.cpp.build import load
from memcompile.codegen.cpp.chain import RowChain
from memcompile.codegen.cpp.layout import RowLayout, layout_of
from memcompile.codegen.cpp.writer import Writer, input_strides
from memcompile.step.cost import flops_of
from memcompile.streaming.program import PROGRAMS, FusedRows, Program, RowPort
from memcompile.streaming.region import channels_last

FLOAT_BYTES = 4


@dataclass(frozen=True)
class RowsKernel:
    """The kernel of a chain."""

    chain: RowChain
    layout: RowLayout

    @functools.cached_property
    def source(self) -> str:
        """The C++ that is compiled."""
        header = files(__package__).joinpath("rows.h").read_text(encoding="utf-8")
        return f"{header}\n{Writer(self.chain, self.layout).text()}"

    @property
    def shared_bytes(self) -> int:
        """Packed weights and vectors."""
        return FLOAT_BYTES * self.layout.shared.floats

    def workspace_bytes(self, threads: int) -> int:
        """What ``launch`` works in."""
        return self.shared_bytes + threads * FLOAT_BYTES * self.layout.own.floats

    def load(self, threads: int) -> Callable[..., None]:
        """``launch(*operands, out=(result,), workspace=...)`` on up to ``threads`` threads. Raises `KernelBuildError`.

        Operands are ``chain.operands`` with the strides of ``rows_program``'s ports; the workspace: uint8, of
        ``workspace_bytes(threads)``; vectors are read fastest from addresses that are multiples of 64.
        """
        run = load(self.source).run
        run.restype = None

        def launch(*operands: Tensor, out: Sequence[Tensor], workspace: Tensor) -> None:
            pointers = (ctypes.c_void_p * len(operands))(*(operand.data_ptr() for operand in operands))
            images, used = operands[0].shape[0], min(threads, torch.get_num_threads())
            result, scratch = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (out[0], workspace))
            run(pointers, result, scratch, ctypes.c_int(images), ctypes.c_int(used))

        return launch


def generate_rows(chain: RowChain) -> RowsKernel:
    """The kernel of a chain. Nothing is written before its source is asked for: many are only weighed against each other."""
    return RowsKernel(chain, layout_of(chain))


def rows_program(kernel: RowsKernel, threads: int, *, run: bool = True) -> Program:
    """The program that runs a chain by its kernel; its operands are ``chain.operands``. Raises `KernelBuildError`.

    ``run``: False in a dry run, where nothing is compiled.
    """
    chain = kernel.chain
    value, result = (node.meta["val"] for node in (chain.input, chain.result))
    parameters = [node.meta["val"] for node in chain.operands[1:]]
    operands = (
        RowPort(tuple(value.shape), input_strides(chain), value.dtype, 0, 1),
        *(RowPort(tuple(t.shape), tuple(t.stride()), t.dtype, None, 1) for t in parameters),
    )
    results = (RowPort(tuple(result.shape), channels_last(result.shape), result.dtype, 0, 1),)
    key = hashlib.sha256(repr((operands, results, threads, kernel.source, run)).encode()).hexdigest()[:12]
    fused = FusedRows(kernel.load(threads) if run else None, kernel.source, kernel.workspace_bytes(threads), "cpp")
    flops = sum(flops_of(node) for block in chain.blocks for node in block.nodes)
    return PROGRAMS.add(
        Program(key, chain.images, chain.images, operands, results, (None,), value.device, flops, {}, {}, fused)
    )
