"""A linear layer whose weight is a product of two thin matrices."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcompile.errors import InvalidOptionError
from memcompile.low_rank.factor import Factors, decompose
from memcompile.low_rank.layers import dense_weight


class LowRankLinear(nn.Module):
    """``y = (x @ first.T) @ second.T + bias``: x ``[..., in_features]`` -> y ``[..., out_features]``.

    ``first`` is ``[rank, in_features]``, ``second`` is ``[out_features, rank]``: ``rank * (in + out)`` parameters instead of
    ``in * out``.
    """

    first: nn.Parameter
    second: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.first = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.second = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random factors; outputs have the variance that those of a new `nn.Linear` have."""
        nn.init.uniform_(self.first, -math.sqrt(3 / self.in_features), math.sqrt(3 / self.in_features))
        nn.init.uniform_(self.second, -1 / math.sqrt(self.rank), 1 / math.sqrt(self.rank))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    @classmethod
    def from_linear(cls, linear: nn.Module, rank: int, gram: Tensor | None = None) -> LowRankLinear:
        """The best layer of ``rank`` in place of an `nn.Linear` (or transformers' ``Conv1D``), which stays as it is.

        ``gram``: ``X.T @ X`` ``[in, in]`` of the inputs that its output should be right for, see `factor.decompose`. Keeps
        device, dtype, ``requires_grad``, the training flag and the very bias.
        """
        weight = dense_weight(linear)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(weight.shape):
            raise InvalidOptionError("rank", rank, f"a whole number from 1 to {min(weight.shape)}")
        return cls.from_factors(linear, decompose(weight, gram).truncated(rank))

    @classmethod
    def from_factors(cls, linear: nn.Module, factors: Factors) -> LowRankLinear:
        """A layer of ``factors`` with the bias and the flags of ``linear``."""
        (rank, in_features), out_features = factors.first.shape, factors.second.shape[0]
        weight: Tensor = linear.weight  # type: ignore[assignment]
        layer = cls(in_features, out_features, rank, bias=False, device="meta")
        layer.first = nn.Parameter(factors.first, requires_grad=weight.requires_grad)
        layer.second = nn.Parameter(factors.second, requires_grad=weight.requires_grad)
        layer.register_parameter("bias", linear.bias)  # type: ignore[arg-type]
        return layer.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """``second @ first`` ``[out_features, in_features]``, made anew: for code that reads the weights of its layers."""
        return self.second @ self.first

    def to_linear(self) -> nn.Linear:
        """The dense layer of the same weight, with the very bias."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        weight = (self.second.detach().double() @ self.first.detach().double()).to(self.first.dtype)
        linear.weight = nn.Parameter(weight, requires_grad=self.first.requires_grad)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Two products, which a compiler sees as ``x @ U @ V``."""
        return F.linear(F.linear(x, self.first), self.second, self.bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in the brackets."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
        return f"{sizes}, bias={self.bias is not None}"
