"""Compiles generated C++ with the compiler that Inductor uses, and loads it. Private API: ``cpp_builder.get_cpp_compiler``."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import torch

from memcompile.errors import KernelBuildError
from memcompile.machine import cache
from memcompile.machine.device import device_name

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")


PROBE = '#include <omp.h>\nextern "C" int threads() { return omp_get_max_threads(); }\n'
"""What any compiler must manage that kernels are to be compiled by."""


def load(source: str) -> ctypes.CDLL:
    """The library of a source, compiled unless a machine like this has done so (caches of PyTorch that are off are off here).

    A library that was damaged, or that cannot be loaded here, is compiled again. Raises `KernelBuildError`, and
    `UnsafeCacheError` rather than load what another user may have written.
    """
    path = library_path(source)
    if not torch.compiler.config.force_disable_caches and cache.read(path) is not None:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    with cache.as_file(path, _compile(source)) as library:
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            raise KernelBuildError(_compiler(), str(error)) from None


def library_path(source: str) -> Path:
    """Where the library of a source lies once it is compiled. Raises `KernelBuildError`."""
    compiler = _compiler()
    key = {"source": source, "compiler": compiler, "version": _version(compiler), "processor": _processor(), "flags": FLAGS}
    return cache.path_of("cpp", key, ".so")


def build_refusal(*, run: bool = True) -> str:
    """Why no C++ kernel can be compiled here; empty when one can. ``run``: False in a dry run: it looks for a compiler only."""
    try:
        _version(_compiler())
        if run:
            load(PROBE)
    except KernelBuildError as error:
        return str(error)
    return ""


def _compile(source: str) -> bytes:
    compiler = _compiler()
    with tempfile.TemporaryDirectory() as folder:
        text, library = Path(folder) / "rows.cpp", Path(folder) / "rows.so"
        text.write_text(source, encoding="utf-8")
        done = subprocess.run([compiler, *FLAGS, str(text), "-o", str(library)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelBuildError(compiler, done.stderr[:2000])
        return library.read_bytes()


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
