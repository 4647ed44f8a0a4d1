"""A module and its batch, compiled and alive: its first call, its peak, its seconds, its results."""

from __future__ import annotations

import gc
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from benchmarks.core.rows import Row
from benchmarks.core.ways import Way
from memcompile.report.data import Report
from memcompile.runtime.measure import Measurement, entry_storages, measure_peak

R = TypeVar("R", bound=Row)
Arrays = dict[str, NDArray[Any]]


class Step(ABC, Generic[R]):
    """``module`` is the bare module, whose bytes count as entry with those of ``batch``; ``model`` is what is called."""

    def __init__(self, way: Way, module: nn.Module, batch: Mapping[str, Tensor]) -> None:
        self.way, self.module, self.batch = way, module, batch
        self.device = next(iter(batch.values())).device
        self.first_call_seconds = math.nan
        self.model = self.compiled()

    def compiled(self) -> Callable[..., Any]:
        """What is called in the module's place."""
        return self.way.compiled(self.module)

    @abstractmethod
    def step(self) -> Tensor:
        """What is measured and timed; returns its output or its loss."""

    def measured(self, row: R) -> R:
        """``row`` with what this way says of itself: compiled, its peak measured."""
        raise NotImplementedError

    def first_call(self, cold: bool = True) -> float:
        """Seconds of a step that compiles, from an empty cache when ``cold``. Raises whatever the backend raises."""
        with fresh_cache() if cold else nullcontext():
            start = time.perf_counter()
            self.step()
            self._synchronize()
            self.first_call_seconds = time.perf_counter() - start
        return self.first_call_seconds

    def peak(self) -> Measurement:
        """Of a step that compiles nothing."""
        return measure_peak(self.step, model=self.module, inputs=self.batch)

    def entry_bytes(self) -> int:
        """Parameters, buffers, batch, and gradients where there are any."""
        return sum(entry_storages(self.module, self.batch, self.device).values())

    def results(self) -> Arrays:
        """The output in fp32, or loss and gradients."""
        return {"output": self.step().float().numpy(force=True)}

    def warm_up(self) -> None:
        """One step that is not timed, nothing left to collect."""
        gc.collect()
        self.step()

    def timed_step(self) -> float:
        """Seconds of one step, the device waited for."""
        self._synchronize()
        start = time.perf_counter()
        self.step()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def max_error(reference: Arrays, candidate: Arrays) -> float:
    """The largest |a - b| of a tensor over its largest |a|: the worst of output (or loss) and gradients."""
    if reference.keys() != candidate.keys():
        raise ValueError(f"gradients of different parameters: {sorted(reference.keys() ^ candidate.keys())}")
    errors = []
    for name, array in reference.items():
        gap, largest = np.abs(array - candidate[name]).max(), np.abs(array).max()
        errors.append(float(gap / largest) if gap else 0.0)
    return float(np.max(errors))  # a NaN stays one


def refusals(report: Report) -> str:
    """What memcompile refused, each reason once."""
    refused = dict.fromkeys(row.why for row in report.decisions if row.kind == "refused")
    return "; ".join(f"refused: {why}" for why in refused)
