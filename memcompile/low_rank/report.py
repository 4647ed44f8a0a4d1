"""What became of each layer: plain data, and its way to JSON. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memcompile.machine.codec import encode


@dataclass(frozen=True, slots=True)
class LayerCompression:
    """One linear layer. ``rank`` is None when it was left alone; ``reason`` says why, or how else it differs from the others.

    Parameters are those of the weight, without bias. ``energy_kept``: share of the squared singular values (of the weight, or
    with calibration of the output) that the rank keeps. Errors are Frobenius norms, with the factors as they are stored, as a
    share of the weight's, and of the output's (without its bias) on the calibration batches.
    """

    name: str
    in_features: int
    out_features: int
    rank: int | None
    parameters_before: int
    parameters_after: int
    energy_kept: float | None = None
    output_error: float | None = None
    weight_error: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """All layers that were asked for, in the order of the model. ``model_parameters_*``: of the whole model, tied ones once."""

    layers: tuple[LayerCompression, ...]
    model_parameters_before: int
    model_parameters_after: int

    @property
    def compressed(self) -> tuple[LayerCompression, ...]:
        """The layers that were replaced."""
        return tuple(layer for layer in self.layers if layer.rank is not None)

    @property
    def left_alone(self) -> tuple[LayerCompression, ...]:
        """The layers that were not, each with its reason."""
        return tuple(layer for layer in self.layers if layer.rank is None)

    @property
    def ranks(self) -> Mapping[str, int]:
        """Name -> rank of what was replaced: ``compress(model, rank=report.ranks)`` gives another copy the same layers."""
        return {layer.name: layer.rank for layer in self.layers if layer.rank is not None}

    @property
    def parameters_before(self) -> int:
        """Of the weights of ``layers``."""
        return sum(layer.parameters_before for layer in self.layers)

    @property
    def parameters_after(self) -> int:
        """Of what stands in their place."""
        return sum(layer.parameters_after for layer in self.layers)

    def __str__(self) -> str:
        from memcompile.low_rank.table import render
        from memcompile.report.terminal import plain_text

        return plain_text(render(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        totals = {"parameters_before": self.parameters_before, "parameters_after": self.parameters_after}
        return {**totals, **encode(self)}

    def to_json(self) -> str:
        """`to_dict` as indented JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
