"""Finds the fastest config of a kernel on the device that its operands are on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from memcompile.codegen.triton.configs import TARGETS, Config, GpuTarget
from memcompile.codegen.triton.kernel import GeneratedKernel
from memcompile.errors import UnknownTargetError

MAX_TIMED = 16
WARM_UPS = 2
REPEATS = 7

Clock = Callable[[Callable[[], Any]], float]
"""Seconds that a call takes."""


def seconds_on_device(call: Callable[[], Any]) -> float:
    """The median time of a call on the current CUDA device, after it has been compiled."""
    for _ in range(WARM_UPS):
        call()
    seconds = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        seconds.append(float(start.elapsed_time(end)) / 1000)
    return statistics.median(seconds)


def target_of(device: torch.device) -> GpuTarget:
    """What is known of a CUDA device; its own limit of shared memory. Raises `UnknownTargetError` for an older one."""
    properties = torch.cuda.get_device_properties(device)
    known = [target for target in TARGETS.values() if target.capability <= 10 * properties.major + properties.minor]
    if not known:
        raise UnknownTargetError(f"cuda:{properties.major}{properties.minor}", tuple(TARGETS))
    shared = getattr(properties, "shared_memory_per_block_optin", known[-1].shared_bytes)
    return replace(known[-1], shared_bytes=shared, processors=properties.multi_processor_count)


@dataclass(slots=True)
class Tuner:
    """Times a kernel's configs, and remembers the fastest: by kernel, number of rows (to a power of two) and device.

    ``GeneratedKernel.load(tuner)`` asks it at every call.
    """

    clock: Clock = seconds_on_device
    target: Callable[[torch.device], GpuTarget] = target_of
    found: dict[tuple[str, int, torch.device], Config] = field(default_factory=dict)

    def __call__(self, kernel: GeneratedKernel, operands: Sequence[torch.Tensor]) -> Config:
        """The fastest of the most promising configs for these operands. Those that the device cannot run are left out."""
        count, device = kernel.count_of(operands), operands[0].device
        key = (kernel.key, count.bit_length(), device)
        if key not in self.found:
            self.found[key] = self._fastest(kernel, operands, kernel.candidates(self.target(device), count))
        return self.found[key]

    def _fastest(self, kernel: GeneratedKernel, operands: Sequence[torch.Tensor], configs: Sequence[Config]) -> Config:
        from triton.runtime.errors import OutOfResources

        launch = kernel.module().launch
        seconds: dict[Config, float] = {}
        for config in [*configs[:MAX_TIMED], kernel.config]:
            sizes = config.as_dict()
            try:
                seconds[config] = self.clock(lambda sizes=sizes: launch(*operands, config=sizes))  # type: ignore[misc]
            except OutOfResources:
                continue
        return min(seconds, key=seconds.__getitem__, default=kernel.config)
