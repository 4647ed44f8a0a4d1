"""A compiled program run and then measured: the peak that its budget is a promise about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import memcompile
from memcompile.runtime.measure import measure_peak
from tests.fuzz.planned import forget
from tests.fuzz.programs import Program
from tests.fuzz.run import Seen, mode_of, run

STEPS = 3
"""Until one of several graphs is planned as a whole: it is seen, watched, and then compiled."""


@dataclass(frozen=True)
class Measured:
    """Bytes. ``budget_bytes``: of the step, None without one."""

    peak_bytes: int
    planned_bytes: int
    budget_bytes: int | None
    graphs: int


@dataclass
class Names:
    """Which storages the graphs read, of those that are alive at entry."""

    addresses: set[int] = field(default_factory=set)

    def read(self, inputs: Sequence[Any]) -> None:
        """A graph with these inputs is compiled."""
        self.addresses |= set(_sizes(inputs))


def measure(program: Program, names: Names, backend: Callable[..., Any]) -> tuple[Seen, Measured | None]:
    """Run the program; then measure a step of its first call, compiled anew. None for what has no step of its own:
    optimizers."""
    seen = run(program, lambda function: torch.compile(function, backend=backend))
    way = program.way
    if way.optimizer:
        return seen, None
    forget()
    loaded = program.load()
    model = loaded.model(way)
    function = torch.compile(model, backend=backend)
    args = loaded.inputs(way.rows[0], 0)
    names.addresses.clear()

    def step() -> object:
        for tensor in (*args, *model.buffers()):
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                tensor.detach_()  # the last step wrote it
        with mode_of(program):
            outputs = function(*args)
        if way.mode == "train":
            differentiable = _results(outputs, args)
            torch.autograd.backward(differentiable, [torch.ones_like(out) if out.dim() else None for out in differentiable])
            model.zero_grad(set_to_none=True)
            for arg in args:
                if isinstance(arg, torch.Tensor):
                    arg.grad = None
        return outputs

    for _ in range(STEPS):
        step()
    peak = measure_peak(step, model=model, inputs=args)
    alive = _sizes([*model.parameters(), *model.buffers(), *args])
    unread = sum(size for address, size in alive.items() if address not in names.addresses)
    report = memcompile.report(function)
    return seen, Measured(peak.peak_bytes - unread, report.planned_peak_bytes, report.budget_bytes, len(report.graphs))


def _results(outputs: object, args: Sequence[Any]) -> list[torch.Tensor]:
    """What gets a gradient: one result of each storage, inputs that were written among them. Gradients that eager adds up are no
    graph's."""
    written = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.grad_fn is not None]
    found, known = list[torch.Tensor](), set(_sizes(args)) - set(_sizes(written))
    for out in (*written, *(outputs if isinstance(outputs, tuple) else (outputs,))):
        if isinstance(out, torch.Tensor) and out.requires_grad and not known & set(_sizes([out])):
            known |= set(_sizes([out]))
            found.append(out)
    return found


def _sizes(values: Iterable[Any]) -> dict[int, int]:
    """Distinct storages: address -> bytes."""
    found = {}
    for value in values:
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found
