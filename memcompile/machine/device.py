"""What this device can do: measured once in about a second, then read from a cache file.

The numbers feed the cost model (a roofline). They are of the size of the truth, not of its third digit: a plan depends on how
the cost of arithmetic compares with the cost of moving bytes, and that is what they say.
"""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from memcompile.errors import InvalidOptionError, UnsupportedDeviceError
from memcompile.logs import get_logger
from memcompile.machine import cache
from memcompile.machine.host_memory import host_free_bytes
from memcompile.machine.support import SUPPORTED_DEVICES

log = get_logger(__name__)

SCHEMA_VERSION = 3
MATMUL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PROBE_BYTES = 64 * 1024**2
"""Size of the copies and fills: beyond the caches of the processors that we know."""


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A device in numbers.

    ``bandwidth_bytes_per_s``: bytes read plus bytes written by a large copy. ``flops_per_s``: of a large matrix product, by
    dtype name ("float32"). ``elements_per_second``: plain elementwise work (one multiply-add an element) on data that is near,
    so that arithmetic is the limit. ``launch_overhead_s``: one op on next to no data. ``fresh_memory_s_per_byte``: what the
    first touch of memory costs above a later one (page faults; 0 on CUDA, whose allocator keeps what it has).
    ``attention_speed`` and ``convolution_speed``: FLOP/s of those library kernels as a share of a matrix product's.
    """

    name: str
    bandwidth_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    elements_per_second: float
    launch_overhead_s: float
    fresh_memory_s_per_byte: float
    attention_speed: float = 1.0
    convolution_speed: float = 1.0

    def flops(self, dtype: torch.dtype) -> float:
        """Arithmetic rate in FLOP/s for ``dtype``; for dtypes that were not measured, that of float32."""
        return self.flops_per_s.get(_dtype_name(dtype), self.flops_per_s["float32"])


def device_model(device: torch.device, *, refresh: bool = False) -> DeviceModel:
    """The numbers of ``device``, from the cache file unless ``refresh``. Raises `UnsupportedDeviceError`.

    Measuring leaves the random state alone and works under fake tensors, autocast and autograd modes.
    """
    if device.type not in SUPPORTED_DEVICES or (device.type == "cuda" and not torch.cuda.is_available()):
        raise UnsupportedDeviceError(str(device), SUPPORTED_DEVICES)
    return cache.get("device", cache_key(device), DeviceModel, lambda: _measured(device), refresh=refresh, valid=_plausible)


def _measured(device: torch.device) -> DeviceModel:
    start = time.perf_counter()
    model = measure(device)
    log.info("measured %s in %.2f s: %s", device, time.perf_counter() - start, model)
    return model


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``; on CUDA with what torch's allocator holds but does not use."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        raise UnsupportedDeviceError(str(device), SUPPORTED_DEVICES)
    available = host_free_bytes()
    if available is None:
        raise InvalidOptionError(
            "memory_budget", "auto", "a size such as '6GiB'", hint="this system does not tell how much memory is free"
        )
    return available


def device_name(device: torch.device) -> str:
    """The name of the processor: "NVIDIA H200", "AMD EPYC 7B13"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()


@functools.cache
def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "cpu"


@functools.cache
def prefers_onednn() -> bool:
    """Whether oneDNN multiplies matrices in single precision faster than MKL: it does on AMD's processors, where MKL takes a
    slower path (twice on an EPYC with AVX-512; `benchmarks/README.md`)."""
    return "AMD" in _processor_name() and bool(torch._C._has_mkldnn)


def cache_key(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on: they are measured again when any of it changes."""
    return {
        "schema": SCHEMA_VERSION,
        "device": device.type,
        "name": device_name(device),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }


def _plausible(model: DeviceModel) -> bool:
    speeds = (model.attention_speed, model.convolution_speed)
    rates = (model.bandwidth_bytes_per_s, model.elements_per_second, *speeds, *model.flops_per_s.values())
    costs = (model.launch_overhead_s, model.fresh_memory_s_per_byte)
    return "float32" in model.flops_per_s and all(rate > 0 for rate in rates) and all(cost >= 0 for cost in costs)


# --- measurement -----------------------------------------------------------------------------------------------------


def measure(device: torch.device) -> DeviceModel:
    """Measure ``device`` now, in about a second on a CPU with two cores."""
    with plain_mode(device):
        probe = torch.ones(PROBE_BYTES, dtype=torch.uint8, device=device)
        target = torch.zeros_like(probe)
        copy_s = _best_seconds(lambda: target.copy_(probe), device)
        flops_per_s = {_dtype_name(dtype): _matmul_flops(dtype, device) for dtype in MATMUL_DTYPES}
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        return DeviceModel(
            name=device_name(device),
            bandwidth_bytes_per_s=2 * PROBE_BYTES / copy_s,
            flops_per_s=flops_per_s,
            elements_per_second=_cpu_element_rate() if device.type == "cpu" else flops_per_s["float32"] / 2,
            launch_overhead_s=_launch_overhead(device),
            fresh_memory_s_per_byte=_fresh_memory_cost(target) if device.type == "cpu" else 0.0,
            attention_speed=_attention_flops(dtype, device) / flops_per_s[_dtype_name(dtype)],
            convolution_speed=_convolution_flops(dtype, device) / flops_per_s[_dtype_name(dtype)],
        )


@contextmanager
def plain_mode(device: torch.device) -> Iterator[None]:
    """Real tensors, no autograd, no autocast: whatever the caller is in the middle of."""
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


@contextmanager
def _one_thread() -> Iterator[int]:
    """A CPU measurement that waits for no other thread; yields the number of threads that are used otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _best_seconds(run: Callable[[], object], device: torch.device, repeats: int = 5, limit_s: float = 0.25) -> float:
    """The shortest of up to ``repeats`` runs after one to warm up; fewer when they take longer than ``limit_s`` together."""
    _timed(run, device)
    times = [_timed(run, device)]
    while len(times) < repeats and sum(times) < limit_s:
        times.append(_timed(run, device))
    return max(min(times), 1e-9)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matmul_flops(dtype: torch.dtype, device: torch.device, limit_s: float = 0.3) -> float:
    """FLOP/s of a square matrix product: the best of the runs within ``limit_s``, because other processes disturb some.

    Threads of a CPU that wait for one which another process holds up are many times slower, all the time: half of what one
    thread does alone, times the threads, is reached at least.
    """
    size = 4096 if device.type == "cuda" else _cpu_matmul_size(dtype, limit_s)
    a = torch.ones(size, size, dtype=dtype, device=device)
    rate = 2 * size**3 / _best_seconds(lambda: a @ a, device, repeats=10, limit_s=limit_s)
    if device.type == "cuda":
        return rate
    with _one_thread() as threads:
        alone = 2 * size**3 / _best_seconds(lambda: a @ a, device, limit_s=limit_s / 2)
    return max(rate, threads * alone / 2)


def _attention_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the forward of scaled_dot_product_attention over 512 positions, heads of 64."""
    heads = 4 if device.type == "cpu" else 256
    q = torch.ones(2, heads, 512, 64, dtype=dtype, device=device)
    run = torch.nn.functional.scaled_dot_product_attention
    return 4 * q.numel() * 512 / _best_seconds(lambda: run(q, q, q), device)


def _convolution_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a 3x3 convolution of 64 channels, in the layout that Inductor chooses."""
    images = 4 if device.type == "cpu" else 64
    x = torch.ones(images, 64, 56, 56, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    seconds = _best_seconds(lambda: torch.nn.functional.conv2d(x, weight, padding=1), device)
    return 2 * x.numel() * weight[0].numel() / seconds


def _cpu_matmul_size(dtype: torch.dtype, limit_s: float) -> int:
    """The largest size up to 1024 that one thread is done with in ``limit_s``: dtypes without fast kernels stay small.

    Asked of one thread: several wait for each other, on a busy machine for longer than a small product takes.
    """
    a = torch.ones(128, 128, dtype=dtype)
    with _one_thread():
        seconds = _best_seconds(lambda: a @ a, a.device)
    return next(size for size in (1024, 512, 256, 128) if seconds * (size / 128) ** 3 <= limit_s or size == 128)


def _cpu_element_rate(elements: int = 1 << 18, exp_work: float = 8.0) -> float:
    """Multiply-adds per second of vectorised elementwise code: the rate of exp, which counts for about ``exp_work`` of them.

    An add would measure the bandwidth of a cache instead. Measured on one thread, times the threads: elementwise code scales.
    """
    source = torch.ones(elements)
    target = torch.empty_like(source)
    with _one_thread() as threads:
        seconds = _best_seconds(lambda: torch.exp(source, out=target), source.device, repeats=50, limit_s=0.1)
    return threads * exp_work * elements / seconds


def _launch_overhead(device: torch.device, calls: int = 500) -> float:
    one = torch.ones(1, device=device)

    def run() -> None:
        for _ in range(calls):
            one.neg_()

    return _best_seconds(run, device) / calls


def _fresh_memory_cost(warm: torch.Tensor) -> float:
    """Seconds per byte of filling memory for the first time, above filling ``warm``, memory that was touched before."""
    warm_s = _best_seconds(lambda: warm.fill_(1), warm.device)
    fresh_s = _best_seconds(lambda: torch.empty_like(warm).fill_(1), warm.device)
    return max(0.0, fresh_s - warm_s) / PROBE_BYTES


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
