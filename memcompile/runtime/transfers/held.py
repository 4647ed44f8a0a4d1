"""What a module whose parameters became reads holds of its weights, and the ticket by which their reads are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from memcompile.runtime.transfers.weight import Weight
from memcompile.runtime.transfers.weight_store import Residents

TICKET = "_offload_ticket"
KEYS = "_offload_keys"
WEIGHTS_OF = "_offload_weights"
_MARK = 0x6D656D636F6D7069
"""The value of each ticket."""


def new_ticket(device: torch.device) -> Tensor:
    """What a model's reads take: on the device on which weights are wanted."""
    return torch.full((1,), _MARK, dtype=torch.int64, device=device)


def is_ticket(tensor: Tensor) -> bool:
    """Whether it is a model's ticket: such an input belongs to its model, like a parameter. A fake tensor is none."""
    plain = type(tensor) is Tensor and tensor.dtype == torch.int64 and tuple(tensor.shape) == (1,)
    return plain and int(tensor) == _MARK


class Held:
    """The weights of one module by the names of its parameters. Copies of the module share them: they are not written to."""

    def __init__(self) -> None:
        self.weights: dict[str, Weight] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return self


def offloaded_weights(model: nn.Module) -> dict[nn.Module, dict[str, Weight]]:
    """The weights of each module that has some."""
    found = {module: module.__dict__.get(WEIGHTS_OF) for module in model.modules()}
    return {module: held.weights for module, held in found.items() if held is not None}


def resident_tensors(model: nn.Module) -> list[Tensor]:
    """Weights of the model that are in memory now, between calls."""
    stores: dict[int, Residents] = {}
    for weights in offloaded_weights(model).values():
        stores.update((id(weight.store.residents), weight.store.residents) for weight in weights.values())
    return [tensor for residents in stores.values() for tensor in residents.tensors()]
