"""``memcompile.kernels``: the Triton kernels of a model's low-rank chains, compiled for a GPU that need not be there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import fx

from memcompile.codegen.fused import kernel_of
from memcompile.codegen.triton.compile import CompiledKernel, compile_for, parse_target
from memcompile.dryrun import captured
from memcompile.errors import KernelRefusedError
from memcompile.fxutil import source_of
from memcompile.passes.canonical import canonicalise
from memcompile.passes.low_rank import factored
from memcompile.streaming.hidden import chain_around
from memcompile.streaming.rules import NotRowLocalError


@dataclass(frozen=True, slots=True)
class KernelSet:
    """``kernels``: one for each different chain, or two where the columns are split. ``chains``: how many chains share them.
    ``refused``: (node, source line, reason)."""

    target: str
    kernels: tuple[CompiledKernel, ...]
    chains: int
    refused: tuple[tuple[str, str, str], ...]

    def save(self, folder: Path | str) -> tuple[Path, ...]:
        """Write the source, ttir and ptx of each kernel into a folder; returns the paths."""
        return tuple(path for kernel in self.kernels for path in kernel.save(folder))

    def to_json(self) -> str:
        """The numbers, without code."""
        names = ("name", "registers", "shared_bytes", "spills")
        rows = [{name: getattr(kernel, name) for name in names} | kernel.config.as_dict() for kernel in self.kernels]
        return json.dumps({"target": self.target, "chains": self.chains, "kernels": rows, "refused": self.refused}, indent=1)


def kernels(model: Callable[..., Any], /, *args: Any, target: str, **kwargs: Any) -> KernelSet:
    """See `memcompile.kernels`."""
    parse_target(target)
    found: dict[str, tuple[CompiledKernel, ...]] = {}
    refused: list[tuple[str, str, str]] = []
    chains = 0
    for graphs in captured(model, kwargs, args=args, training=False):
        canonicalise(graphs.forward)
        taken: set[fx.Node] = set()
        for seed, factor in factored(graphs.forward.graph).items():
            if seed in taken:
                continue
            try:
                region = chain_around(graphs.forward.graph, seed, factor)
                if region is None:
                    continue
                taken.update(region.nodes)
                key = kernel_of(region, "low_rank").key
                if key not in found:
                    found[key] = compile_for(kernel_of(region, f"low_rank_{len(found)}"), target)
                chains += 1
            except (NotRowLocalError, KernelRefusedError) as error:
                refused.append((seed.name, source_of(seed), str(error)))
    return KernelSet(target, tuple(kernel for group in found.values() for kernel in group), chains, tuple(refused))


def run(arguments: argparse.Namespace, console: Console) -> int:
    """``memcompile kernels``."""
    from memcompile.target import load_target

    parse_target(arguments.target)
    model = load_target(arguments.model)
    found = kernels(model.model, *model.args, target=arguments.target, **model.kwargs)
    if arguments.save:
        found.save(arguments.save)
    if arguments.json:
        print(found.to_json())
    else:
        console.print(render(found))
    return 0


def render(found: KernelSet) -> Table:
    """A table for the terminal."""
    title = f"{found.chains} low-rank chains, {len(found.kernels)} kernels for {found.target}"
    table = Table("kernel", "registers", "shared memory", "spills", "tile sizes", title=title, title_justify="left", box=None)
    for kernel in found.kernels:
        sizes = ", ".join(f"{name} {value}" for name, value in kernel.config.as_dict().items())
        table.add_row(kernel.name, str(kernel.registers), f"{kernel.shared_bytes / 1024:.0f} KiB", str(kernel.spills), sizes)
    for node, source, why in found.refused:
        table.add_row(f"refused {node}", "", "", "", f"{source} {why}")
    return table
