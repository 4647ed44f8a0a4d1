"""Compiles generated kernels for a GPU that need not be there: source, TTIR, PTX, registers, shared memory, spills."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import fx

from memcompile.codegen.triton.configs import TARGETS, Config, GpuTarget, Method
from memcompile.codegen.triton.kernel import GeneratedKernel, generate
from memcompile.codegen.triton.layout import Function
from memcompile.errors import MissingTritonError, UnknownTargetError

MAX_TRIALS = 12
"""Configs that are compiled before a kernel is said not to fit."""
TRITON_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "bool": "i1", "uint8": "u8"}


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """One compiled function. ``registers``: a thread; ``shared_bytes``: a block; ``spill_bytes``: a thread, on the stack."""

    name: str
    source: str
    ttir: str
    ptx: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    config: Config
    target: str

    @property
    def spills(self) -> int:
        """Registers' worth of values that a thread keeps in memory."""
        return self.spill_bytes // 4

    def save(self, folder: Path | str) -> tuple[Path, ...]:
        """Write NAME.py, NAME.ttir, NAME.ptx; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"py": self.source, "ttir": self.ttir, "ptx": self.ptx}
        paths = tuple(folder / f"{self.name}.{ending}" for ending in texts)
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")
        return paths


def parse_target(target: str) -> GpuTarget:
    """ "cuda:90" -> what is known of that GPU. Raises `UnknownTargetError`."""
    if target not in TARGETS:
        raise UnknownTargetError(target, tuple(TARGETS))
    return TARGETS[target]


def compile_with(kernel: GeneratedKernel, config: Config, target: str) -> tuple[CompiledKernel, ...]:
    """Compile each function of a kernel with one config. Raises `MissingTritonError`, `UnknownTargetError`."""
    limits = parse_target(target)
    module = kernel.with_config(config).module()
    source = kernel.with_config(config).source
    return tuple(_compile(function, getattr(module, function.name), source, config, limits) for function in kernel.functions)


def compile_for(kernel: GeneratedKernel, target: str) -> tuple[CompiledKernel, ...]:
    """The kernel with the first of its configs that neither spills nor takes more shared memory than there is.

    One record for each of its functions: a "rows" kernel has one. Raises `KernelRefusedError` when no config fits.
    """
    limits = parse_target(target)
    found: list[tuple[CompiledKernel, ...]] = []
    for config in kernel.candidates(limits)[:MAX_TRIALS]:
        compiled = compile_with(kernel, config, target)
        if all(part.spill_bytes == 0 and part.shared_bytes <= limits.shared_bytes for part in compiled):
            return compiled
        found.append(compiled)
    raise kernel.too_large(target, f"{len(found)} tile sizes were compiled" if found else "no tile size is small enough")


def kernels(
    body: fx.GraphModule, rows: Sequence[bool], target: str, *, name: str = "kernel", method: Method = "rows"
) -> list[CompiledKernel]:
    """Generate the kernel of a body and compile it for a target."""
    return list(compile_for(generate(body, rows, name=name, method=method), target))


def _compile(function: Function, jitted: Any, source: str, config: Config, limits: GpuTarget) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {pointer.name: f"*{_triton_name(str(pointer.dtype))}" for pointer in function.pointers}
    signature |= {"n_rows": "i32", **dict.fromkeys(function.constants, "constexpr")}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(function.pointers))}
    sizes = dict(config.sizes)
    ast = ASTSource(jitted, signature, {name: sizes[name] for name in function.constants}, aligned)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(ast, target=GPUTarget("cuda", limits.capability, 32), options=options)
    registers, stack = _resources(compiled.asm["cubin"])
    return CompiledKernel(
        function.name,
        source,
        compiled.asm["ttir"],
        compiled.asm["ptx"],
        registers,
        compiled.metadata.shared,
        stack,
        config,
        limits.name,
    )


def _triton_name(dtype: str) -> str:
    name = dtype.removeprefix("torch.")
    return TRITON_NAMES.get(name, name.replace("int", "i"))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread, as cuobjdump reads them from a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_tool("cuobjdump")), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    assert registers is not None and stack is not None, text
    return int(registers[1]), int(stack[1])


def _tool(name: str) -> Path:
    """A program of the CUDA toolkit that ships with Triton."""
    spec = find_spec("triton.backends.nvidia")
    if spec is None or spec.origin is None:
        raise MissingTritonError
    return Path(spec.origin).parent / "bin" / name
