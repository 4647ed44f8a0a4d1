"""``memcompile doctor``: is everything here that compiling needs? Every failed check says what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from memcompile.errors import UnsafeCacheError, UnsupportedTorchError
from memcompile.machine import cache
from memcompile.machine.device import device_model, device_name, free_bytes
from memcompile.machine.support import BEYOND_TORCH, OLDEST_TORCH, check_torch
from memcompile.units import format_bytes

Status = Literal["ok", "warn", "fail"]
COMPILERS = ("g++", "clang++", "c++")
OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return asdict(self)


def examine(*, refresh: bool = False) -> list[Check]:
    """All checks in order, quick ones first. ``refresh`` measures the device again."""
    return [
        check_python(),
        check_torch_version(),
        check_entry_point(),
        *check_seams(),
        check_compiler(),
        check_headers(),
        *check_devices(refresh),
        check_cache(),
    ]


def render_checks(checks: Sequence[Check]) -> Table:
    """A table for the terminal."""
    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(f"[{style[check.status]}]{check.status}[/]", check.name, check.message)
    return table


def check_python() -> Check:
    """The interpreter."""
    message = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= OLDEST_PYTHON:
        return Check("python", "ok", message)
    return Check("python", "fail", f"{message}: Python 3.11 or newer is needed")


def check_torch_version() -> Check:
    """The version of torch, and what it was built for."""
    try:
        check_torch()
    except UnsupportedTorchError as error:
        return Check("torch", "fail", str(error))
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Check("torch", "ok", f"{torch.__version__} ({build}; supported: >= {OLDEST_TORCH}, < {BEYOND_TORCH})")


def check_entry_point() -> Check:
    """Whether ``backend="memcompile"`` works without an import."""
    from importlib.metadata import entry_points

    found = entry_points(group="torch_dynamo_backends", name="memcompile")
    if found:
        return Check("backend name", "ok", 'torch.compile(model, backend="memcompile") is registered')
    return Check(
        "backend name", "fail", "the entry point is not installed: pip install memcompile, or pip install -e . in a checkout"
    )


def check_seams() -> Iterator[Check]:
    """The private places of torch that the backend attaches to."""
    from memcompile.codegen.inductor.seams import check_seams as examine_seams

    for name, healthy, message in examine_seams():
        yield Check(f"seam {name}", "ok" if healthy else "fail", message)


def check_compiler() -> Check:
    """Inductor compiles CPU code with a C++ compiler that knows OpenMP: try one on three lines."""
    named = os.environ.get("CXX")
    path = next((found for name in ([named] if named else COMPILERS) if (found := shutil.which(name))), None)
    if path is None:
        missing = f"CXX={named} is not a program" if named else f"none of {', '.join(COMPILERS)} found"
        return Check("C++ compiler", "fail", f"{missing}: Inductor needs one on the CPU (Debian, Ubuntu: apt-get install g++)")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text('#include <omp.h>\n#include <vector>\nextern "C" int probe() { return omp_get_max_threads(); }\n')
        command = [path, "-std=c++17", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(Path(folder) / "probe.so")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if result.returncode == 0:
        return Check("C++ compiler", "ok", path)
    reason = next(iter(result.stderr.splitlines()), f"exit status {result.returncode}")
    return Check("C++ compiler", "fail", f"{path} does not compile C++17 with OpenMP: {reason}")


def check_headers() -> Check:
    """Inductor's CPU code includes Python.h, which distributions keep in a package of its own."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if header.exists():
        return Check("Python headers", "ok", str(header))
    return Check("Python headers", "fail", f"{header} is missing (Debian, Ubuntu: apt-get install python3-dev)")


def check_devices(refresh: bool) -> Iterator[Check]:
    """The CPU and every CUDA device: name, free memory, and what the cost model knows of it."""
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    for device in devices:
        model = device_model(device, refresh=refresh)
        yield Check(
            str(device),
            "ok",
            f"{device_name(device)}: {format_bytes(free_bytes(device))} free, "
            f"{model.bandwidth_bytes_per_s / 1e9:.0f} GB/s, {model.flops(torch.float32) / 1e9:.0f} GFLOP/s float32, "
            f"{model.flops(torch.bfloat16) / 1e9:.0f} GFLOP/s bfloat16",
        )
    if len(devices) == 1:
        yield Check("cuda", "ok", "no CUDA device: models on the CPU are planned for the CPU")


def check_cache() -> Check:
    """The folder of caches is this user's alone, and can be written."""
    folder = cache.directory()
    try:
        cache.check_owner(folder)
    except UnsafeCacheError as error:
        return Check("cache", "fail", str(error))
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if os.access(existing, os.W_OK):
        return Check("cache", "ok", str(folder))
    return Check(
        "cache", "warn", f"{folder} cannot be written: the device is measured in every process. Set MEMCOMPILE_CACHE_DIR"
    )
