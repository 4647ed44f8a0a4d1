"""A region as one node of a graph: ``memcompile::stream_rows``, and the program that it runs.

    memcompile::stream_rows(key, operands) -> results             in graphs
    memcompile::stream_rows_(key, operands, results, workspace)   in lowered code, which allocates for it

A program runs the body of its region on one block of rows after the other. Everything inside of a block lies in ``workspace``
(``workspace_bytes``), so that the peak is known before anything runs; kernels that allocate by themselves take
``scratch_bytes`` more while they run.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import register_flop_formula

from memcompile.errors import MemcompileError
from memcompile.step.cost import flops_of
from memcompile.streaming.region import RowRegion, body, contiguous_strides, merged
from memcompile.streaming.rules import NotRowLocalError, RowAxes, Shape

Run = Callable[[list[Tensor]], object]


@dataclass(frozen=True, slots=True)
class ProgramBuffer:
    """An operand or a result as a program takes it."""

    shape: Shape
    stride: Shape
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class RowPort(ProgramBuffer):
    """The axes of its rows are one. ``axis`` None: it is taken whole (an operand), or a sum over all blocks (a result).
    ``each``: indices along the axis that a row takes."""

    axis: int | None
    each: int

    def block(self, tensor: Tensor, begin: int, count: int) -> Tensor:
        """The part of rows ``begin`` up to ``begin + count``."""
        return tensor if self.axis is None else tensor.narrow(self.axis, begin * self.each, count * self.each)


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Compiled code for blocks of one size: ``prepare(workspace)`` gives the function that runs it in a workspace.

    ``workspace_bytes``: what it needs there; ``scratch_bytes``: what its kernels allocate beside. ``prepare`` is None in a dry
    run.
    """

    prepare: Callable[[Tensor], Run] | None
    workspace_bytes: int
    scratch_bytes: int


@dataclass(frozen=True, slots=True)
class FusedRows:
    """One kernel for all rows: ``launch(*operands, out=results)``, None in a dry run; and its module as text. One that works in
    ``workspace_bytes`` takes them as ``workspace`` too."""

    launch: Callable[..., object] | None
    source: str
    workspace_bytes: int = 0
    language: Literal["python", "cpp"] = "python"


Compile = Callable[[fx.GraphModule], RowBlock]


@dataclass(frozen=True, eq=False)
class Program:
    """``total`` rows in blocks of ``block``. ``bodies``: the graph of a block, and of the last one where it is shorter.

    ``in_place``: per result the operand that it is written over, or None. ``flops``: of all blocks. ``fused``: a kernel that
    runs instead of the blocks.
    """

    key: str
    total: int
    block: int
    operands: tuple[RowPort, ...]
    results: tuple[RowPort, ...]
    in_place: tuple[int | None, ...]
    device: torch.device
    flops: int
    bodies: dict[int, fx.GraphModule]
    blocks: dict[int, RowBlock] = field(default_factory=dict)
    fused: FusedRows | None = None

    @property
    def workspace_bytes(self) -> int:
        """Bytes that every block runs in, or the one kernel."""
        inside = self.fused.workspace_bytes if self.fused is not None else 0
        return max((block.workspace_bytes for block in self.blocks.values()), default=inside)

    @property
    def scratch_bytes(self) -> int:
        """Bytes that kernels inside allocate by themselves."""
        return max((block.scratch_bytes for block in self.blocks.values()), default=0)

    def compile(self, compiler: Compile, *, dry: bool = False) -> None:
        """Lower the bodies, once. ``dry``: the blocks need not run."""
        for count, graph in self.bodies.items():
            if count not in self.blocks or not (dry or self.blocks[count].prepare):
                self.blocks[count] = compiler(graph)

    def run(self, operands: Sequence[Tensor], results: Sequence[Tensor], workspace: Tensor) -> None:
        """Write ``results``, block by block."""
        if self.fused is not None and self.fused.launch is not None:
            scratch = {"workspace": workspace} if self.fused.workspace_bytes else {}
            self.fused.launch(*operands, out=tuple(results), **scratch)
            return
        ports = (*self.operands, *self.results)
        tensors = (*operands, *results)
        for port, result in zip(self.results, results, strict=True):
            if port.axis is None:
                result.zero_()
        runs = {count: block.prepare(workspace) for count, block in self.blocks.items() if block.prepare}
        for begin in range(0, self.total, self.block):
            count = min(self.block, self.total - begin)
            runs[count]([port.block(tensor, begin, count) for port, tensor in zip(ports, tensors, strict=True)])


class Runnable(Protocol):
    """What a node ``memcompile::stream_rows`` may run: blocks of rows, or tiles of images (``passes/tiles/program.py``)."""

    @property
    def key(self) -> str: ...
    @property
    def operands(self) -> tuple[ProgramBuffer, ...]: ...
    @property
    def results(self) -> tuple[ProgramBuffer, ...]: ...
    @property
    def in_place(self) -> tuple[int | None, ...]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def flops(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    def run(self, operands: Sequence[Tensor], results: Sequence[Tensor], workspace: Tensor) -> None: ...


R = TypeVar("R", bound=Runnable)


class Programs:
    """The programs of the process, by key. Use the one instance, ``PROGRAMS``; graphs that use a program keep it alive."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[str, Runnable] = weakref.WeakValueDictionary()

    def __getitem__(self, key: str) -> Runnable:
        try:
            return self._known[key]
        except KeyError:
            raise LostProgramError(key) from None

    def add(self, program: R) -> R:
        """The program of that key: an equal one that is there already, or this one."""
        return cast("R", self._known.setdefault(program.key, program))


class LostProgramError(MemcompileError):
    """A graph names a program that this process has not made."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the streaming program {key} is not known in this process: compile the model here")


PROGRAMS = Programs()


def fused_program(region: RowRegion, graph: fx.GraphModule, fused: FusedRows, device: torch.device) -> Program:
    """The program that runs a region by one kernel. ``graph``: its ``flat_body``. Raises NotRowLocalError."""
    operands = tuple(_port(node.meta["val"], rows, region.total) for node, rows in region.operands)
    results = tuple(_port(node.meta["val"], region.rows[node], region.total, dense=True) for node in region.results)
    key = hashlib.sha256(
        repr((region.total, operands, results, str(device), fused.source, fused.launch is None)).encode()
    ).hexdigest()[:12]
    none = (None,) * len(results)
    return PROGRAMS.add(
        Program(
            key,
            region.total,
            region.total,
            operands,
            results,
            none,
            device,
            _flops_of(region),
            {region.total: graph},
            {},
            fused,
        )
    )


def program_of(region: RowRegion, block: int, in_place: tuple[int | None, ...], device: torch.device) -> Program:
    """The program that runs a region in blocks of ``block`` rows. Raises NotRowLocalError."""
    rest = region.total % block
    bodies = {count: body(region, count) for count in (block, *([rest] if rest else []))}
    operands = tuple(_port(node.meta["val"], rows, region.total) for node, rows in region.operands)
    results = tuple(_port(node.meta["val"], region.rows.get(node), region.total, dense=True) for node in region.results)
    text = repr((region.total, block, operands, results, in_place, str(device), bodies[block].code, _shapes(bodies[block])))
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return PROGRAMS.add(Program(key, region.total, block, operands, results, in_place, device, _flops_of(region), bodies))


def _flops_of(region: RowRegion) -> int:
    return sum(map(flops_of, region.nodes))


def _shapes(graph: fx.GraphModule) -> list[Any]:
    return [(v.shape, v.stride(), v.dtype) for n in graph.graph.nodes if isinstance(v := n.meta.get("val"), Tensor)]


def _port(value: Tensor, rows: RowAxes | None, total: int, *, dense: bool = False) -> RowPort:
    shape, stride = tuple(value.shape), tuple(value.stride())
    if dense and not value.is_contiguous():
        raise NotRowLocalError("a result is not dense")
    if rows is not None:
        for axis in range(rows.first, rows.last):
            if stride[axis] != stride[axis + 1] * shape[axis + 1]:
                raise NotRowLocalError("the rows of an operand do not lie one after the other")
        shape, stride = merged(shape, rows, total), (*stride[: rows.first], *stride[rows.last :])
    if dense:
        stride = contiguous_strides(shape)
    return RowPort(shape, stride, value.dtype, None if rows is None else rows.first, 1 if rows is None else rows.each)


def _stream_rows_(key: str, operands: list[Tensor], results: list[Tensor], workspace: Tensor) -> None:
    """``operands`` without those that results are written over."""
    program = PROGRAMS[key]
    left = iter(operands)
    over = {operand: result for result, operand in zip(results, program.in_place, strict=True) if operand is not None}
    program.run([over[i] if i in over else next(left) for i in range(len(program.operands))], results, workspace)


def _stream_rows(key: str, operands: list[Tensor]) -> list[Tensor]:
    program = PROGRAMS[key]
    results = [empty(port, program.device) for port in program.results]
    workspace = torch.empty(program.workspace_bytes, dtype=torch.uint8, device=program.device)
    program.run(operands, results, workspace)
    return results


def _shapes_of_results(key: str, _operands: list[Tensor]) -> list[Tensor]:
    return [empty(port, PROGRAMS[key].device) for port in PROGRAMS[key].results]


def empty(buffer: ProgramBuffer, device: torch.device) -> Tensor:
    """A tensor for it."""
    return torch.empty_strided(buffer.shape, buffer.stride, dtype=buffer.dtype, device=device)


def _nothing(*_args: object) -> None:
    pass


_LIBRARY: Any = torch.library.Library("memcompile", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("stream_rows(str key, Tensor[] operands) -> Tensor[]")
_LIBRARY.define("stream_rows_(str key, Tensor[] operands, Tensor(a!)[] results, Tensor(b!) workspace) -> ()")
_LIBRARY.impl("stream_rows", _stream_rows, "CompositeExplicitAutograd")
_LIBRARY.impl("stream_rows_", _stream_rows_, "CompositeExplicitAutograd")
torch.library.register_fake("memcompile::stream_rows", _shapes_of_results, lib=_LIBRARY)
torch.library.register_fake("memcompile::stream_rows_", _nothing, lib=_LIBRARY)


@register_flop_formula(torch.ops.memcompile.stream_rows)
def _flops(key: str, *_args: object, **_kwargs: object) -> int:
    return PROGRAMS[key].flops


def padded_workspace(program: Runnable) -> int:
    """Bytes of the workspace, other than those of any result: a trace tells buffers of a node apart by their size."""
    size = max(64, program.workspace_bytes)
    sizes = {math.prod(port.shape) * port.dtype.itemsize for port in program.results}
    while size in sizes:
        size += 64
    return size
