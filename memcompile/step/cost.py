"""What a node costs: FLOPs through ``torch.utils.flop_counter``, bytes, and a roofline of the device.

The unit of all durations is the second. Only ratios matter to the planner; they decide which storage is the cheapest to make
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.utils import flop_counter

from memcompile.machine.device import DeviceModel
from memcompile.solvers.tiling.problem import Prices
from memcompile.step.fxutil import hint, is_view, op_name, tensors_of

# Relative price of one element, in plain multiply-adds. Measured on AVX2 and AVX-512 CPUs through generated C++ (a fused
# kernel of the op alone against one of an add, both compute bound); random numbers are made by scalar Philox rounds there.
_EXPENSIVE = {
    "exp": 8.0,
    "log": 10.0,
    "tanh": 16.0,
    "erf": 12.0,
    "sigmoid": 12.0,
    "pow": 16.0,
    "rsqrt": 4.0,
    "sqrt": 4.0,
    "div": 3.0,
    "sin": 16.0,
    "cos": 16.0,
    "inductor_random": 60.0,
}


STARTS = 4
"""Calls of the size of ``launch_overhead_s`` that it takes to run one operator of a tile: views, padding, the kernel."""
FRESH_BYTES = 32 << 20
"""Blocks of at least that size glibc asks the system for each time (``M_MMAP_THRESHOLD_MAX``): all pages are new."""
SMALL_SHARE = 0.25
"""How fast convolutions of a tile are, as a share of the large one that was measured."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Node -> seconds and bytes, from one device's numbers."""

    device: DeviceModel

    def node_seconds(self, node: fx.Node) -> float:
        """Arithmetic of the node alone; the memory traffic belongs to the kernel it is fused into."""
        if node.op != "call_function" or node.target is getitem or is_view(node):
            return 0.0
        outputs = tensors_of(node)
        if not outputs:
            return 0.0
        flops = flops_of(node)
        if flops:
            return flops / (self.device.flops(outputs[0].dtype) * self._speed(node))
        weight = _EXPENSIVE.get(op_name(node), 1.0)
        elements = max(numel(t) for t in [*outputs, *(t for i in node.all_input_nodes for t in tensors_of(i))])
        return weight * elements / self.device.elements_per_second

    def _speed(self, node: fx.Node) -> float:
        """How fast the node's library kernel is, as a share of a matrix product's FLOP/s."""
        name = op_name(node)
        if name.startswith("convolution"):
            return self.device.convolution_speed
        return self.device.attention_speed if "attention" in name else 1.0

    def kernel_seconds(self, touched_bytes: int) -> float:
        """Memory traffic and launch of one kernel that reads and writes ``touched_bytes``."""
        return touched_bytes / self.device.bandwidth_bytes_per_s + self.device.launch_overhead_s

    @property
    def prices(self) -> Prices:
        """What tiles take beside arithmetic, in multiply-adds of a convolution: of a small one for starts."""
        rate = self.device.flops(torch.float32) * self.device.convolution_speed / 2
        return Prices(
            int(STARTS * self.device.launch_overhead_s * SMALL_SHARE * rate),
            rate * 2 / self.device.bandwidth_bytes_per_s,
            rate * self.device.fresh_memory_s_per_byte,
            FRESH_BYTES,
        )


_EXTERN = frozenset({"convolution", "convolution_backward", "embedding_dense_backward", "index_put", "sort", "topk"})


def is_library_call(node: fx.Node) -> bool:
    """Whether a node without a formula for its FLOPs is a library kernel all the same."""
    return op_name(node) in _EXTERN


def is_extern(node: fx.Node) -> bool:
    """Whether the node is a library kernel: never fused into another one, never in place."""
    return node.op == "call_function" and (has_flops(node) or is_library_call(node))


def numel(tensor: torch.Tensor) -> int:
    """Elements of a (fake) tensor, symbolic sizes at their hints."""
    count = 1
    for length in tensor.shape:
        count *= hint(length)
    return count


def flops_of(node: fx.Node) -> int:
    """Floating-point operations of a node by PyTorch's own formulas, 0 where there is none."""
    formula = _flop_formula(node)
    if formula is None:
        return 0
    args, kwargs = torch.utils._pytree.tree_map(_value, (node.args, node.kwargs))
    return int(formula(*args, **kwargs, out_val=node.meta.get("val")))


def has_flops(node: fx.Node) -> bool:
    """Whether PyTorch has a formula for the floating-point operations of a node: matrix products, convolutions, attention."""
    return _flop_formula(node) is not None


_ATEN = torch.ops.aten
_SAME_FORMULA: dict[object, object] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _ATEN._scaled_dot_product_flash_attention_backward,
}
"""Library kernels that PyTorch has no formula for, and those with the same arithmetic and leading arguments."""


def _flop_formula(node: fx.Node) -> Callable[..., Any] | None:
    target = node.target
    packet = target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target
    return flop_counter.flop_registry.get(_SAME_FORMULA.get(packet, packet)) if node.op == "call_function" else None


def _value(argument: object) -> object:
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else argument
    if isinstance(value, torch.Tensor):
        if all(isinstance(length, int) for length in value.shape):
            return value
        return torch.empty(tuple(map(hint, value.shape)), dtype=value.dtype, device="meta")
    return hint(value) if isinstance(value, torch.SymInt) else value
