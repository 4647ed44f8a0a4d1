"""How many ranks a layer gets: the same share, or the same number, for all layers of a pattern."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from memcompile.errors import InvalidOptionError, RankChoiceError
from memcompile.low_rank.layers import Layer, check_patterns


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for. ``amounts``: by pattern, the first that matches a layer counts; a rank, or a share."""

    kind: str
    amounts: Mapping[str, int | Fraction]

    def amount(self, layer: Layer) -> int | Fraction | None:
        """None for a layer that no pattern matches."""
        return next((value for pattern, value in self.amounts.items() if layer.matches(pattern)), None)


def read_wanted(rank: int | Mapping[str, int] | None, ratio: float | Mapping[str, float] | None) -> Wanted:
    """One of both, checked. Raises `RankChoiceError`, or `InvalidOptionError` for a value that makes no sense."""
    if (rank is None) == (ratio is None):
        raise RankChoiceError(both=rank is not None)
    kind, given = ("rank", rank) if ratio is None else ("ratio", ratio)
    amounts = given if isinstance(given, Mapping) else {"*": given}
    if not amounts:
        raise InvalidOptionError(kind, given, "a mapping from at least one pattern of module names")
    read = _rank if kind == "rank" else _share
    return Wanted(kind, {pattern: read(value) for pattern, value in amounts.items()})


def _rank(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOptionError("rank", value, "a positive whole number, or a mapping from patterns of module names to them")
    return value


def _share(value: object) -> Fraction:
    """The decimal number as written: 0.3 of 10 is 3."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidOptionError(
            "ratio", value, "a number above 0 and up to 1, or a mapping from patterns of module names to them"
        )
    return Fraction(str(float(value)))


def uniform_ranks(layers: Sequence[Layer], wanted: Wanted) -> dict[Layer, int]:
    """The rank of every layer that ``wanted`` speaks of. Raises `NoSuchLayerError` for a pattern without a layer."""
    check_patterns(wanted.kind, wanted.amounts, layers)
    ranks = {}
    for layer in layers:
        amount = wanted.amount(layer)
        if amount is not None:
            ranks[layer] = rank_of(amount, layer.in_features, layer.out_features)
    return ranks


def rank_of(amount: int | Fraction, in_features: int, out_features: int) -> int:
    """A rank as it is; of a share, the largest rank (at least 1) whose factors take no more of the weight's parameters."""
    if isinstance(amount, int):
        return amount
    return max(1, math.floor(amount * in_features * out_features / (in_features + out_features)))


def too_large(rank: int, in_features: int, out_features: int) -> str:
    """Why ``rank`` saves nothing; "" when it does."""
    dense, factored = in_features * out_features, rank * (in_features + out_features)
    return "" if factored < dense else f"rank {rank} would take {factored:,} parameters, the weight has {dense:,}"
