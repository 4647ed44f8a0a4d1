"""Inductor's wrapper lines -> ``GraphTrace``.

Each wrapper line that allocates, aliases or frees a buffer becomes one event. Sizes are the bytes that the allocator is asked
for, rounded up to the 512-byte blocks of the caching allocator on CUDA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from operator import getitem
from typing import Any

import torch

from memcompile.codegen.accumulate import MM_ADD
from memcompile.codegen.scratch import scratch_bytes
from memcompile.codegen.swapped import is_move
from memcompile.codegen.trace import Buffer, Event, GraphTrace
from memcompile.cost import is_library_call
from memcompile.fxutil import hint, source_of
from memcompile.streaming.program import PROGRAMS

CUDA_BLOCK_BYTES = 512


def trace_of(lines: Sequence[Any], graph: Any, output_nodes: tuple[str, ...]) -> GraphTrace:
    """Read the planned wrapper lines of a top-level ``GraphLowering``. ``output_nodes``: see ``GraphTrace``."""
    reader = _Reader(graph, lines)
    for line in lines:
        reader.read(line)
    outputs, strides = reader.outputs()
    inputs = tuple((name, reader.input_bytes(value)) for name, value in graph.graph_inputs.items())
    return GraphTrace(inputs, outputs, output_nodes, strides, tuple(reader.events), reader.buffers)


class _Reader:
    def __init__(self, graph: Any, lines: Sequence[Any]) -> None:
        self.graph = graph
        self.items: dict[str, list[str]] = {}
        for line in lines:
            if type(line).__name__ == "MultiOutputLine":
                self.items.setdefault(line.arg_name, []).append(line.result_name)
        nodes = graph.scheduler.nodes
        self.loops = {name: index for index, node in enumerate(nodes) for name in node.get_buffer_names()}
        self.events: list[Event] = []
        self.buffers: dict[str, Buffer] = {}

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
            case "ExternKernelOutLine":
                self._library_call(line.node, line.node.get_name())
            case "KernelCallLine" | "ExternKernelMultiOutLine":
                name = line.kernel_name if hasattr(line, "kernel_name") else line.node.get_name()
                self.events.append(Event("kernel", name))
            case "DeferredLine":
                alias = re.match(r"(?:auto )?(\w+) = .*?\b((?:buf|arg|primals|tangents|view|permute)\w*)\b", line.line)
                if alias and alias[1] not in self.graph.removed_buffers:
                    self._alias(alias[1], alias[2])
            case "str":
                self._text(line)

    def _text(self, line: str) -> None:
        for statement in line.split(";"):
            free = re.match(r"\s*del (\w+(?:\s*,\s*\w+)*)", statement)
            if free:
                for name in re.split(r"\s*,\s*", free[1]):
                    self._free(name)

    def _alloc(self, node: Any) -> None:
        if node.get_name() in self.graph.removed_buffers:
            return
        self.events.append(Event("alloc", node.get_name(), self._describe(node)))

    def _alias(self, name: str, base: str) -> None:
        self.events.append(Event("alias", name, base=base))

    def _free(self, name: str) -> None:
        self.events.append(Event("free", name))

    def _extern_alloc(self, node: Any) -> None:
        """The kernel allocates its outputs itself: one tensor, or a tuple that MultiOutput lines take apart."""
        name = node.get_name()
        aliased = list(node.get_inputs_that_alias_output())
        if type(node.layout).__name__ in ("MultiOutputLayout", "NoneLayout"):
            for item in self.items.get(name, ()):
                buffer = self.graph.try_get_buffer(item)
                if buffer is not None:
                    self.events.append(Event("alloc", item, self._describe(buffer)))
        elif aliased:
            self._alias(name, aliased[0])
        else:
            self.events.append(Event("alloc", name, self._describe(node)))
        self._library_call(node, name)

    def _library_call(self, node: Any, name: str) -> None:
        """A kernel of a library, and its scratch."""
        scratch = kernel_scratch_bytes(node, self.graph)
        if scratch:
            self.events.append(Event("workspace", name, scratch))
        self.events.append(Event("kernel", name))

    def _describe(self, node: Any) -> int:
        size = buffer_bytes(node, self.graph)
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
        self.buffers[name] = Buffer(name, size, tuple(n.name for n in nodes), source, reads, self.loops.get(name, -1))
        return size

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
        return buffer_bytes(value, self.graph) if hasattr(value, "get_layout") else 0


def kernel_scratch_bytes(node: Any, graph: Any) -> int:
    """Bytes that a library kernel takes while it runs, beside its results; those that nobody takes count as scratch."""
    strides = [
        tuple(size_hint(graph, step) for step in source.get_stride()) for source in node.inputs if hasattr(source, "get_stride")
    ]
    if is_move(node):
        return 0
    if getattr(node, "op_overload", None) is torch.ops.memcompile.stream_rows_.default:
        return PROGRAMS[node.constant_args[0]].scratch_bytes
    called = getattr(getattr(node, "op_overload", None), "overloadpacket", None)
    origins = [
        origin
        for origin in node.get_origins()
        if getattr(origin.target, "overloadpacket", origin) is called or origin.target is MM_ADD
    ]
    return max((scratch_bytes(origin, strides) for origin in origins), default=0) + _unused_bytes(node)


def _unused_bytes(node: Any) -> int:
    """Bytes of the results, of a kernel that returns several, that nobody takes."""
    called = getattr(node, "op_overload", None)
    origin = next((origin for origin in node.get_origins() if origin.target is called), None)
    if origin is None or not isinstance(origin.meta.get("val"), tuple | list):
        return 0
    taken = {user.args[1] for user in origin.users if user.target is getitem and user.users}
    unused = [value for index, value in enumerate(origin.meta["val"]) if index not in taken and isinstance(value, torch.Tensor)]
    return sum(hint(value.numel()) * value.itemsize for value in unused)


def kind_of(graph: Any) -> str:
    """Of a ``GraphLowering``: "forward", "backward" or "inference"."""
    return "backward" if graph.is_backward else "inference" if graph.is_inference else "forward"


def size_hint(graph: Any, value: Any) -> int:
    """Concrete size for the shapes in hand."""
    sizes = graph.sizevars
    hint = sizes.optimization_hint if hasattr(sizes, "optimization_hint") else sizes.size_hint
    return int(hint(value, fallback=0))


def buffer_bytes(node: Any, graph: Any) -> int:
    """Bytes that the allocator is asked for: storage size of the layout times the element size."""
    layout = node.get_layout()
    numel = size_hint(graph, layout.storage_size()) - size_hint(graph, layout.offset)
    allocation = getattr(graph, "get_allocation_storage_size", None)
    if allocation is not None and node.get_name() not in graph.graph_inputs:
        numel = size_hint(graph, allocation(node))
    size = int(numel * node.get_dtype().itemsize)
    if layout.device.type == "cuda":
        size = -(-size // CUDA_BLOCK_BYTES) * CUDA_BLOCK_BYTES
    return size
