"""Inductor's fused scheduler nodes -> the problem of their order, and an order -> scheduler nodes.

Which names share a storage, who touches it, what may be written over and when memory is given back follow Inductor's own code
(``scheduler.py``: ``set_last_usage``, ``decide_inplace_update``, ``free_buffers``). Known differences from the lowered code:
loops of more than 500 arguments are flushed earlier than the model says, and a buffer written over one that is up to 5 %
larger is taken for a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from memcompile.codegen.inductor.accumulate import accumulator
from memcompile.codegen.inductor.fusion import origins_of
from memcompile.codegen.inductor.lines import buffer_bytes, kernel_scratch_bytes
from memcompile.codegen.inductor.results import Results
from memcompile.solvers.order.ordering import Kind, OrderKernel, OrderProblem, OrderStorage
from memcompile.step.fxutil import communicates, draws_random_state
from memcompile.step.trace import Event, GraphTrace

_UNSTORED = ("NoneLayout", "MultiOutputLayout", "MutationLayoutSHOULDREMOVE")
"""Layouts of buffers that have no memory of their own."""


class KernelGraph:
    """The kernels of a graph that is being lowered: ``units`` of scheduler nodes that stay together, and the ``problem``.

    The results of a library kernel that returns several come right behind it. ``forward``: the lowered forward of a backward,
    which knows what saved tensors share a storage.
    """

    def __init__(self, nodes: Sequence[Any], graph: Any, forward: GraphTrace | None = None) -> None:
        self.graph, self.scheduler = graph, graph.scheduler
        self.producer = {name: node for node in nodes for name in node.get_buffer_names()}
        self.units = _units(nodes, self.producer)
        self.unit = {node: k for k, unit in enumerate(self.units) for node in unit}
        self.taken = _taken(nodes)
        self.dying = self._dying(forward)
        self.root = self._roots(nodes)
        self.problem = self._problem()

    @property
    def entry(self) -> tuple[Event, ...]:
        """The storages that are alive at first and die in the graph, as events of its trace."""
        names = [names for names, _ in self.dying]
        allocations = [Event("alloc", names[0], size) for names, size in self.dying]
        return (*allocations, *(Event("alias", name, base=first) for first, *others in names for name in others))

    def _dying(self, forward: GraphTrace | None) -> list[tuple[list[str], int]]:
        """Inputs that lie in one storage, and its bytes, for the storages that nobody else holds."""
        lies_in = {} if forward is None else _saved_storages(self.graph, forward)
        found: dict[str, tuple[list[str], int]] = {}
        for name in _freeable_inputs(self.graph):
            storage = lies_in.get(name, (f"input {name}", self._input_bytes(name)))
            if storage is not None:
                found.setdefault(storage[0], ([], storage[1]))[0].append(name)
        return list(found.values())

    def order_of(self, nodes: Iterable[Any]) -> tuple[int, ...]:
        """The order of units that an order of nodes comes down to."""
        return tuple(dict.fromkeys(self.unit[node] for node in nodes))

    def nodes_of(self, order: Iterable[int]) -> list[Any]:
        """Scheduler nodes in the order of their units."""
        return [node for k in order for node in self.units[k]]

    def _roots(self, nodes: Sequence[Any]) -> dict[str, str]:
        """Buffer name -> the name of its storage."""
        root: dict[str, str] = {}

        def find(name: str) -> str:
            while root.setdefault(name, name) != name:
                name = root[name]
            return name

        for first, *others in (names for names, _ in self.dying):
            root.update(dict.fromkeys(others, first))
        for mutated, real in self.scheduler.mutation_real_name.items():
            root[find(mutated)] = find(real)
        for buffer in (buffer for node in nodes for buffer in node.get_outputs()):
            for base in (*buffer.get_aliases(), *buffer.get_mutations()):
                root[find(buffer.get_name())] = find(base)
        return {name: find(name) for name in (*root, *self.producer, *self.graph.graph_inputs)}

    def _problem(self) -> OrderProblem:
        buffers = {buffer.get_name(): buffer for unit in self.units for node in unit for buffer in node.get_outputs()}
        touched = [self._touched(unit) for unit in self.units]
        kept = {self.root.get(name, name) for name in (*self.graph.get_output_names(), *self.graph.never_reuse_buffers)}
        sizes: dict[str, int] = {}
        for name, buffer in buffers.items():
            if not self._is_removed(buffer):
                root = self.root[name]
                sizes[root] = sizes.get(root, 0) + self._own_bytes(buffer)
        sizes.update((self.root[names[0]], size) for names, size in self.dying)
        roots = [name for name, size in sizes.items() if size]
        number = {name: s for s, name in enumerate(roots)}
        starts = {self.root[names[0]] for names, _ in self.dying}
        storages = tuple(OrderStorage(name, sizes[name], name in starts, name in kept) for name in roots)
        kernels, last_ordered = [], None
        for k, unit in enumerate(self.units):
            after = {self.unit[self.producer[dep]] for dep in _waits_for(unit) if dep in self.producer} - {k}
            if any(map(_is_ordered, unit)):
                after |= set() if last_ordered is None else {last_ordered}
                last_ordered = k
            kernels.append(
                OrderKernel(
                    unit[0].get_name(),
                    tuple(sorted({number[name] for name in touched[k] if name in number})),
                    tuple(sorted(after)),
                    tuple(self._inplace(unit, number, storages)),
                    sum(self._scratch_bytes(node.node) for node in unit if node.is_extern()),
                    self._kind(unit[0]),
                )
            )
        return OrderProblem(tuple(kernels), storages)

    def _touched(self, unit: Sequence[Any]) -> set[str]:
        names = {name for node in unit for name in (*node.used_or_aliased_buffer_names(), *node.get_buffer_names())}
        return {self.root.get(name, name) for name in names}

    def _own_bytes(self, buffer: Any) -> int:
        if type(buffer.node.layout).__name__ in _UNSTORED or buffer.get_aliases() or buffer.get_mutations():
            return 0
        return buffer_bytes(buffer.node, self.graph)

    def _scratch_bytes(self, node: Any) -> int:
        from torch._inductor.ir import ExternKernelAlloc, ExternKernelOut

        if not isinstance(node, (ExternKernelAlloc, ExternKernelOut)):
            return 0
        scratch = kernel_scratch_bytes(node, self.graph)
        if not isinstance(node, ExternKernelAlloc) or type(node.layout).__name__ not in _UNSTORED:
            return scratch
        return scratch + Results(node).unused_bytes(self.taken.get(node.get_name(), ()))

    def _input_bytes(self, name: str) -> int:
        value = self.graph.graph_inputs[name]
        return buffer_bytes(value, self.graph) if hasattr(value, "get_layout") else 0

    def _is_removed(self, buffer: Any) -> bool:
        """Whether only the fused loops that write the buffer read it: it stays in registers, or in one row of theirs."""
        node = self.producer[buffer.get_name()]
        if node.is_extern() or type(node).__name__ == "NopKernelSchedulerNode" or not buffer.users:
            return False
        if type(node).__name__ != "OuterLoopFusedSchedulerNode":
            return self._stays_within(buffer, node)
        inner = next(part for part in node.get_outer_nodes() if buffer.get_name() in part.get_buffer_names())
        return self._stays_within(buffer, inner) or (self._stays_within(buffer, node) and _is_local_row(buffer, node))

    def _stays_within(self, buffer: Any, node: Any) -> bool:
        names = {part.get_name() for part in node.get_nodes()}
        return bool(self.scheduler.can_buffer_be_removed_through_fusion(buffer.get_name(), names))

    def _kind(self, node: Any) -> Kind:
        if type(node).__name__ == "NopKernelSchedulerNode":
            return "none"
        if node.is_extern() or node.is_template():
            return "call"
        device = node.get_device()
        return "loops" if device is not None and _joins_loops(self.scheduler.get_backend(device)) else "kernel"

    def _inplace(
        self, unit: Sequence[Any], number: dict[str, int], storages: tuple[OrderStorage, ...]
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """What ``decide_inplace_update`` would take, should nobody else read it any more."""
        inner: dict[str, list[int]] = {}
        within = {part.get_name() for node in unit for part in node.get_nodes()}
        for part in (part for node in unit for part in node.get_nodes()):
            if part.is_extern() and (acc := accumulator(part.node)) is not None:
                yield from self._accumulates(part, acc, number, storages)
            if type(part).__name__ != "SchedulerNode" or part.is_template() or not torch._inductor.config.inplace_buffers:
                continue
            for buffer in part.get_outputs():
                taken = list(self._may_take(part, buffer, within, inner, number))
                inner[buffer.get_name()] = taken
                s = number.get(self.root[buffer.get_name()])
                same = [c for c in taken if s is not None and storages[c].size_bytes == storages[s].size_bytes]
                if s is not None and (same := [c for c in same if not storages[c].at_end]):
                    yield s, tuple(dict.fromkeys(same))

    def _accumulates(
        self, part: Any, acc: Any, number: dict[str, int], storages: tuple[OrderStorage, ...]
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """What ``accumulate.in_place`` takes."""
        s, c = (number.get(self.root.get(name, name)) for name in (part.node.get_name(), acc.get_name()))
        if s is None or c is None or storages[c].at_end or self._is_constant(acc.get_name()):
            return
        if storages[c].size_bytes == storages[s].size_bytes:
            yield s, (c,)

    def _may_take(
        self, part: Any, buffer: Any, within: set[str], inner: dict[str, list[int]], number: dict[str, int]
    ) -> Iterator[int]:
        from torch._inductor.codegen.wrapper import can_match_buffer_size

        if not buffer.node.should_allocate() or buffer.get_aliases() or buffer.get_mutations():
            return
        for read in part.read_writes.reads:
            source = self.scheduler.name_to_donated_buffer.get(read.name) or self.scheduler.name_to_buf.get(read.name)
            if (
                source is None
                or source.node is None
                or type(source.node.get_output_spec()).__name__ in (*_UNSTORED, "CommBufferLayout")
            ):
                continue
            if type(source.defining_op).__name__ == "NopKernelSchedulerNode" or self._is_constant(read.name):
                continue
            uses = [use for use in source.users if use.node.get_name() in within]
            open_uses = [use for use in uses if use.node.get_name() not in part.ancestors]
            if len(open_uses) != 1 or open_uses[0].node is not part or not open_uses[0].can_inplace:
                continue
            if any(use.node.get_name() == "OUTPUT" for use in source.users) or not _read_alike(uses, read.name):
                continue
            if not can_match_buffer_size(source.node, buffer.node):
                continue
            s = number.get(self.root.get(read.name, read.name))
            if read.name not in inner and s is not None:
                yield s
            elif read.name in inner and len(uses) == len(source.users):
                yield from inner[read.name] if s is None else (s,)
                return

    def _is_constant(self, name: str) -> bool:
        graph = self.graph
        owned = name in graph.graph_inputs and name not in self.scheduler.name_to_donated_buffer
        return owned or name in graph.constants or name in graph.never_reuse_buffers


def _taken(nodes: Iterable[Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Library kernel -> where the results that are taken lie in what it returns."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for kernel in (node.node for node in nodes if hasattr(node.node, "indices") and hasattr(node.node, "input_name")):
        found.setdefault(kernel.input_name(0), []).append(tuple(index for _, index in kernel.indices))
    return found


def _units(nodes: Sequence[Any], producer: dict[str, Any]) -> list[list[Any]]:
    units: dict[Any, list[Any]] = {}
    head: dict[Any, Any] = {}
    for node in nodes:
        parents = {producer[dep.name] for dep in node.unmet_dependencies if dep.name in producer} - {node}
        single = next(iter(parents)) if len(parents) == 1 and type(node.node).__name__ == "MultiOutput" else None
        head[node] = head.get(single, node)
        units.setdefault(head[node], []).append(node)
    return list(units.values())


def _waits_for(unit: Sequence[Any]) -> set[str]:
    return {dep.name for node in unit for dep in node.unmet_dependencies}


def _freeable_inputs(graph: Any) -> list[str]:
    """Inputs whose memory goes back with their last use: saved tensors that nobody else holds."""
    donated = [name for name in graph.graph_inputs if name in graph.scheduler.name_to_donated_buffer]
    if donated or not graph.is_backward:
        return donated
    return [name for name in graph.graph_inputs if not name.startswith(_HELD)]


def _saved_storages(graph: Any, forward: GraphTrace) -> dict[str, tuple[str, int] | None]:
    """Name of a saved tensor -> the storage of the lowered forward that it lies in, with its bytes; None where the user or the
    caller holds that.
    """
    last = {name: index for index, name in enumerate(forward.output_nodes) if name}
    saved = {name: last[name] for name, value in graph.graph_inputs.items() if name in last and hasattr(value, "get_layout")}
    root, size_bytes = forward.storages()
    users = [name for index, name in enumerate(forward.outputs) if index not in saved.values()]
    held = {name for name, _ in forward.inputs} | {root.get(name, "") for name in users}
    found: dict[str, tuple[str, int] | None] = {}
    for name, index in saved.items():
        output = forward.outputs[index]
        storage = root.get(output, output)
        found[name] = None if storage in held or storage not in size_bytes else (storage, size_bytes[storage])
    return found


_HELD = ("primals_", "arg", "fwd_rng_state", "bwd_rng_state", "tangents")
"""Inputs that the caller or the autograd engine holds, by the names that Inductor knows them by too."""


def _is_local_row(buffer: Any, node: Any) -> bool:
    """Whether loops that share their outer dimensions pass the buffer on row by row (``codegen_outer_loop_node``)."""
    writer = buffer.defining_op
    if writer.is_reduction() or len(writer.get_outputs()) != 1 or not buffer.node.get_layout().is_contiguous():
        return False
    depth = node.outer_loop_fusion_depth + 1
    return all(_loop_depth(part) == depth for part in node.get_outer_nodes())


def _loop_depth(node: Any) -> int:
    _, (group, reduction_group) = max(node.get_nodes(), key=lambda part: int(part.is_reduction())).group
    return len(group) + len(reduction_group)


def _read_alike(uses: Sequence[Any], name: str) -> bool:
    """Whether all parts of a kernel read and write a buffer at the same place in the same iteration."""
    return len({dep for use in uses for dep in use.node.read_writes.reads_and_writes() if dep.name == name}) <= 1


def _joins_loops(backend: Any) -> bool:
    from torch._inductor.codegen.cpp import CppScheduling

    return isinstance(backend, CppScheduling)


def _is_ordered(node: Any) -> bool:
    """Whether the kernel changes more than its results: it sends, receives, draws random numbers from a generator, asserts."""
    parts = [part.node for part in node.get_nodes() if part.node is not None]
    if node.has_side_effects() or any(part.has_side_effects() for part in parts if hasattr(part, "has_side_effects")):
        return True
    return any(
        isinstance(origin, fx.Node) and (communicates(origin) or draws_random_state(origin)) for origin in origins_of(node)
    )
