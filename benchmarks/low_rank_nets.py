"""Layers with factored weights, as their users write them: nothing here knows that a compiler will run them block by block.

Those whose weight is one matrix have ``to_linear``, the dense layer of the same weight.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcompile import LowRankLinear

EYE_ROWS = 256
"""Rows of the identity that go through a layer at a time to read its matrix off."""


@runtime_checkable
class Factored(Protocol):
    """A layer whose weight is one matrix."""

    def to_linear(self) -> nn.Linear:
        """The dense layer of the same weight."""


def densified(module: nn.Module) -> nn.Module:
    """``module`` with its factored layers as dense ones, in place; what it returns takes its place."""
    if isinstance(module, Factored):
        return module.to_linear()
    for name, child in module.named_children():
        setattr(module, name, densified(child))
    return module


def _as_linear(layer: nn.Module, in_features: int) -> nn.Linear:
    """The dense layer of a linear map, read off from what it does to the identity."""
    parameter = next(layer.parameters())
    eye = torch.eye(in_features, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        weight = torch.cat([layer(rows) for rows in torch.split(eye, EYE_ROWS)]).T.contiguous()
    linear = nn.Linear(in_features, len(weight), bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    return linear


class FeedForward(nn.Module):
    """(..., width) -> (..., width): expand, GELU, contract."""

    def __init__(self, width: int, hidden: int, rank: int) -> None:
        super().__init__()
        self.expand = LowRankLinear(width, hidden, rank)
        self.contract = LowRankLinear(hidden, width, rank)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.contract(F.gelu(self.expand(x)))
        return y


class GatedFeedForward(nn.Module):
    """SwiGLU without biases, (..., width) -> (..., width)."""

    def __init__(self, width: int, hidden: int, rank: int) -> None:
        super().__init__()
        self.gate = LowRankLinear(width, hidden, rank, bias=False)
        self.up = LowRankLinear(width, hidden, rank, bias=False)
        self.down = LowRankLinear(hidden, width, rank, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Attention(nn.Module):
    """(B, L, width) -> (B, L, width): low-rank queries, keys, values and output."""

    def __init__(self, width: int, heads: int, rank: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (LowRankLinear(width, width, rank) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y: Tensor = self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class Residual(nn.Module):
    """norm(x + inner(x))."""

    def __init__(self, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x + self.inner(x))
        return y


class WithLoss(nn.Module):
    """The mean squared distance of ``inner(x)`` to a target, in fp32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self.inner(x).float(), target.float())


class Lora(nn.Module):
    """A frozen linear layer and adapters beside it: base(x) + up(down(x)) * scale for each."""

    def __init__(self, in_features: int, out_features: int, rank: int, adapters: int, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = scale
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.down = nn.ModuleList(nn.Linear(in_features, rank, bias=False) for _ in range(adapters))
        self.up = nn.ModuleList(nn.Linear(rank, out_features, bias=False) for _ in range(adapters))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        for down, up in zip(self.down, self.up, strict=True):
            y = y + up(down(x)) * self.scale
        return y

    def to_linear(self) -> nn.Linear:
        """The adapters merged into the base, in place."""
        with torch.no_grad():
            for down, up in zip(self.down, self.up, strict=True):
                self.base.weight += self.scale * (up.weight @ down.weight)  # type: ignore[operator]
        return self.base


class Monarch(nn.Module):
    """Two block-diagonal factors with a permutation between them (Dao et al. 2022), (..., in) -> (..., out).

    ``blocks`` blocks on either side, ``rank`` features of each in the middle. Feature i of the first factor's output goes to
    block i mod ``blocks`` of the second, and feature j of its block l comes out at j * ``blocks`` + l.
    """

    def __init__(self, in_features: int, out_features: int, blocks: int, rank: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.first = _factor(blocks, rank, in_features // blocks)
        self.second = _factor(blocks, out_features // blocks, rank)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        blocked = rows.view(len(rows), self.blocks, -1).transpose(0, 1)
        middle = torch.bmm(blocked, self.first.transpose(1, 2)).transpose(0, 1).reshape(len(rows), -1, self.blocks)
        out = torch.bmm(middle.transpose(1, 2).contiguous().transpose(0, 1), self.second.transpose(1, 2))
        return out.permute(1, 2, 0).reshape(*x.shape[:-1], -1)

    def to_linear(self) -> nn.Linear:
        """The matrix that the factors make."""
        return _as_linear(self, self.blocks * self.first.shape[2])


class Blast(nn.Module):
    """Blocks U_i diag(s_ij) V_j that share their factors by row and column (Lee et al. 2024), (..., in) -> (..., out)."""

    def __init__(self, in_features: int, out_features: int, blocks: int, rank: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.first = _factor(blocks, rank, in_features // blocks)
        self.scales = _factor(blocks, blocks, rank, fan_in=blocks)
        self.second = _factor(blocks, out_features // blocks, rank)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        blocked = rows.view(len(rows), self.blocks, -1).transpose(0, 1)
        inner = torch.bmm(blocked, self.first.transpose(1, 2))
        mixed = (inner.unsqueeze(0) * self.scales.unsqueeze(2)).sum(1)
        return torch.bmm(mixed, self.second.transpose(1, 2)).transpose(0, 1).reshape(*x.shape[:-1], -1)

    def to_linear(self) -> nn.Linear:
        """The matrix that the blocks make."""
        return _as_linear(self, self.blocks * self.first.shape[2])


def _factor(*shape: int, fan_in: int = 0) -> nn.Parameter:
    """Random, of a variance that keeps that of what it is multiplied with; ``fan_in``: the last size unless given."""
    return nn.Parameter(torch.randn(shape) / math.sqrt(fan_in or shape[-1]))
