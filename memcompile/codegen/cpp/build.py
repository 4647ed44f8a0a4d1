"""Compiles generated C++ with the compiler that Inductor uses, and loads it. Private API: ``cpp_builder.get_cpp_compiler``."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import torch

from memcompile.device import cache_directory, device_name
from memcompile.errors import KernelBuildError

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")


PROBE = '#include <omp.h>\nextern "C" int threads() { return omp_get_max_threads(); }\n'
"""What any compiler must manage that kernels are to be compiled by."""


def load(source: str) -> ctypes.CDLL:
    """The library of a source, compiled unless a machine like this has done so (caches of PyTorch that are off are off here).
    Raises `KernelBuildError`."""
    compiler = _compiler()
    key = hashlib.sha256("\n".join((source, compiler, _version(compiler), _processor(), *FLAGS)).encode()).hexdigest()[:24]
    path = cache_directory() / "cpp" / f"{key}.so"
    if torch.compiler.config.force_disable_caches or not path.exists():
        _compile(compiler, source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelBuildError(compiler, str(error)) from None


def build_refusal(*, run: bool = True) -> str:
    """Why no C++ kernel can be compiled here; empty when one can. ``run``: False in a dry run: it looks for a compiler only."""
    try:
        _version(_compiler())
        if run:
            load(PROBE)
    except KernelBuildError as error:
        return str(error)
    return ""


def _compile(compiler: str, source: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        text, library = Path(folder) / "rows.cpp", Path(folder) / "rows.so"
        text.write_text(source, encoding="utf-8")
        done = subprocess.run([compiler, *FLAGS, str(text), "-o", str(library)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelBuildError(compiler, done.stderr[:2000])
        library.replace(path)  # processes that compile the same at the same time each put a whole file there


def _compiler() -> str:
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError as error:
        raise KernelBuildError("Inductor's C++ compiler", f"{error}; this PyTorch is not one of those supported") from None
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise KernelBuildError("Inductor's C++ compiler", str(error)) from None


@functools.cache
def _version(compiler: str) -> str:
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise KernelBuildError(compiler, str(error)) from None
    return done.stdout


@functools.cache
def _processor() -> str:
    """What -march=native depends on: caches may be shared by machines."""
    info = Path("/proc/cpuinfo")
    flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "") if info.exists() else ""
    return f"{device_name(torch.device('cpu'))} {os.uname().machine} {flags}"
