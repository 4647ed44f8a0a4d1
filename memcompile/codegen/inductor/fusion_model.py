"""What Inductor will materialise, predicted from the FX graph alone: no lowering.

The prediction is a ``GraphTrace`` like that of lowered code, so facts, peaks and calibration read either. Three steps, as in
Inductor: which values get a buffer as the graph is read (``torch/_inductor/graph.py:run_node``, ``ir.StorageBox``); which of
their kernels are fused (``fusion_groups.py``), after which a buffer that only its own kernel reads is gone; and the order in
which buffers come and go.

It is a model: on small transformers and convolutional nets its peak lies within a few percent of the lowered one
(``tests/codegen/inductor/test_fusion_model.py``). Where lowering is affordable, lower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import getitem
from typing import cast

import torch
from torch import fx

from memcompile.codegen.inductor.accumulate import MM_ADD
from memcompile.codegen.inductor.fusion_groups import FusionKernel, Loops, Reads, fuse
from memcompile.codegen.inductor.scratch import scratch_bytes
from memcompile.step.cost import has_flops, is_library_call
from memcompile.step.facts import UNPLANNED, Planned
from memcompile.step.fxutil import (
    base_of,
    hint,
    is_pure,
    is_symbol,
    is_view,
    node_bytes,
    op_name,
    output_names,
    outputs_of,
    source_of,
    tensors_of,
)
from memcompile.step.trace import Event, GraphTrace, TracedBuffer
from memcompile.streaming.program import PROGRAMS, padded_workspace

REUSED_READS = 4
"""Reads from which a value with several readers gets a buffer (``realize_reads_threshold``)."""
ACCUMULATED_READS = 12
"""Reads from which any value gets a buffer (``realize_cpu_acc_reads_threshold``)."""
INLINED_OPS = 50
"""Ops from which a value gets a buffer (``realize_cpu_opcount_threshold``)."""
_HEAVY = frozenset({"exp", "log", "log10", "log1p", "log2", "sigmoid", "tanh"})
"""Ops that the CPU never repeats for a second reader (``ir.StorageBox.should_realize_on_reuse``)."""
_REDUCTIONS = frozenset(
    {"sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "prod", "any", "all", "var", "var_mean", "std"}
    | {"xor_sum", "logsumexp"}
)
_ALWAYS = frozenset({"inductor_random", "inductor_seeds", "inductor_randint", "cat", "bucketize"})
"""Pointwise code whose result always gets a buffer."""
_SCATTERS = frozenset({"index_put", "scatter", "scatter_add", "scatter_reduce", "_unsafe_index_put"})
_POINTWISE = frozenset(
    {"clone", "_to_copy", "copy", "expand", "full", "full_like", "zeros_like", "ones_like", "empty", "iota", "scalar_tensor"}
    | {"convert_element_type", "inductor_lookup_seed", "embedding", "index", "_unsafe_index", "gather", "index_select"}
    | {"constant_pad_nd", "slice_scatter", "select_scatter", "flip", "roll", "tril", "triu", "where", "arange", "fma"}
    | {"_low_memory_max_pool_with_offsets", "_low_memory_max_pool_offsets_to_indices", "max_pool2d_with_indices_backward"}
    | {"upsample_nearest2d", "avg_pool2d", "avg_pool2d_backward", "_adaptive_avg_pool2d", "reflection_pad2d", "repeat"}
    | {"prepare_softmax_online", "_unsafe_masked_index", "masked_fill", "bernoulli", "new_zeros", "permute", "rev"}
)


@dataclass(slots=True)
class _Value:
    """What a node stands for: a buffer of its own, or an expression over ``reads`` of ``ops`` operations."""

    reads: Reads
    ops: frozenset[fx.Node] = frozenset()
    heavy: bool = False
    buffer: fx.Node | None = None


def predict(graph: fx.Graph, plan: Planned = UNPLANNED) -> GraphTrace:
    """The trace that lowering ``graph`` would give, as far as it can be told from the graph. ``plan``: what lowering keeps."""
    lowering = _Lowering(graph, plan.stored)
    lowering.run()
    recomputed = {index for index, kernel in enumerate(lowering.kernels) if kernel.root.name in plan.recomputed}
    return _Emitter(graph, lowering, fuse(lowering.kernels, recomputed if plan is not UNPLANNED else None)).trace()


@dataclass(slots=True)
class _Lowering:
    """Reads a graph in order and gives buffers to values, as ``GraphLowering.run_node`` does."""

    graph: fx.Graph
    stored: frozenset[str]
    values: dict[fx.Node, _Value] = field(default_factory=dict)
    kernels: list[FusionKernel] = field(default_factory=list)
    outputs: frozenset[fx.Node] = frozenset()

    def run(self) -> None:
        for node in self.graph.nodes:
            match node.op:
                case "placeholder" | "get_attr":
                    self.values[node] = _Value(frozenset({node}), buffer=node)
                case "call_function":
                    self._call(node)
                    if node.name in self.stored and addend_of(node) is None:
                        self._realize(node)
                case "output":
                    held = [out for out in node.args[0] if isinstance(out, fx.Node)]
                    for out in held:
                        self._realize(out)
                    self.outputs = frozenset(b for out in held if (b := self.values[out].buffer) is not None)

    def _call(self, node: fx.Node) -> None:
        if is_symbol(node):
            self.values[node] = _Value(frozenset())
        elif node.target is getitem:
            self.values[node] = self._item(node)
        elif is_view(node):
            self.values[node] = self.values[node.all_input_nodes[0]]
        elif addend_of(node) is not None:
            self.values[node] = _Value(self._reads(node))  # computed by the addition that follows
        elif not is_fused(node) or product_of(node) is not None:
            self._run_alone(node)
        else:
            self._inline(node)

    def _item(self, node: fx.Node) -> _Value:
        source = self.values[node.all_input_nodes[0]]
        if source.buffer is not None and not is_view(node) and node_bytes(node):
            kernel = next((k for k in reversed(self.kernels) if k.root is source.buffer), None)
            if kernel is not None:
                kernel.results.append(node)
            return _Value(frozenset({node}), buffer=node)
        return source

    def _run_alone(self, node: fx.Node) -> None:
        """A library kernel: what it reads needs buffers, and so does what it writes."""
        product = product_of(node)
        for source in node.all_input_nodes:
            for operand in source.all_input_nodes if source is product else (source,):
                self._realize(operand)
            if source is product:
                self.values[source] = _Value(self._reads(source))
        self._make(node, self._reads(node), None)

    def _inline(self, node: fx.Node) -> None:
        reads, ops = self._reads(node), frozenset({node})
        heavy = op_name(node) in _HEAVY
        for source in node.all_input_nodes:
            value = self.values[source]
            if value.buffer is None:
                ops |= value.ops
                heavy = heavy or value.heavy
        value = self.values[node] = _Value(reads, ops, heavy)
        name = op_name(node)
        if name in _REDUCTIONS or name in _ALWAYS or not isinstance(node.meta.get("val"), torch.Tensor):
            self._make(node, reads, loops_of(node))
            return
        users = len(node.users)
        shared = users > 1 and (heavy or len(ops) > INLINED_OPS or len(reads) > REUSED_READS)
        returned = users > 1 and any(user.op == "output" for user in node.users) and bool(reads)
        wanted = users > 1 and len(reads) > 1 and any(_needs_buffer(user) for user in node.users)
        crowded = len(reads) > 1 and (len(reads) > ACCUMULATED_READS or len(ops) > INLINED_OPS)
        if shared or returned or wanted or crowded or len(ops) > 2 * INLINED_OPS:
            self._realize(node)

    def _reads(self, node: fx.Node) -> Reads:
        return frozenset().union(*(self.values[source].reads for source in node.all_input_nodes))

    def _realize(self, node: fx.Node) -> None:
        """Give the value behind ``node`` (maybe a view) a buffer."""
        base = base_of(node)
        value = self.values[base]
        if value.buffer is None and node_bytes(base):
            self._make(base, value.reads, loops_of(base))
        self.values[node] = self.values[base]

    def _make(self, node: fx.Node, reads: Reads, loops: Loops | None) -> None:
        self.kernels.append(FusionKernel(node, reads, loops))
        value = self.values[node] = _Value(frozenset({node}), buffer=node)
        # Views were given the expression before it had a buffer.
        stack = list(node.users)
        while stack:
            user = stack.pop()
            if user in self.values and is_view(user) and self.values[user].buffer is None:
                self.values[user] = value
                stack += user.users


@dataclass(slots=True)
class _Emitter:
    """Kernels in their order -> allocations, kernels and frees."""

    graph: fx.Graph
    lowering: _Lowering
    groups: list[list[FusionKernel]]
    events: list[Event] = field(default_factory=list)
    buffers: dict[str, TracedBuffer] = field(default_factory=dict)

    def trace(self) -> GraphTrace:
        last: dict[fx.Node, int] = {}
        for index, group in enumerate(self.groups):
            last.update((node, index) for node in _all_reads(group))
        placeholders = self.graph.find_nodes(op="placeholder")
        dies: dict[int, list[fx.Node]] = {}
        for node, index in last.items():
            if node not in self.lowering.outputs and node.op != "get_attr":
                dies.setdefault(index, []).append(node)
        for index, group in enumerate(self.groups):
            self._run(index, group, dies.get(index, ()), last)
        outputs = tuple(self._output(out) for out in outputs_of(self.graph))
        inputs = tuple((node.name, node_bytes(node)) for node in placeholders)
        return GraphTrace(inputs, outputs, output_names(self.graph), (None,) * len(outputs), tuple(self.events), self.buffers)

    def _run(self, index: int, group: list[FusionKernel], dying: Iterable[fx.Node], last: dict[fx.Node, int]) -> None:
        own = {node for kernel in group for node in kernel.written()}
        free = [node for node in dying if node not in own]
        root, is_loops = group[0].root, group[0].loops is not None
        over = _written_over(root)
        reusable = {n: node_bytes(n) for n in free if n.op == "call_function" and (is_loops or n in over)}
        made = []
        for kernel in group:
            for node in kernel.written():
                if node in self.lowering.outputs or last.get(node, -1) > index or kernel.loops is None:
                    self._alloc(node, reusable, free)
                    made.append(node)
        name, scratch = group[-1].root.name, max(_beside(kernel.root) for kernel in group)
        self.events += [Event("workspace", name, scratch)] if scratch else []
        self.events.append(Event("kernel", name))
        unread = [node for node in made if node not in self.lowering.outputs and last.get(node, -1) <= index]
        self.events += [Event("free", node.name) for node in (*free, *unread)]

    def _alloc(self, node: fx.Node, reusable: dict[fx.Node, int], free: list[fx.Node]) -> None:
        size = node_bytes(node)
        self.buffers[node.name] = TracedBuffer(node.name, size, (node.name,), source_of(node))
        base = next((source for source, held in reusable.items() if held == size), None)
        if base is None:
            self.events.append(Event("alloc", node.name, size))
            return
        del reusable[base]
        free.remove(base)
        self.events += [Event("alias", node.name, base=base.name), Event("free", base.name)]

    def _output(self, out: object) -> str:
        value = self.lowering.values.get(out) if isinstance(out, fx.Node) else None
        return value.buffer.name if value is not None and value.buffer is not None else ""


def _written_over(root: fx.Node) -> set[fx.Node]:
    """Operands that a library kernel writes its results over."""
    if root.target is MM_ADD:
        return {base_of(root.all_input_nodes[0])}
    if root.target is not torch.ops.memcompile.stream_rows.default:
        return set()
    key, operands = cast("tuple[str, list[fx.Node]]", root.args)
    return {base_of(operands[index]) for index in PROGRAMS[key].in_place if index is not None}


def _beside(root: fx.Node) -> int:
    """Bytes alive only while a kernel runs: scratch, and the workspace of a program of blocks or tiles."""
    if root.target is torch.ops.memcompile.stream_rows.default:
        program = PROGRAMS[cast("str", root.args[0])]
        return padded_workspace(program) + program.scratch_bytes
    return scratch_bytes(root)


def _all_reads(group: list[FusionKernel]) -> Iterator[fx.Node]:
    for kernel in group:
        yield from kernel.reads


def is_fused(node: fx.Node) -> bool:
    """Whether Inductor generates the code of a node itself: pointwise code, gathers and reductions."""
    name = op_name(node)
    if name in _SCATTERS or is_library_call(node) or has_flops(node) or not tensors_of(node) or not is_pure(node):
        return False
    pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return pointwise or name in _REDUCTIONS or name in _POINTWISE or name in _ALWAYS or name.startswith("prims")


def addend_of(product: fx.Node) -> fx.Node | None:
    """The addition that Inductor merges a matrix product into (``addmm``), if there is one."""
    user = next(iter(product.users), None)
    return user if user is not None and product_of(user) is product else None


def product_of(addition: fx.Node) -> fx.Node | None:
    """The matrix product that Inductor merges into an addition, if there is one."""
    if addition.target is not torch.ops.aten.add.Tensor or "alpha" in addition.kwargs or len(addition.all_input_nodes) < 2:
        return None
    for product in addition.all_input_nodes:
        if product.target is torch.ops.aten.mm.default and len(product.users) == 1:
            other = next(node for node in addition.all_input_nodes if node is not product)
            same = node_bytes(product) == node_bytes(addition)
            if same and (not other.meta["val"].is_cuda or not all(map(is_fused, addition.users))):
                return product
    return None


def _needs_buffer(user: fx.Node) -> bool:
    return user.op == "call_function" and not is_view(user) and user.target is not getitem and not is_fused(user)


def loops_of(node: fx.Node) -> Loops:
    """The loops that compute a node: over its elements, and for a reduction over what it reduces."""
    outputs = tensors_of(node)
    shape = tuple(hint(length) for length in outputs[0].shape)
    if op_name(node) not in _REDUCTIONS:
        return Loops(shape, ())
    source = tensors_of(node.all_input_nodes[0])[0]
    lengths = tuple(hint(length) for length in source.shape)
    dims = _reduced(node, len(lengths))
    kept = tuple(length for dim, length in enumerate(lengths) if dim not in dims)
    return Loops(kept, tuple(lengths[dim] for dim in sorted(dims)))


def _reduced(node: fx.Node, rank: int) -> set[int]:
    """Dimensions that a reduction of a tensor of so many dimensions runs over; a scalar may be reduced over its dimension 0."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if rank and isinstance(dims, int):
        return {dims % rank}
    if rank and isinstance(dims, (list, tuple)) and dims:
        return {int(dim) % rank for dim in dims if isinstance(dim, int)}
    return set(range(rank))
