"""``generate``: from a body of a graph to a kernel's source, and to a function that runs it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import linecache
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Self

import torch
from torch import fx

from memcompile.codegen.kernel.chain import Chain, read_chain
from memcompile.codegen.kernel.source import LINE_LENGTH, Source
from memcompile.codegen.triton.configs import TARGETS, Config, GpuTarget, Method, candidates, smallest
from memcompile.codegen.triton.decode_kernel import DECODE_METHOD, write_decode_kernels
from memcompile.codegen.triton.layout import Function
from memcompile.codegen.triton.module import body_of, header, launcher, signature_of
from memcompile.codegen.triton.rows_kernel import ROWS_METHOD, rows_launch, write_rows_kernel
from memcompile.errors import KernelRefusedError, MissingTritonError

Launcher = Callable[..., tuple[torch.Tensor, ...]]
Choice = Callable[["GeneratedKernel", Sequence[torch.Tensor]], Config]
"""The config for the operands of one call."""


@dataclass(frozen=True, slots=True)
class GeneratedKernel(ABC):
    """A kernel's module as text. ``functions``: its ``@triton.jit`` functions."""

    name: str
    functions: tuple[Function, ...]
    config: Config
    head: str
    tail: str

    @abstractmethod
    def candidates(self, target: GpuTarget, count: int | None = None) -> list[Config]:
        """Configs whose estimate fits, the most promising first. ``count``: of rows or images; those of the graph when None."""

    @abstractmethod
    def count_of(self, operands: Sequence[torch.Tensor]) -> int:
        """The number of rows or images in a call's operands."""

    @abstractmethod
    def too_large(self, target: str, tried: str) -> KernelRefusedError:
        """The error that says that no config fits. ``tried``: what was tried."""

    @property
    def source(self) -> str:
        """The module: importable where torch and triton are."""
        text = f"{self.head}\nCONFIG = {_dict(self.config.as_dict())}\n{self.tail}"
        long = any(len(line) > LINE_LENGTH for line in text.splitlines())
        return f"# ruff: noqa: E501\n{text}" if long else text

    @property
    def key(self) -> str:
        """The same for kernels that compute the same on the same shapes and dtypes."""
        return hashlib.sha256((self.head + self.tail).encode()).hexdigest()[:16]

    def with_config(self, config: Config) -> Self:
        """The same kernel with other tile sizes."""
        return replace(self, config=config)

    def module(self) -> ModuleType:
        """The imported module. Raises `MissingTritonError`."""
        if importlib.util.find_spec("triton") is None:
            raise MissingTritonError
        return _executed(self.name, self.source, os.environ.get("TRITON_INTERPRET", "0"))

    def load(self, choose: Choice | None = None) -> Launcher:
        """``launch(*operands, out=None)``: takes the placeholders' tensors in order, returns the results.

        ``choose``: asked for the config at each call, such as a ``Tuner``; None takes the kernel's own.
        """
        launch: Launcher = self.module().launch
        if choose is None:
            return launch

        def tuned(*operands: torch.Tensor, out: tuple[torch.Tensor, ...] | None = None) -> tuple[torch.Tensor, ...]:
            return launch(*operands, out=out, config=choose(self, operands).as_dict())

        return tuned


@dataclass(frozen=True, slots=True)
class ChainKernel(GeneratedKernel):
    """The kernel of a chain, for any number of rows."""

    method: Method
    chain: Chain

    def candidates(self, target: GpuTarget, count: int | None = None) -> list[Config]:
        return candidates(self.chain, self.method, target, count)

    def count_of(self, operands: Sequence[torch.Tensor]) -> int:
        return next(t.shape[0] for node, t in zip(self.chain.placeholders, operands, strict=True) if node in self.chain.rows)

    def too_large(self, target: str, tried: str) -> KernelRefusedError:
        first = next(iter(self.chain.products), self.chain.outputs[0])
        widest = max(node.meta["val"].shape[1] for node in self.chain.resident)
        reason = f"{widest} resident columns do not fit in the registers of {target}: {tried}"
        return KernelRefusedError(first.name, reason)


def generate(body: fx.GraphModule, rows: Sequence[bool], *, name: str, method: Method = "rows") -> ChainKernel:
    """Generate the kernel of a body. Raises `KernelRefusedError` for what no kernel can do.

    ``rows``: for each placeholder whether it is sliced by rows. ``method``: "rows" for many rows (one program a block of rows),
    "decode" for few (the columns are split over programs).
    """
    if not name.isidentifier():
        raise ValueError(f"the name of a kernel has to be an identifier, not {name!r}")
    chain = read_chain(body, rows)
    source = Source()
    if method == "rows":
        function = write_rows_kernel(chain, source, f"{name}_kernel")
        written, text = [(function, rows_launch(chain, function))], ROWS_METHOD
    else:
        written, text = write_decode_kernels(chain, source, name), DECODE_METHOD
    functions, launches = zip(*written, strict=True)
    config = _first_config(chain, method)
    tail = source.text() + launcher(signature_of(chain), launches)
    return ChainKernel(name, functions, config, header(name, body_of(chain), text), tail, method, chain)


def _first_config(chain: Chain, method: Method) -> Config:
    """What is most promising on every target; the smallest config where none fits one of them by estimate."""
    fitting = [candidates(chain, method, target) for target in TARGETS.values()]
    common = [config for config in fitting[0] if all(config in others for others in fitting)]
    return common[0] if common else smallest(chain, method)


@functools.cache
def _executed(name: str, source: str, interpret: str) -> ModuleType:
    """The module of a source, once for each of the ways Triton runs kernels (compiled, interpreted).

    There is no file: Triton and tracebacks find the lines where Python keeps those of files that it has read.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    module = ModuleType(f"memcompile_kernels.{name}_{digest}_{interpret}")
    module.__file__ = f"<memcompile {name} {digest}>"
    linecache.cache[module.__file__] = len(source), None, source.splitlines(keepends=True), module.__file__
    sys.modules[module.__name__] = module
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


def _dict(values: Mapping[str, int]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"
