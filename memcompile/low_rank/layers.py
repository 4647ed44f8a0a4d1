"""The linear layers of a model: which are asked for, which can be replaced, and why the others cannot."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from memcompile.errors import InvalidOptionError, NoSuchLayerError

Choice = str | Iterable[str] | Callable[[str, nn.Module], bool] | None
"""Glob patterns of module names, a predicate of name and module, or None for every linear layer."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A linear layer. ``names``: all of them, for a module that has several. ``refused``: why it is left alone, else ""."""

    names: tuple[str, ...]
    module: nn.Module
    in_features: int
    out_features: int
    refused: str

    def matches(self, pattern: str) -> bool:
        """Whether one of its names does."""
        return any(fnmatchcase(name, pattern) for name in self.names)


def dense_weight(linear: nn.Module) -> Tensor:
    """The weight as ``[out, in]``, of an `nn.Linear` or of transformers' ``Conv1D``, which holds it as ``[in, out]``."""
    weight: Tensor = linear.weight.detach()  # type: ignore[operator]
    return weight.T if _is_conv1d(linear) else weight


def choose(model: nn.Module, choice: Choice = None) -> list[Layer]:
    """The linear layers of ``model`` that ``choice`` names, in its order. Raises `NoSuchLayerError` when it names none."""
    layers = linear_layers(model)
    if callable(choice):
        chosen = [layer for layer in layers if any(choice(name, layer.module) for name in layer.names)]
        if not chosen:
            raise NoSuchLayerError("layers", "the predicate", patterns_of(layers))
        return chosen
    if not layers:
        raise NoSuchLayerError("layers", "*", ())
    if choice is None:
        return layers
    patterns = [choice] if isinstance(choice, str) else list(choice)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidOptionError("layers", choice, "None, glob patterns of module names, or a function of (name, module)")
    check_patterns("layers", patterns, layers)
    return [layer for layer in layers if any(layer.matches(pattern) for pattern in patterns)]


def check_patterns(option: str, patterns: Iterable[str], layers: Sequence[Layer]) -> None:
    """Raises `NoSuchLayerError` for the first pattern that matches none of ``layers``."""
    for pattern in patterns:
        if not any(layer.matches(pattern) for layer in layers):
            raise NoSuchLayerError(option, pattern, patterns_of(layers))


def patterns_of(layers: Sequence[Layer]) -> tuple[str, ...]:
    """The names of ``layers`` with numbers as stars, each once: "model.layers.*.mlp.up_proj"."""
    return tuple(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for layer in layers for name in layer.names))


def linear_layers(model: nn.Module) -> list[Layer]:
    """Every `nn.Linear` (and subclass) and ``Conv1D`` in ``model``; a module with several names once."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear) or _is_conv1d(module):
            names.setdefault(module, []).append(name)
    owners = _owners(model)
    return [
        Layer(tuple(found), module, *_features(module), refused=_refusal(module, found[0], owners))
        for module, found in names.items()
    ]


def _is_conv1d(module: nn.Module) -> bool:
    """By structure, so that transformers need not be imported: ``nf`` outputs, a weight of ``[in, nf]``."""
    if not any(cls.__name__ == "Conv1D" for cls in type(module).__mro__):
        return False
    weight, outputs = getattr(module, "weight", None), getattr(module, "nf", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[1] == outputs


def _features(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    in_features, out_features = module.weight.shape  # type: ignore[misc]
    return int(in_features), int(out_features)


Owners = Mapping[tuple[object, ...], list[str]]
"""The modules that hold a tensor in the same memory: by device and address, the names of module and tensor."""


def _owners(model: nn.Module) -> Owners:
    owners: dict[tuple[object, ...], list[str]] = {}
    for prefix, module in model.named_modules():
        held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, name in {_memory(tensor): name for name, tensor in reversed(held)}.items():
            owners.setdefault(key, []).append(f"{prefix}.{name}".lstrip("."))
    return owners


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors in the same storage. Those without an address (wrappers, meta, empty) are only equal to themselves."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError, ValueError):  # uninitialised, or a subclass without storage
        address = 0
    return (tensor.device, address) if address else (id(tensor),)


def _refusal(module: nn.Module, name: str, owners: Owners) -> str:
    """Why ``module`` is left alone; "" when nothing speaks against replacing it."""
    if not name:
        return "it is the model itself, which cannot be replaced in place: LowRankLinear.from_linear makes one of it"
    if is_parametrized(module):
        return "it is parametrised"
    if type(module) is not nn.Linear and type(module).__name__ != "Conv1D":
        return f"it is a {type(module).__name__}, which may compute something else"
    if hooks := sorted(key for key, value in vars(module).items() if "hook" in key and isinstance(value, Mapping) and value):
        return f"it has hooks ({', '.join(key.strip('_') for key in hooks)}), which would be lost"
    if "forward" in vars(module):
        return "its forward was replaced"
    weight, bias = module.weight, module.bias
    for kind, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and type(tensor) is not nn.Parameter:
            return f"its {kind} is a {type(tensor).__name__}, not a plain parameter"
    held = {key for key, _ in [*module.named_parameters(), *module.named_buffers()]} - {"weight", "bias"}
    if held:
        return f"it also holds {', '.join(sorted(held))}"
    assert isinstance(weight, Tensor)
    if weight.dtype not in DTYPES:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}"
    if weight.is_meta:
        return "its weight has no values: it is on the meta device"
    own = f"{name}.weight"
    if others := [other for other in owners[_memory(weight)] if other != own]:
        return f"its weight is shared with {', '.join(others)}"
    if not bool(weight.detach().isfinite().all()):
        return "its weight holds values that are not finite"
    return ""
