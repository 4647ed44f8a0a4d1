"""Lowered code that takes its buffers from an arena: allocation lines become calls of the arena's slots.

    memcompile_lease, memcompile_slots = memcompile_enter('0', 'forward', ())
    buf0 = memcompile_slots[0]()

Which slots lie in the arena is only known once both halves are lowered; the code is the same either way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from memcompile.runtime.arena import Slot
from memcompile.step.fxutil import communicates


def arena_refusal(graph: Any) -> str:
    """Why the lowered code of a graph cannot use an arena; empty when it can."""
    if graph.cpp_wrapper:
        return "the lowered code is a C++ wrapper"
    if torch._inductor.config.triton.cudagraphs:
        return "CUDA graphs keep a memory pool of their own"
    if any(communicates(node) for node in graph.graph.nodes):
        return "collectives read their buffers while other kernels run"
    if any(not _static(value.get_size()) for value in graph.graph_inputs.values() if hasattr(value, "get_size")):
        return "dynamic shapes: sizes are not known before the call"
    return ""


def use_slots(
    wrapper: Any, graph: Any, key: str, half: str, device: torch.device, provider: str = "memcompile.runtime.arena"
) -> tuple[Slot, ...]:
    """Rewrite a wrapper's planned lines; returns the slots in the order in which the code numbers them.

    ``provider``: the module whose ``enter`` the code calls.
    """
    slots: list[Slot] = []
    lines: list[Any] = []
    for line in wrapper.lines:
        slot = _slot(line, graph, device) if type(line).__name__ == "AllocateLine" else None
        if slot is not None:
            line = f"{slot.name} = memcompile_slots[{len(slots)}]()"
            slots.append(slot)
        lines.append(line)
    if not slots:
        return ()
    received = "".join(f"{name}, " for name in _received(graph)) if half == "backward" else ""
    enter = f"memcompile_lease, memcompile_slots = memcompile_enter({key!r}, {half!r}, ({received}))"
    wrapper.lines = [enter, *lines]
    wrapper.header.writeline(f"from {provider} import enter as memcompile_enter")
    return tuple(slots)


def _received(graph: Any) -> list[str]:
    return [name for name, value in graph.graph_inputs.items() if hasattr(value, "get_layout")]


def _slot(line: Any, graph: Any, device: torch.device) -> Slot | None:
    """None for what stays as it is: communication buffers, pinned memory, other devices, padded allocations."""
    node = line.node
    if node.get_name() in graph.removed_buffers or getattr(line, "comm_buffer", False) or not hasattr(node, "get_layout"):
        return None
    size, stride = node.get_size(), node.get_stride()
    if node.get_device() != device or node.get_is_pinned() or not _static((*size, *stride)):
        return None
    if tuple(graph.get_allocation_size(node)) != tuple(size):
        return None
    return Slot(node.get_name(), tuple(map(int, size)), tuple(map(int, stride)), node.get_dtype())


def _static(values: Iterable[Any]) -> bool:
    return all(getattr(value, "is_number", isinstance(value, int)) for value in values)
