"""What stays in memory of a model on the meta device: read from the checkpoint or, where none has it, made by the model itself.

Buffers that are not persistent (frequencies of rotary embeddings, positions) are in no checkpoint. Models of transformers make
them in ``_init_weights``, as `from_pretrained` asks them to; other modules, by PyTorch's convention, in ``reset_parameters``.
Either works on a shadow of the module, whose other tensors are on the meta device: nothing else is touched, and what was not
written is known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memcompile.errors import CheckpointError, OffloadError
from memcompile.offload.checkpoint import TensorPlace, same_bytes

Read = Callable[[str, TensorPlace], Tensor]
"""The tensor of that name and place, on the model's device."""
_FIX = (
    "Set them before, model.get_submodule({owner!r}).{name} = ..., or build the model with its buffers in memory, as "
    "accelerate.init_empty_weights() does; a class of your own can make them in reset_parameters()."
)


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a tensor is: ``own``, the parameters or buffers of ``module``, at ``key``."""

    name: str
    module: nn.Module
    own: dict[str, Tensor | None]
    key: str

    def is_saved(self) -> bool:
        """Whether a state dict has it."""
        return self.own is self.module._parameters or self.key not in self.module._non_persistent_buffers_set


def materialise(
    model: nn.Module,
    leaving: Collection[tuple[nn.Module, str]],
    places: dict[str, TensorPlace] | None,
    checkpoint: Path | str | None,
    device: torch.device,
    read: Read,
) -> None:
    """Give values to what is on the meta device and is not ``leaving``. Raises `CheckpointError` and `OffloadError`, and has
    then changed nothing."""
    made: list[tuple[list[_Spot], Tensor]] = []
    lost: list[_Spot] = []
    for tensor, spots in _on_meta(model, leaving):
        name = spots[0].name
        if not any(spot.is_saved() for spot in spots):
            value = next((value for spot in spots if (value := _made_by(model, spot)) is not None), None)
            lost += spots[:1] if value is None else []
        else:
            if places is None:
                raise OffloadError(f"{name!r} is on the meta device, it has no values", "Name a checkpoint with its weights.")
            place = place_of(model, [spot.name for spot in spots], places, checkpoint)
            if place.shape != tuple(tensor.shape):
                reason = f"{name!r} has the shape {list(place.shape)}, not {list(tensor.shape)}"
                raise CheckpointError(checkpoint or "", reason)
            value = read(name, place)
        if value is not None:
            value = value.to(device, tensor.dtype)
            made.append((spots, nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value))
    if lost:
        names = ", ".join(repr(spot.name) for spot in lost)
        reason = (
            f"no checkpoint has the values of {names}, on the meta device and not persistent, and the model does not make them"
        )
        raise OffloadError(reason, _FIX.format(owner=lost[0].name.rpartition(".")[0], name=lost[0].key))
    for spots, value in made:
        for spot in spots:
            spot.own[spot.key] = value


def place_of(
    model: nn.Module, names: Sequence[str], places: dict[str, TensorPlace], checkpoint: Path | str | None
) -> TensorPlace:
    """Where the checkpoint has a tensor, by any of its names. Raises `CheckpointError` for one that it does not have, or has
    several of."""
    found = [(name, places[name]) for name in names if name in places]
    if not found:
        again = "model.tie_weights()" if callable(getattr(model, "tie_weights", None)) else "model.a.weight = model.b.weight"
        tie = f"accelerate.init_empty_weights() breaks ties: if it is tied to another parameter, tie them again, {again}"
        raise CheckpointError(checkpoint or "", f"it has no tensor {names[0]!r} ({tie})")
    first, place = found[0]
    for name, other in found[1:]:
        if not same_bytes(place, other):
            reason = f"{first!r} and {name!r} are tied in the model, and differ there (untie them: tie_word_embeddings=False)"
            raise CheckpointError(checkpoint or "", reason)
    return place


def _on_meta(model: nn.Module, leaving: Collection[tuple[nn.Module, str]]) -> Iterator[tuple[Tensor, list[_Spot]]]:
    """Each tensor once, tied ones with all of their names."""
    found: dict[int, tuple[Tensor, list[_Spot]]] = {}
    for prefix, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is not None and tensor.device.type == "meta" and (module, key) not in leaving:
                    spot = _Spot(f"{prefix}.{key}" if prefix else key, module, own, key)
                    found.setdefault(id(tensor), (tensor, []))[1].append(spot)
    yield from found.values()


def _made_by(model: nn.Module, spot: _Spot) -> Tensor | None:
    """The buffer as the model makes it, on the CPU; None where nothing does."""
    path = spot.name.split(".")[:-1]
    above: list[Any] = [model.get_submodule(".".join(path[:length])) for length in range(len(path), -1, -1)]
    makers: list[Callable[[Any], object]] = [each._init_weights for each in above if _is_of_transformers(each)][:1]
    if hasattr(spot.module, "reset_parameters"):
        makers.append(lambda shadow: shadow.reset_parameters())
    for make in makers:
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            shadow = _shadow(spot.module)
            before = shadow._buffers[spot.key] = torch.empty_like(_buffer(shadow, spot.key), device="cpu")
            version = before._version
            try:
                make(shadow)
            except RuntimeError:  # it reads a tensor that is on the meta device
                continue
            made = _buffer(shadow, spot.key)
        if made.device.type == "cpu" and (made is not before or made._version > version):
            return made
    return None


def _is_of_transformers(module: nn.Module) -> bool:
    return any(cls.__name__ == "PreTrainedModel" for cls in type(module).__mro__)


def _buffer(module: nn.Module, key: str) -> Tensor:
    buffer = module._buffers[key]
    assert buffer is not None
    return buffer


def _shadow(module: nn.Module) -> nn.Module:
    """A copy of the module with all tensors on the meta device."""
    tensors = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors
    }
    return copy.deepcopy(module, memo)
