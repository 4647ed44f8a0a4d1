"""A parameter becomes a read: its module gets a subclass whose attribute of that name calls ``memcompile::fetch``.

As ``torch.nn.utils.parametrize`` does it. The module holds its weights; all modules of a model share one ticket.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memcompile.errors import OffloadError
from memcompile.runtime.transfers.held import KEYS, TICKET, WEIGHTS_OF, Held
from memcompile.runtime.transfers.weight import Weight
from memcompile.runtime.transfers.weight_store import read

_ORDER = "_offload_order"


def replace_parameter(module: nn.Module, name: str, weight: Weight, ticket: Tensor) -> None:
    """From now on ``module.name`` reads ``weight``."""
    if WEIGHTS_OF not in module.__dict__:
        module.__dict__[_ORDER] = list(module._parameters)
        module.__dict__[WEIGHTS_OF], module.__dict__[KEYS] = Held(), {}
        module.register_buffer(TICKET, ticket, persistent=False)
    module.__dict__[WEIGHTS_OF].weights[name] = weight
    module.__dict__[KEYS][name] = weight.key
    del module._parameters[name]
    module.__class__ = _class_for(_base(module), tuple(sorted(module.__dict__[KEYS])))


def restore_parameters(module: nn.Module, value_of: Callable[[Weight], nn.Parameter]) -> None:
    """The module as it was, with the parameters that ``value_of`` makes of its weights."""
    held: Held = module.__dict__.pop(WEIGHTS_OF)
    order: list[str] = module.__dict__.pop(_ORDER)
    del module.__dict__[KEYS], module._buffers[TICKET]
    module._non_persistent_buffers_set.discard(TICKET)
    module.__class__ = plain_class(module)
    found = {**module._parameters, **{name: value_of(weight) for name, weight in held.weights.items()}}
    module._parameters.clear()
    names = [*(name for name in order if name in found), *(name for name in found if name not in order)]
    module._parameters.update((name, found[name]) for name in names)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that the user wrote."""
    return getattr(type(module), "_offload_base", type(module))


@functools.cache
def _class_for(base: Any, names: tuple[str, ...]) -> type[nn.Module]:
    members: dict[str, Any] = {name: _reading(name) for name in names}
    members |= {
        "_offload_base": base,
        "_save_to_state_dict": _save,
        "_load_from_state_dict": _load,
        "_apply": _apply,
        "__module__": base.__module__,
    }
    return type(f"Offloaded{base.__name__}", (base,), members)


def _base(module: nn.Module) -> Any:
    """The user's class, with the methods that torch keeps to itself."""
    return plain_class(module)


def _reading(name: str) -> property:
    def fetch(self: nn.Module) -> Tensor:
        return torch.ops.memcompile.fetch(self._offload_ticket, self._offload_keys[name])  # type: ignore[no-any-return, index]

    return property(fetch)


def _save(self: nn.Module, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
    """Into a state dict, read now: all of the weights are in memory then."""
    _base(self)._save_to_state_dict(self, destination, prefix, keep_vars)
    device = self._buffers[TICKET].device  # type: ignore[union-attr]
    for name, weight in self.__dict__[WEIGHTS_OF].weights.items():
        destination[prefix + name] = read(weight, device)


def _load(
    self: nn.Module,
    state_dict: Mapping[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    base = _base(self)
    base._load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
    for name, weight in self.__dict__[WEIGHTS_OF].weights.items():
        key = prefix + name
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        value = state_dict.get(key)
        if value is None:
            missing_keys += [key] if strict else []
        elif tuple(value.shape) != weight.shape:
            error_msgs.append(f"size mismatch for {key}: {list(value.shape)} in the checkpoint, {list(weight.shape)} here")
        else:
            weight.store.write(weight, value.to(weight.dtype))


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """A move to another device moves the ticket, and with it where weights are read to. A cast is refused."""
    for weight in self.__dict__[WEIGHTS_OF].weights.values():
        found = fn(torch.empty(0, dtype=weight.dtype))
        if found.dtype != weight.dtype:
            raise OffloadError(
                f"{weight.name!r} is offloaded as {weight.dtype} and cannot become {found.dtype}",
                "Cast the model first, then offload its parameters.",
            )
    moved: nn.Module = _base(self)._apply(self, fn, recurse)
    return moved
