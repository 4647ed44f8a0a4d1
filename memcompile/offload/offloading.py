"""`memcompile.offload_parameters`: parameters leave memory one by one, and each attribute becomes a read."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

import memcompile.runtime.transfers.operators  # noqa: F401 - the operators
from memcompile.errors import CheckpointError, InvalidOptionError, OffloadError
from memcompile.offload.checkpoint import TensorPlace, find_place, read_checkpoint
from memcompile.offload.modules import replace_parameter, restore_parameters
from memcompile.offload.staying import materialise, place_of
from memcompile.runtime.transfers.held import TICKET, new_ticket, offloaded_weights
from memcompile.runtime.transfers.weight import Weight, new_weight
from memcompile.runtime.transfers.weight_files import WeightFile
from memcompile.runtime.transfers.weight_store import HOST_FIX, FilePlace, PinnedWeights, WeightFiles, read

Which = Callable[[str, nn.Parameter], bool] | Iterable[str] | None
"""Glob patterns of parameter names, or a function of name and parameter; None: all."""
Tier = Literal["disk", "host"]


@dataclass(eq=False)
class Offloaded:
    """What was offloaded of a model. Leaving a ``with`` block restores it.

    ``bytes``: of the weights; tied ones count once. The file of the weights lives as long as the model.
    """

    names: tuple[str, ...]
    bytes: int
    tier: str
    _model: weakref.ref[nn.Module]

    def restore(self) -> None:
        """Read every parameter back into memory, as it was; tied ones stay tied. May be called again."""
        model = self._model()
        if model is None:
            raise OffloadError("the model is gone, and its weights with it", "Keep the model to restore it.")
        made: dict[Weight, nn.Parameter] = {}

        def value_of(weight: Weight) -> nn.Parameter:
            if weight not in made:
                weight.store.residents.drop()
                made[weight] = nn.Parameter(read(weight, devices[weight]), requires_grad=False)
            return made[weight]

        found = offloaded_weights(model)
        devices = {w: _ticket_device(module) for module, weights in found.items() for w in weights.values()}
        for module in found:
            restore_parameters(module, value_of)

    def __enter__(self) -> Offloaded:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._model() is not None:
            self.restore()


def offload(
    model: nn.Module, tier: Tier, directory: Path | str | None, checkpoint: Path | str | None, which: Which
) -> Offloaded:
    """See `memcompile.offload_parameters`."""
    model = getattr(model, "_orig_mod", model)
    if tier not in ("disk", "host"):
        raise InvalidOptionError("tier", tier, "'disk' or 'host'")
    chosen = _chosen(model, which)
    places = None if checkpoint is None else read_checkpoint(checkpoint)
    device = _check(model, chosen, tier, places, checkpoint)
    make = _on_disk(directory, places) if tier == "disk" else _on_host(places)
    disk, leaving = WeightFiles(), {owner for _, owners, _ in chosen for owner in owners}

    def value(name: str, place: TensorPlace) -> Tensor:
        return _value(name, place, disk, FilePlace(disk.open(place.path), place.offset), device)

    materialise(model, leaving, places, checkpoint, device, value)
    ticket = new_ticket(device)
    size_bytes = 0
    for names, owners, parameter in chosen:
        weight = make(names, parameter)
        size_bytes += weight.size_bytes
        for module, name in owners:
            replace_parameter(module, name, weight, ticket)
    return Offloaded(tuple(names[0] for names, _, _ in chosen), size_bytes, tier, weakref.ref(model))


Chosen = tuple[tuple[str, ...], list[tuple[nn.Module, str]], "_Parameter"]


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter in a box: what iterates over them holds none alive."""

    of: Callable[[], nn.Parameter]


def _chosen(model: nn.Module, which: Which) -> list[Chosen]:
    """The parameters to offload: all of their names, where they are, and how to get them."""
    patterns = () if which is None or callable(which) else (which,) if isinstance(which, str) else tuple(which)
    used: set[str] = set()

    def wanted(name: str, parameter: nn.Parameter) -> bool:
        if which is None:
            return True
        if callable(which):
            return bool(which(name, parameter))
        matching = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        used.update(matching)
        return bool(matching)

    groups: dict[int, tuple[list[str], list[tuple[nn.Module, str]], bool]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            names, owners, take = groups.get(id(parameter), ([], [], False))
            names.append(full)
            owners.append((module, name))
            groups[id(parameter)] = (names, owners, take or wanted(full, parameter))
    unused = [pattern for pattern in patterns if pattern not in used]
    if unused:
        raise OffloadError(f"no parameter is called {unused[0]!r}", "Names are those of model.named_parameters().")
    found = [(tuple(names), owners, _Parameter(_getter(*owners[0]))) for names, owners, take in groups.values() if take]
    if not found:
        raise OffloadError("there is no parameter to offload", "Are they offloaded already?")
    return found


def _getter(module: nn.Module, name: str) -> Callable[[], nn.Parameter]:
    def get() -> nn.Parameter:
        parameter = module._parameters[name]
        assert parameter is not None
        return parameter

    return get


def _check(
    model: nn.Module, chosen: list[Chosen], tier: Tier, places: dict[str, TensorPlace] | None, checkpoint: Path | str | None
) -> torch.device:
    """Everything that can be refused, before anything is changed. The device that the model runs on."""
    devices: set[torch.device] = set()
    for names, owners, box in chosen:
        parameter = box.of()
        devices |= {parameter.device} if parameter.device.type != "meta" else set()
        for module, _ in owners:
            if isinstance(module, nn.RNNBase):
                kind = type(module).__name__
                raise OffloadError(f"{names[0]!r} belongs to {kind}", "It keeps its parameters in a list: leave it out.")
        if type(parameter) is not nn.Parameter or parameter.layout is not torch.strided:
            kind = type(parameter).__name__
            raise OffloadError(f"{names[0]!r} is a {kind}, not a plain dense parameter", "Leave it out (parameters=...).")
        if model.training and parameter.requires_grad:
            raise OffloadError(
                f"{names[0]!r} requires a gradient and the model is in training mode: offloaded parameters cannot be trained",
                "Call model.eval() for inference, or freeze it with requires_grad_(False).",
            )
        if places is not None:
            _check_place(model, names, parameter, places, checkpoint)
        elif parameter.device.type == "meta":
            raise OffloadError(f"{names[0]!r} is on the meta device, it has no values", "Name a checkpoint with its weights.")
    if len(devices) > 1:
        raise OffloadError(f"parameters are on several devices: {sorted(map(str, devices))}", "Offload a model on one device.")
    device = next(iter(devices), torch.device("cpu" if tier == "disk" else "cuda"))
    if tier == "host" and (device.type != "cuda" or not torch.cuda.is_available()):
        raise OffloadError(f"the model is on the {device.type}", HOST_FIX)
    return device


def _check_place(
    model: nn.Module, names: tuple[str, ...], parameter: Tensor, places: dict[str, TensorPlace], checkpoint: Path | str | None
) -> None:
    place = place_of(model, names, places, checkpoint)
    if place.shape != tuple(parameter.shape):
        raise CheckpointError(checkpoint or "", f"{names[0]!r} has the shape {list(place.shape)}, not {list(parameter.shape)}")
    if place.dtype != parameter.dtype:
        reason = f"{names[0]!r} is {place.dtype} there and {parameter.dtype} in the model (cast it: model.to({place.dtype}))"
        raise CheckpointError(checkpoint or "", reason)


Make = Callable[[tuple[str, ...], _Parameter], Weight]


def _on_disk(directory: Path | str | None, places: dict[str, TensorPlace] | None) -> Make:
    store = WeightFiles()
    if places is not None:
        files = {path: store.open(path) for path in sorted({place.path for place in places.values()})}

        def found(names: tuple[str, ...], _box: _Parameter) -> Weight:
            place = find_place(names, places)
            assert place is not None
            return new_weight(names[0], place.shape, place.dtype, store, FilePlace(files[place.path], place.offset))

        return found
    own: list[WeightFile] = [store.own_file(Path(directory or tempfile.gettempdir()).expanduser().absolute())]

    def written(names: tuple[str, ...], box: _Parameter) -> Weight:
        value = box.of().detach()
        offset = own[0].append(value.cpu().contiguous())
        return new_weight(names[0], tuple(value.shape), value.dtype, store, FilePlace(own[0], offset))

    return written


def _on_host(places: dict[str, TensorPlace] | None) -> Make:
    store, disk = PinnedWeights(), WeightFiles()
    files = {path: disk.open(path) for path in sorted({place.path for place in (places or {}).values()})}

    def pinned(names: tuple[str, ...], box: _Parameter) -> Weight:
        place = find_place(names, places) if places is not None else None
        if place is None:
            value = box.of().detach()
        else:
            value = _value(names[0], place, disk, FilePlace(files[place.path], place.offset), torch.device("cpu"))
        return new_weight(names[0], tuple(value.shape), value.dtype, store, store.pin(value))

    return pinned


def _value(name: str, place: TensorPlace, disk: WeightFiles, at: FilePlace, device: torch.device) -> Tensor:
    return read(Weight("", name, place.shape, place.dtype, disk, at), device)


def _ticket_device(module: nn.Module) -> torch.device:
    ticket = module._buffers[TICKET]
    assert ticket is not None
    return ticket.device
