"""Inductor's wrapper lines -> ``GraphTrace``.

Each wrapper line that allocates, aliases or frees a buffer becomes one event. Sizes are the bytes that the allocator is asked
for, rounded up to the 512-byte blocks of the caching allocator on CUDA.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from memcompile.codegen.inductor.accumulate import MM_ADD
from memcompile.codegen.inductor.results import Result, Results
from memcompile.codegen.inductor.scratch import scratch_bytes
from memcompile.codegen.inductor.surface import surface
from memcompile.codegen.inductor.swapped import is_move
from memcompile.codegen.inductor.text_lines import Statement, statements
from memcompile.errors import UnknownLineError
from memcompile.step.cost import is_library_call
from memcompile.step.fxutil import source_of
from memcompile.step.symbols import counted
from memcompile.step.trace import Event, Formula, GraphTrace, StepPeak, TracedBuffer, step_peak
from memcompile.streaming.program import PROGRAMS

CUDA_BLOCK_BYTES = 512


_HARMLESS = frozenset(
    {"AssertDivByZeroLine", "AssertSizeStrideLine", "CommentLine", "DynamicScalarLine", "KernelDefinitionLine", "LineContext"}
    | {"NullLine", "SymbolicCallArgLine", "UnbackedSymbolDefsLine"}
    | {f"{way}{what}Line" for way in ("Enter", "Exit") for what in ("DeviceContextManager", "CudaStreamContext")}
    | {f"{way}DeviceContextManagerWithStreamInfoLine" for way in ("Enter", "Exit")}
)
"""Lines by which no memory of a device comes or goes."""


def trace_of(
    lines: Sequence[Any], graph: Any, output_nodes: tuple[str, ...], inner: Mapping[str, GraphTrace] | None = None
) -> GraphTrace:
    """Read the planned wrapper lines of a ``GraphLowering``. ``output_nodes``: see ``GraphTrace``. ``inner``: the graphs inside
    this one (branches, bodies of loops) by the names that the code calls them by.

    Raises ``UnknownLineError`` for a line of which it is not known what memory it takes.
    """
    reader = _Reader(graph, lines, inner or {})
    for line in lines:
        reader.read(line)
    outputs, strides = reader.outputs()
    inputs = tuple((name, reader.input_bytes(value)) for name, value in graph.graph_inputs.items())
    return GraphTrace(inputs, outputs, output_nodes, strides, tuple(reader.events), reader.buffers, reader.formulas)


class _Reader:
    """``items``: per kernel that returns several results, the buffers that take them, with where each lies in what it returns.
    ``depth``: how many branches and loops the line stands in."""

    def __init__(self, graph: Any, lines: Sequence[Any], inner: Mapping[str, GraphTrace]) -> None:
        self.graph, self.inner = graph, inner
        self.items: dict[str, list[tuple[str, tuple[Any, ...]]]] = {}
        for line in lines:
            if type(line).__name__ == "MultiOutputLine":
                path = tuple(index for _, index in line.indices)
                self.items.setdefault(line.arg_name, []).append((line.result_name, path))
        nodes = graph.scheduler.nodes
        self.loops = {name: index for index, node in enumerate(nodes) for name in node.get_buffer_names()}
        self.events: list[Event] = []
        self.buffers: dict[str, TracedBuffer] = {}
        self.formulas: dict[str, Formula] = {}
        self.depth = 0
        self.grown: set[str] = set()

    def read(self, line: Any) -> None:
        match type(line).__name__:
            case "AllocateLine":
                self._alloc(line.node)
            case "ReuseLine":
                self._describe(line.reused_as)
                self._alias(line.reused_as.get_name(), line.node.get_name())
                if line.delete_old and line.node.get_name() not in self.graph.get_output_names():
                    self._free(line.node.get_name())
            case "ReinterpretLine":
                self._alias(line.reused_as.get_name(), line.node.get_name())
            case "FreeIfNotReusedLine":
                if not line.is_reused:
                    self._free(line.node.get_name())
            case "FreeLine":
                self._free(line.node.get_name())
            case "ExternKernelAllocLine":
                self._extern_alloc(line.node)
            case "ExternKernelOutLine" | "IndexPutFallbackLine" | "ScatterFallbackLine":
                self._library_call(line.node)
            case "KernelCallLine" | "ExternKernelMultiOutLine":
                name = line.kernel_name if hasattr(line, "kernel_name") else line.node.get_name()
                self.events.append(Event("kernel", name))
            case "MultiOutputLine":
                pass  # its result was counted with the kernel that returns it
            case "EnterSubgraphLine":
                self.depth += 1
            case "ExitSubgraphLine":
                self.depth -= 1
            case "DeferredLine":
                alias = re.match(r"(?:auto )?(\w+) = .*?\b((?:buf|arg|primals|tangents|view|permute)\w*)\b", line.line)
                if alias and alias[1] not in self.graph.removed_buffers:
                    self._alias(alias[1], alias[2])
            case "str":
                for statement in statements(line):
                    self._text(statement, line)
            case kind if kind not in _HARMLESS:
                raise surface(UnknownLineError(kind, str(line), str(torch.__version__)))

    def _text(self, statement: Statement, line: str) -> None:
        name, names = statement.target, statement.names
        match statement.effect:
            case "free":
                for dead in names:
                    self._free(dead)
            case "kernel":
                self.events.append(Event("kernel", name))
            case "collect" | "assign":
                self.events += [Event("hold", name, base=held) for held in names if held != name]
            case "call" | "loop":
                self._call(statement)
            case "many":
                self.grown.add(name)
            case "reduce":
                size = self._describe(self.graph.get_buffer(name))
                self.events += [Event("workspace", name, size), Event("alloc", name, size)]
            case "check":
                buffer = self.graph.try_get_buffer(names[0]) or self.graph.graph_inputs.get(names[0])
                self.events.append(Event("workspace", names[0], buffer_bytes(buffer, self.graph) if buffer is not None else 0))
            case _:
                raise surface(UnknownLineError("text", line, str(torch.__version__)))

    def _call(self, statement: Statement) -> None:
        """A branch, a turn of a loop, a part of the graph: a function of the lowered code.

        What it makes is counted while it runs; what it returns lives as long as what takes it. What another branch would return
        in its place is given up first.
        """
        trace = self.inner.get(statement.callee)
        if trace is None:
            raise surface(UnknownLineError("call", f"{statement.callee}(...)", str(torch.__version__)))
        peak = own_step(trace)
        results = {name: self._size_of(name) for target in statement.targets for name in self._results(target)}
        self.events += [Event("free", name) for name in (*results, *statement.targets)]
        turns = peak.held_bytes if statement.effect == "loop" else 0  # what the turn before made
        self.events += [Event("workspace", statement.callee, peak.peak_bytes + turns), Event("kernel", statement.callee)]
        self.events += [Event("free", name) for name in statement.names]
        self.events += [Event("alloc", name, size) for name, size in results.items()]
        for target in statement.targets:
            if target not in results:
                others = max(0, peak.held_bytes - sum(results.values())) if target == statement.target else 0
                grown = sum(results.values()) if target in self.grown else 0
                self.events += [Event("alloc", target, others + grown)]
                self.events += [Event("hold", target, base=name) for name in self._results(target)]

    def _results(self, target: str) -> list[str]:
        """The buffers that take what a call returns as ``target``."""
        items = [name for name, _ in self.items.get(target, ())]
        return items or ([target] if self.graph.try_get_buffer(target) is not None and target not in self.items else [])

    def _size_of(self, name: str) -> int:
        buffer = self.graph.try_get_buffer(name)
        return 0 if buffer is None or not _has_memory(buffer) else self._describe(buffer)

    def _alloc(self, node: Any) -> None:
        if node.get_name() in self.graph.removed_buffers:
            return
        self.events.append(Event("alloc", node.get_name(), self._describe(node)))

    def _alias(self, name: str, base: str) -> None:
        self.events.append(Event("alias", name, base=base))

    def _free(self, name: str) -> None:
        """In a branch, what dies only dies there: it is alive where the other one was taken."""
        if not self.depth:
            self.events.append(Event("free", name))

    def _extern_alloc(self, node: Any) -> None:
        """The kernel allocates its results itself: one tensor, or what MultiOutput lines take apart. A tuple lives until its
        own name dies, with all that is in it."""
        name = node.get_name()
        items = self.items.get(name, ())
        results = Results(node)
        if type(node.layout).__name__ in ("MultiOutputLayout", "NoneLayout"):
            for item, path in items:
                self._result(item, results.result(item, path))
            if unused := results.unused_bytes(path for _, path in items):
                self.events.append(Event("alloc", name, unused))
            self.events += [Event("hold", name, base=item) for item, _ in items]
        else:
            self._result(name, results.result(name, ()))
        self._library_call(node)

    def _result(self, name: str, result: Result | None) -> None:
        buffer = self.graph.try_get_buffer(name)
        if result is None or buffer is None:
            return
        if result.base:
            self._describe(buffer)
            self._alias(name, result.base)
        else:
            self.events.append(Event("alloc", name, self._describe(buffer, result.size_bytes)))
        self.events += [Event("hold", name, base=held) for held in result.holds]

    def _library_call(self, node: Any) -> None:
        """A kernel of a library, and its scratch."""
        scratch = kernel_scratch_bytes(node, self.graph)
        if scratch:
            self.events.append(Event("workspace", node.get_name(), scratch))
        self.events.append(Event("kernel", node.get_name()))

    def _describe(self, node: Any, size: int | None = None) -> int:
        """Note where a buffer comes from; returns its bytes: ``size``, or what its layout says."""
        if size is None:
            size = buffer_bytes(node, self.graph)
            self._note_formula(node)
        origin = node.get_origin_node() if hasattr(node, "get_origin_node") else None
        nodes = [] if origin is None else [origin]
        nodes += sorted(
            (n for n in node.get_origins() if n is not origin), reverse=True
        )  # what is computed last is what is kept
        if type(node).__name__ == "ComputedBuffer":  # a copy of a library kernel's input names that kernel too
            nodes = [n for n in nodes if not is_library_call(n)] or nodes
        source = next(filter(None, map(source_of, nodes)), "")
        reads = tuple(n.name for n in nodes[0].all_input_nodes) if nodes else ()
        name = node.get_name()
        self.buffers[name] = TracedBuffer(name, size, tuple(n.name for n in nodes), source, reads, self.loops.get(name, -1))
        return size

    def _note_formula(self, node: Any) -> None:
        """Bytes that follow from sizes which differ from call to call."""
        formula = bytes_formula(node, self.graph)
        if formula is not None:
            self.formulas[node.get_name()] = formula

    def outputs(self) -> tuple[tuple[str, ...], tuple[tuple[int, ...] | None, ...]]:
        names: list[str] = []
        strides: list[tuple[int, ...] | None] = []
        for out in self.graph.graph_outputs:
            try:
                names.append(out.get_name())
            except (AttributeError, NotImplementedError):
                names.append("")
            tensor = hasattr(out, "has_tensor_output") and out.has_tensor_output()
            strides.append(self._hints(out.get_layout().stride) if tensor else None)
        return tuple(names), tuple(strides)

    def _hints(self, values: Iterable[Any]) -> tuple[int, ...]:
        return tuple(size_hint(self.graph, value) for value in values)

    def input_bytes(self, value: Any) -> int:
        if not hasattr(value, "get_layout"):
            return 0
        self._note_formula(value)
        return buffer_bytes(value, self.graph)


def kernel_scratch_bytes(node: Any, graph: Any) -> int:
    """Bytes that a library kernel takes while it runs, beside its results."""
    if is_move(node):
        return 0
    if getattr(node, "op_overload", None) is torch.ops.memcompile.stream_rows_.default:
        return PROGRAMS[node.constant_args[0]].scratch_bytes
    strides = [
        tuple(size_hint(graph, step) for step in source.get_stride()) for source in node.inputs if hasattr(source, "get_stride")
    ]
    called = getattr(getattr(node, "op_overload", None), "overloadpacket", None)
    origins = [
        origin
        for origin in node.get_origins()
        if getattr(origin.target, "overloadpacket", origin) is called or origin.target is MM_ADD
    ]
    return max((scratch_bytes(origin, strides) for origin in origins), default=0)


def kind_of(graph: Any) -> str:
    """Of a ``GraphLowering``: "forward", "backward" or "inference"."""
    return "backward" if graph.is_backward else "inference" if graph.is_inference else "forward"


def size_hint(graph: Any, value: Any) -> int:
    """A size as it counts (``symbols``)."""
    if isinstance(value, int):
        return value
    sizes = graph.sizevars
    known = value.xreplace(sizes.inv_precomputed_replacements)
    return counted(known, sizes.shape_env) if known.free_symbols else int(known)


def _has_memory(buffer: Any) -> bool:
    return type(buffer.get_output_spec()).__name__ not in ("NoneLayout", "MultiOutputLayout")


def own_step(trace: GraphTrace) -> StepPeak:
    """The replay of a graph without its inputs: what it takes beside them, and what of that it returns."""
    return step_peak(dataclasses.replace(trace, inputs=()))


def buffer_bytes(node: Any, graph: Any) -> int:
    """Bytes that the allocator is asked for: storage size of the layout times the element size."""
    return rounded(size_hint(graph, _elements(node, graph)) * node.get_dtype().itemsize, node.get_layout().device.type)


def bytes_formula(node: Any, graph: Any) -> Formula | None:
    """The same from the sizes of a call; None where it is the same for all."""
    numel = _elements(node, graph)
    if isinstance(numel, int) or not (numel := numel.xreplace(graph.sizevars.inv_precomputed_replacements)).free_symbols:
        return None
    itemsize, device_type = node.get_dtype().itemsize, node.get_layout().device.type

    def size(values: Mapping[Any, int]) -> int | None:
        known: Any = numel.xreplace(values)
        return None if getattr(known, "free_symbols", None) else rounded(int(known) * itemsize, device_type)

    return size


def _elements(node: Any, graph: Any) -> Any:
    """Number of elements that are allocated for a buffer, or that an input spans: an integer, or an expression in sizes."""
    layout, allocation = node.get_layout(), getattr(graph, "get_allocation_storage_size", None)
    if allocation is None or node.get_name() in graph.graph_inputs:
        return layout.storage_size() - layout.offset
    return allocation(node)


def rounded(size: int, device_type: str) -> int:
    """What the allocator of a device takes for so many bytes."""
    return -(-size // CUDA_BLOCK_BYTES) * CUDA_BLOCK_BYTES if device_type == "cuda" else size
