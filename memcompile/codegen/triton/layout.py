"""What a generated function takes: pointers, the number of rows, and the widths of its tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx

from memcompile.codegen.kernel.chain import Chain, Kind, Sweep
from memcompile.codegen.kernel.pointwise import dtype_of
from memcompile.codegen.kernel.source import Source
from memcompile.codegen.triton.tile import Axis

MIN_TILE = 32
WIDTHS: Mapping[Kind, str] = {"project": "BK", "hidden": "BH", "emit": "BN"}


@dataclass(frozen=True, slots=True)
class Pointer:
    """A tensor argument: the name of its pointer, and its dtype."""

    name: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Function:
    """A generated ``@triton.jit`` function: ``name(*pointers, n_rows, *constants)``."""

    name: str
    pointers: tuple[Pointer, ...]
    constants: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """All arguments, in order."""
        return (*(pointer.name for pointer in self.pointers), "n_rows", *self.constants)

    @contextmanager
    def open(self, source: Source) -> Iterator[None]:
        """Write the decorator and the head; what is written within is the body."""
        source.add("", "", '@triton.jit(do_not_specialize=["n_rows"])')
        items = [*(p.name for p in self.pointers), "n_rows", *(f"{name}: tl.constexpr" for name in self.constants)]
        source.call(f"def {self.name}(", items, "):")
        source.depth += 1
        yield
        source.depth -= 1


def width_of(sweep: Sweep) -> str:
    """The constant that says how wide a sweep's tiles are."""
    return WIDTHS[sweep.kind]


def divisor(columns: int) -> int:
    """The largest power of two that divides a number of columns."""
    return columns & -columns


def tile_divides(columns: int) -> bool:
    """Whether tiles are chosen to divide the columns: then they need no mask."""
    return divisor(columns) >= MIN_TILE


def input_pointers(chain: Chain, roots: Iterable[fx.Node], known: Iterable[fx.Node] = ()) -> tuple[Pointer, ...]:
    """The inputs that ``roots`` are computed from, where the tensors ``known`` are given."""
    used = inputs_of(roots, known)
    return tuple(Pointer(f"{n.name}_ptr", dtype_of(n)) for n in chain.placeholders if n in used)


def inputs_of(roots: Iterable[fx.Node], known: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """All that ``roots`` are computed from, and they themselves, where ``known`` are given."""
    found: set[fx.Node] = set()
    given, waiting = set(known), list(roots)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in given:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def output_pointers(chain: Chain) -> dict[fx.Node, Pointer]:
    """Each result and where it is written."""
    results = list(dict.fromkeys(chain.outputs))
    names = ["out_ptr"] if len(results) == 1 else [f"out{i}_ptr" for i in range(len(results))]
    return {node: Pointer(name, dtype_of(node)) for node, name in zip(results, names, strict=True)}


def write_columns(source: Source, columns: int, width: str, first: str = "start", masked: bool = True) -> Axis:
    """Write the index variable of a tile of columns that begins at ``first``."""
    source.add(f"cols = {first} + tl.arange(0, {width})")
    if masked:
        source.add(f"col_mask = cols < {columns}")
    return Axis("cols", width, "col_mask" if masked else "")
