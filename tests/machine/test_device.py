"""The device's numbers: plausible, cached, measured again when the cache is of no use."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from memcompile.errors import UnsupportedDeviceError
from memcompile.machine import cache
from memcompile.machine import device as device_module
from memcompile.machine.codec import encode
from memcompile.machine.device import DeviceModel, cache_key, device_model, free_bytes
from memcompile.machine.host_memory import host_free_bytes

CPU = torch.device("cpu")
SAMPLE = DeviceModel("sample", 1e10, {"float32": 1e11, "bfloat16": 2e11}, 1e10, 1e-6, 1e-10)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Measurements replaced by a sample; the devices they were asked for."""
    asked: list[torch.device] = []

    def measure(device: torch.device) -> DeviceModel:
        asked.append(device)
        return SAMPLE

    monkeypatch.setattr(device_module, "measure", measure)
    return asked


def test_measured_numbers_are_plausible_and_leave_no_trace() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        model = device_module.measure(CPU)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e8 < model.bandwidth_bytes_per_s < 1e13
    assert 1e8 < model.flops(torch.float32) < 1e15
    assert 1e7 < model.elements_per_second < 1e14
    assert 1e-8 < model.launch_overhead_s < 1e-3
    assert 0 <= model.fresh_memory_s_per_byte < 1e-7
    assert model.flops(torch.int8) == model.flops(torch.float32)
    assert 0.02 < model.attention_speed < 20
    assert 0.02 < model.convolution_speed < 50


def test_one_thread_alone_says_what_several_reach_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for one which another process holds up: ten times slower, however often they are asked."""

    def seconds(*_args: object, **_kwargs: object) -> float:
        return 1.0 if torch.get_num_threads() == 1 else 10.0

    threads = torch.get_num_threads()
    monkeypatch.setattr(device_module, "_best_seconds", seconds)
    monkeypatch.setattr(device_module, "_cpu_matmul_size", lambda *_: 128)
    try:
        torch.set_num_threads(4)
        assert device_module._matmul_flops(torch.float32, CPU) == 4 * 2 * 128**3 / 2
    finally:
        torch.set_num_threads(threads)


def test_measured_once(own_cache: Path, measured: list[torch.device]) -> None:
    assert device_model(CPU) == device_model(CPU) == SAMPLE
    assert measured == [CPU]
    assert [path.suffix for path in own_cache.iterdir()] == [".json"]
    device_model(CPU, refresh=True)
    assert len(measured) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"name": "sample"},
        {**encode(SAMPLE), "bandwidth_bytes_per_s": -1.0},
        {**encode(SAMPLE), "flops_per_s": {}},
        {**encode(SAMPLE), "launch_overhead_s": "fast"},
    ],
)
def test_numbers_that_make_no_sense_are_measured_again(
    other: dict[str, object], own_cache: Path, measured: list[torch.device], caplog: pytest.LogCaptureFixture
) -> None:
    cache.write(cache.path_of("device", cache_key(CPU)), json.dumps({"value": other}).encode())
    with caplog.at_level(logging.WARNING, "memcompile"):
        assert device_model(CPU) == SAMPLE
    assert measured == [CPU]
    assert "is of no use" in caplog.text
    cache.forget()
    assert device_model(CPU) == SAMPLE
    assert measured == [CPU]


def test_threads_are_part_of_the_key() -> None:
    threads = torch.get_num_threads()
    before = cache_key(CPU)
    try:
        torch.set_num_threads(threads + 1)
        assert cache_key(CPU) != before
    finally:
        torch.set_num_threads(threads)


def test_other_devices_are_refused() -> None:
    for name in ("meta", "mps"):
        with pytest.raises(UnsupportedDeviceError, match=name):
            device_model(torch.device(name))
        with pytest.raises(UnsupportedDeviceError, match=name):
            free_bytes(torch.device(name))


def test_free_bytes_of_the_host() -> None:
    assert 2**20 < free_bytes(CPU) < 2**50


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda(own_cache: Path) -> None:
    device = torch.device("cuda", 0)
    assert device_model(device).flops(torch.bfloat16) > 1e11
    assert device_model(device) == device_model(device)
    assert 0 < free_bytes(device) <= torch.cuda.mem_get_info(device)[1]


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 5_120_000),
        (
            {
                "proc/self/cgroup": "0::/box/inner\n",
                "sys/fs/cgroup/box/memory.max": "2000\n",
                "sys/fs/cgroup/box/memory.current": "1500\n",
                "sys/fs/cgroup/box/memory.stat": "anon 1000\ninactive_file 200\n",
                "sys/fs/cgroup/box/inner/memory.max": "max\n",
                "sys/fs/cgroup/box/inner/memory.current": "1500\n",
            },
            700,
        ),
        (
            {
                "proc/self/cgroup": "5:devices:/\n4:memory:/box\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "3000\n",
                "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "1000\n",
            },
            2000,
        ),
    ],
)
def test_the_containers_limit_counts(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert host_free_bytes(_write(tmp_path, {**MEMINFO, **files})) == free
