"""A module and its batch, compiled and alive: one step, its peak, its seconds, its results."""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from memcompile.report.data import Report
from memcompile.runtime.measure import entry_storages, measure_peak

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Measured:
    """``entry_bytes``: parameters, buffers and batch. ``first_call_seconds``: with compiling, from an empty cache."""

    entry_bytes: int
    peak_bytes: int
    first_call_seconds: float


class ModuleStep(ABC):
    """``module`` is the bare module, whose bytes count as entry with those of ``batch``."""

    def __init__(self, module: nn.Module, batch: Mapping[str, Tensor]) -> None:
        self.module, self.batch = module, batch
        self.device = next(iter(batch.values())).device

    @abstractmethod
    def call(self) -> Tensor:
        """The output, or the loss after the backward, which leaves the gradients in place."""

    def step(self) -> None:
        """What is measured and timed."""
        self.call()

    def measured(self) -> Measured:
        """The first call, and the peak of a later one."""
        entry_bytes = sum(entry_storages(self.module, self.batch, self.device).values())
        with fresh_cache():
            start = time.perf_counter()
            self.step()
            self._synchronize()
            seconds = time.perf_counter() - start
        return Measured(entry_bytes, measure_peak(self.step, model=self.module, inputs=self.batch).peak_bytes, seconds)

    def results(self) -> Arrays:
        """The output in fp32."""
        return {"output": self.call().float().numpy(force=True)}

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
