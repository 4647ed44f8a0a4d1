"""What PyTorch's wheel knows of its operators, modules and optimizers, as samples."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

SEED = 11
FIRST = (torch.float32, torch.complex64, torch.int64, torch.bool)
"""The dtype of an entry is the first of these that it supports."""
UNINITIALISED = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
"""Entries whose values mean nothing: shapes, strides and dtypes alone are compared."""
SOURCES = ("op", "module", "optim", "hop", "custom", "autograd")


@dataclass(frozen=True)
class Sample:
    """One call. ``variant``: "function", "inplace", for modules "train" or "eval". ``finish`` makes outputs differentiable."""

    entry: str
    source: str
    index: int
    variant: str
    dtype: str
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[Any], Any] | None = None

    @property
    def valued(self) -> bool:
        """Whether its values mean something."""
        return self.entry not in UNINITIALISED


@dataclass(frozen=True)
class Entry:
    """One entry of one of PyTorch's tables; ``samples()`` makes the same samples every time."""

    name: str
    source: str
    make: Callable[[], Iterator[Sample]]

    def samples(self) -> list[Sample]:
        torch.manual_seed(SEED)
        random.seed(SEED)
        np.random.seed(SEED)
        return list(self.make())


def entries(sources: tuple[str, ...] = SOURCES) -> list[Entry]:
    """All entries of these sources, in the order of PyTorch's tables."""
    return [entry for source in sources for entry in _TABLES[source]()]


def _operators(source: str, table: Callable[[], list[Any]]) -> list[Entry]:
    return [Entry(_name(info), source, functools.partial(_samples_of, info, source)) for info in table()]


def _name(info: Any) -> str:
    return f"{info.name}.{info.variant_test_name}" if info.variant_test_name else str(info.name)


def _samples_of(info: Any, source: str) -> Iterator[Sample]:
    dtypes = info.supported_dtypes("cpu")
    dtype = next((d for d in FIRST if d in dtypes), min(dtypes, key=str, default=None))
    if dtype is None:
        return
    differentiable = info.supports_autograd and (dtype.is_floating_point or dtype.is_complex)
    for index, given in enumerate(info.sample_inputs("cpu", dtype, requires_grad=differentiable)):
        finish = None if given.output_process_fn_grad.__qualname__.startswith("SampleInput.") else given.output_process_fn_grad
        sample = Sample(
            _name(info),
            source,
            index,
            "function",
            str(dtype).removeprefix("torch."),
            info.op,
            (given.input, *given.args),
            dict(given.kwargs),
            finish,
        )
        yield sample
        if info.inplace_variant is not None and not given.broadcasts_input and isinstance(given.input, torch.Tensor):
            yield replace(sample, variant="inplace", call=info.inplace_variant, finish=None)


def _op_db() -> list[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def _hop_db() -> list[Any]:
    from torch.testing._internal.hop_db import hop_db

    return list(hop_db)


def _custom_op_db() -> list[Any]:
    from torch.testing._internal.custom_op_db import custom_op_db

    return list(custom_op_db)


def _autograd_function_db() -> list[Any]:
    from torch.testing._internal.autograd_function_db import autograd_function_db

    return list(autograd_function_db)


def _modules() -> list[Entry]:
    from torch.testing._internal.common_modules import module_db

    return [Entry(info.name.replace("_", "."), "module", functools.partial(_module_samples, info)) for info in module_db]


def _module_samples(info: Any) -> Iterator[Sample]:
    dtype = next((d for d in FIRST if d in info.dtypes), info.dtypes[0])
    for training in (True, False) if info.train_and_eval_differ else (True,):
        found = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
        for index, given in enumerate(found):
            if given.forward_input is None:
                continue
            build, forward = given.constructor_input, given.forward_input
            module = info.module_cls(*build.args, **build.kwargs).to(dtype).train(training)
            variant = "train" if training else "eval"
            kind = str(dtype).removeprefix("torch.")
            name = info.name.replace("_", ".")
            yield Sample(name, "module", index, variant, kind, module, forward.args, dict(forward.kwargs))


def _optimizers() -> list[Entry]:
    from torch.testing._internal.common_optimizers import optim_db

    table: list[Any] = optim_db
    return [Entry(info.optim_cls.__name__, "optim", functools.partial(_optimizer_samples, info)) for info in table]


def _optimizer_samples(info: Any) -> Iterator[Sample]:
    """``args``: the optimizer's settings; dense gradients only."""
    if info.only_supports_sparse_grads:
        return
    for index, given in enumerate(info.optim_inputs_func(device="cpu")):
        yield Sample(info.optim_cls.__name__, "optim", index, "step", "float32", info.optim_cls, (), dict(given.kwargs))


_TABLES: dict[str, Callable[[], list[Entry]]] = {
    "op": lambda: _operators("op", _op_db),
    "module": _modules,
    "optim": _optimizers,
    "hop": lambda: _operators("hop", _hop_db),
    "custom": lambda: _operators("custom", _custom_op_db),
    "autograd": lambda: _operators("autograd", _autograd_function_db),
}
