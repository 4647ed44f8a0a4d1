"""What comes into the layers of a model while it runs on sample batches: one Gram matrix for each distinct input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memcompile.errors import CalibrationError
from memcompile.low_rank.layers import Layer

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of one call of the model."""


def as_calls(batches: Iterable[Any]) -> Iterator[Call]:
    """Each batch as a call: a tensor is the one argument, a tuple or list all of them, a mapping those with names."""
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise CalibrationError(f"it is a {type(batches).__name__}, not several batches: write [batch]")
    return map(_as_call, batches)


def _as_call(batch: Any) -> Call:
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), batch
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    raise CalibrationError(
        f"a batch is a {type(batch).__name__}: give a tensor, a tuple for model(*batch) or a dict for model(**batch)"
    )


def collect_grams(model: nn.Module, layers: Sequence[Layer], calls: Iterable[Call]) -> dict[Layer, Tensor]:
    """``X.T @ X`` ``[in, in]`` in float64 of all rows X that come into each of ``layers`` while ``model`` runs.

    Runs eagerly, without gradients, in evaluation mode; hooks and training flags are as before when it returns or raises.
    Layers that read the same tensors share one matrix. Those that nothing reaches, or zeros alone, are not in the answer.
    Raises `CalibrationError` when there is no batch, or when an input is not finite.
    """
    inputs = _Inputs()
    count = 0
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_evaluation(model))
        for layer in layers:
            handle = layer.module.register_forward_pre_hook(inputs.observer(layer), with_kwargs=True)
            stack.callback(handle.remove)
        for args, kwargs in calls:
            model(*args, **kwargs)
            count += 1
    if not count:
        raise CalibrationError("it holds no batch (an iterator that was read before is empty)")
    for layer, gram in inputs.grams.items():
        if not bool(gram.matrix.isfinite().all()):
            raise CalibrationError(f"what comes into {layer.names[0]!r} is not finite: look for NaN or overflow in the batches")
    return {layer: gram.matrix for layer, gram in inputs.grams.items() if bool(gram.matrix.any())}


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@dataclass(frozen=True, slots=True, eq=False)
class _Gram:
    """The sum over the tensors that some layers saw, never written to: layers with one history hold one object."""

    matrix: Tensor


class _Inputs:
    """The Gram matrix of each layer so far.

    ``after``: where the histories go that have seen the tensor ``latest``, so that layers which read the same tensor one after
    the other (query, key and value; gate and up) cost one product and keep one matrix.
    """

    def __init__(self) -> None:
        self.grams: dict[Layer, _Gram] = {}
        self.latest: Tensor | None = None
        self.version = -1
        self.product: Tensor | None = None
        self.after: dict[_Gram | None, _Gram] = {}

    def observer(self, layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """A forward pre-hook that adds what comes into ``layer``."""

        def observe(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.add(layer, args[0] if args else next(iter(kwargs.values())))

        return observe

    def add(self, layer: Layer, x: Tensor) -> None:
        """One more tensor ``[..., in]`` for ``layer``."""
        version = -1 if x.is_inference() else x._version  # an inference tensor does not say whether it was written to
        if x is not self.latest or version < 0 or version != self.version:
            rows = x.detach().reshape(-1, x.shape[-1]).double()
            self.latest, self.version, self.product, self.after = x, version, rows.T @ rows, {}
        before = self.grams.get(layer)
        if before not in self.after:
            assert self.product is not None
            self.after[before] = _Gram(self.product if before is None else before.matrix + self.product)
        self.grams[layer] = self.after[before]
