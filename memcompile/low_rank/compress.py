"""`memcompile.compress`: choose layers and ranks, find all factors, and only then replace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from memcompile.low_rank.calibration import Call, as_calls, collect_grams
from memcompile.low_rank.factor import decompose
from memcompile.low_rank.layers import Choice, Layer, choose, dense_weight
from memcompile.low_rank.linear import LowRankLinear
from memcompile.low_rank.ranks import Wanted, read_wanted, too_large, uniform_ranks
from memcompile.low_rank.report import CompressionReport, LayerCompression

Found = tuple[LowRankLinear | None, LayerCompression]
"""What replaces a layer (None: nothing), and its row of the report."""


def compress(
    model: nn.Module,
    *,
    rank: int | Mapping[str, int] | None = None,
    ratio: float | Mapping[str, float] | None = None,
    layers: Choice = None,
    calibration: Iterable[Any] | None = None,
) -> CompressionReport:
    """See `memcompile.compress`."""
    calls = None if calibration is None else as_calls(calibration)
    return compress_calls(model, read_wanted(rank, ratio), layers, calls)


def compress_calls(model: nn.Module, wanted: Wanted, choice: Choice, calls: Iterable[Call] | None) -> CompressionReport:
    """`compress` with its arguments read."""
    model = getattr(model, "_orig_mod", model)
    ranks = uniform_ranks(choose(model, choice), wanted)
    reasons = {layer: layer.refused or too_large(rank, layer.in_features, layer.out_features) for layer, rank in ranks.items()}
    open_layers = [layer for layer, reason in reasons.items() if not reason]
    grams = None if calls is None else collect_grams(model, open_layers, calls)
    found = {
        layer: _left_alone(layer, reason) if reason else _factored(layer, ranks[layer], grams)
        for layer, reason in reasons.items()
    }
    before = _parameters(model)
    _replace(model, {layer: new for layer, (new, _) in found.items() if new is not None})
    return CompressionReport(tuple(row for _, row in found.values()), before, _parameters(model))


def _left_alone(layer: Layer, reason: str) -> Found:
    size = layer.in_features * layer.out_features
    return None, LayerCompression(layer.names[0], layer.in_features, layer.out_features, None, size, size, reason=reason)


def _factored(layer: Layer, rank: int, grams: Mapping[Layer, Tensor] | None) -> Found:
    gram = None if grams is None else grams.get(layer)
    factors = decompose(dense_weight(layer.module), gram).truncated(rank)
    row = LayerCompression(
        layer.names[0],
        layer.in_features,
        layer.out_features,
        rank,
        layer.in_features * layer.out_features,
        rank * (layer.in_features + layer.out_features),
        factors.energy_kept,
        factors.output_error,
        factors.weight_error,
        reason="" if grams is None or gram is not None else "calibration does not reach it (plain SVD)",
    )
    return LowRankLinear.from_factors(layer.module, factors), row


def _replace(model: nn.Module, new: Mapping[Layer, LowRankLinear]) -> None:
    """Each module at all of its names."""
    for layer, module in new.items():
        for name in layer.names:
            model.set_submodule(name, module)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
