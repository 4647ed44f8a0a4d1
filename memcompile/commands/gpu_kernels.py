"""``memcompile.kernels``: the Triton kernels of a model's low-rank chains and inverted residuals, compiled for a GPU that need
not be there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import fx

from memcompile.codegen.fused import kernel_of
from memcompile.codegen.inverted_residual.program import inverted_residual, inverted_residuals
from memcompile.codegen.triton.compile import CompiledKernel, compile_for, parse_target
from memcompile.codegen.triton.kernel import GeneratedKernel
from memcompile.compiling.dryrun import captured
from memcompile.errors import KernelRefusedError
from memcompile.passes.rows.canonical import canonicalise
from memcompile.passes.rows.hidden import chain_around
from memcompile.passes.rows.low_rank import factored
from memcompile.step.fxutil import source_of
from memcompile.streaming.rules import NotRowLocalError


@dataclass(frozen=True, slots=True)
class KernelSet:
    """``kernels``: one for each different chain (more where the columns are split) and inverted residual. ``chains`` and
    ``blocks``: how many chains and inverted residuals share them. ``refused``: (node, source line, reason)."""

    target: str
    kernels: tuple[CompiledKernel, ...]
    chains: int
    blocks: int
    refused: tuple[tuple[str, str, str], ...]

    def save(self, folder: Path | str) -> tuple[Path, ...]:
        """Write the source, ttir and ptx of each kernel into a folder; returns the paths."""
        return tuple(path for kernel in self.kernels for path in kernel.save(folder))

    def to_json(self) -> str:
        """The numbers, without code."""
        names = ("name", "registers", "shared_bytes", "spills")
        rows = [{name: getattr(kernel, name) for name in names} | kernel.config.as_dict() for kernel in self.kernels]
        counts = {"target": self.target, "chains": self.chains, "blocks": self.blocks}
        return json.dumps({**counts, "kernels": rows, "refused": self.refused}, indent=1)


def kernels(model: Callable[..., Any], /, *args: Any, target: str, **kwargs: Any) -> KernelSet:
    """See `memcompile.kernels`."""
    parse_target(target)
    shelf = _Shelf(target)
    chains = blocks = 0
    for graphs in captured(model, kwargs, args=args, training=False):
        canonicalise(graphs.forward)
        taken: set[fx.Node] = set()
        for seed, factor in factored(graphs.forward.graph).items():
            if seed in taken:
                continue
            with shelf.refusing(seed):
                region = chain_around(graphs.forward.graph, seed, factor)
                if region is not None:
                    taken.update(region.nodes)
                    shelf.add("low_rank", partial(kernel_of, region))
                    chains += 1
        residuals = inverted_residuals(graphs.forward.graph)
        shelf.refused += [(error.node, error.source, str(error)) for error in residuals.refused]
        for block in residuals.blocks:
            with shelf.refusing(block.depthwise.node):
                shelf.add("inverted_residual", partial(inverted_residual, block))
                blocks += 1
    return KernelSet(target, tuple(chain.from_iterable(shelf.found.values())), chains, blocks, tuple(shelf.refused))


@dataclass(slots=True)
class _Shelf:
    """Compiled kernels by what they compute, and what was refused."""

    target: str
    found: dict[str, tuple[CompiledKernel, ...]] = field(default_factory=dict)
    refused: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, kind: str, make: Callable[[str], GeneratedKernel]) -> None:
        """Compile the kernel that ``make(name)`` gives, unless there is an equal one."""
        key = make(kind).key
        if key not in self.found:
            self.found[key] = compile_for(make(f"{kind}_{len(self.found)}"), self.target)

    @contextmanager
    def refusing(self, node: fx.Node) -> Iterator[None]:
        """What is refused within is noted for ``node``."""
        try:
            yield
        except (NotRowLocalError, KernelRefusedError) as error:
            self.refused.append((node.name, source_of(node), str(error)))


def run(arguments: argparse.Namespace, console: Console) -> int:
    """``memcompile kernels``."""
    from memcompile.commands.target import load_target

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
    parts = f"{found.chains} low-rank chains, {found.blocks} inverted residuals"
    title = f"{parts}, {len(found.kernels)} kernels for {found.target}"
    table = Table("kernel", "registers", "shared memory", "spills", "tile sizes", title=title, title_justify="left", box=None)
    for kernel in found.kernels:
        sizes = ", ".join(f"{name} {value}" for name, value in kernel.config.as_dict().items())
        table.add_row(kernel.name, str(kernel.registers), f"{kernel.shared_bytes / 1024:.0f} KiB", str(kernel.spills), sizes)
    for node, source, why in found.refused:
        table.add_row(f"refused {node}", "", "", "", f"{source} {why}")
    return table
