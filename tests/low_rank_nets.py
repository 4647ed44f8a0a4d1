"""Low-rank layers in the spellings that people write: the zoo of the low-rank tests and benchmarks.

Each is a module made from `Sizes`; ``NETS`` names them, ``example`` makes their input [batch, tokens, width]. Weights are scaled
so that activations stay of order one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """``width`` of the model, ``hidden`` width of the layer, ``rank`` of its factors, ``head_rank`` of one attention head's."""

    batch: int = 2
    tokens: int = 32
    width: int = 16
    hidden: int = 48
    rank: int = 4
    heads: int = 2
    head_rank: int = 3
    blocks: int = 4

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


def example(sizes: Sizes, dtype: torch.dtype = torch.float32) -> Tensor:
    """The input of every net."""
    return torch.randn(sizes.batch, sizes.tokens, sizes.width, dtype=dtype)


def weight(*shape: int) -> nn.Parameter:
    """A random matrix (or several) that keeps the scale of what it is multiplied with."""
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-2]))


class LinearPair(nn.Module):
    """nn.Linear to the rank, nn.Linear to the hidden width."""

    def __init__(self, sizes: Sizes, bias: bool = False) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(sizes.width, sizes.rank, False), nn.Linear(sizes.rank, sizes.hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x))
        return y


class LinearPairBias(LinearPair):
    """The same with a bias."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, bias=True)


class Factors(nn.Module):
    """x @ U @ V + b."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.u, self.v = weight(sizes.width, sizes.rank), weight(sizes.rank, sizes.hidden)
        self.s, self.b = nn.Parameter(torch.rand(sizes.rank)), nn.Parameter(torch.randn(sizes.hidden))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.u @ self.v + self.b


class SingularValues(Factors):
    """(x @ U) * S @ V."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.u) * self.s @ self.v


class Materialised(Factors):
    """x @ (U @ V): the product of the factors is made first."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.u @ self.v)


class MaterialisedLinear(Factors):
    """F.linear with (U @ V)^T as weight, and a bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.v.t() @ self.u.t(), self.b)


class Einsum(Factors):
    """Two einsums."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bnr,rh->bnh", torch.einsum("bnd,dr->bnr", x, self.u), self.v)


class BatchOfOne(Factors):
    """torch.bmm of one pair of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(1, -1, x.shape[-1])
        return torch.bmm(torch.bmm(rows, self.u[None]), self.v[None]).view(*x.shape[:-1], -1)


class PerHead(nn.Module):
    """A projection with factors of its own for every head: [B, N, D] -> [B, H, N, head]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.u = weight(sizes.width, sizes.heads * sizes.head_rank)
        self.v = weight(sizes.heads, sizes.head_rank, sizes.head)

    def forward(self, x: Tensor) -> Tensor:
        ranks: Any = torch.einsum("bnd,dr->bnr", x, self.u)
        ranks = ranks.unflatten(-1, (self.v.shape[0], -1))
        return torch.einsum("bnhr,hrd->bhnd", ranks, self.v)


class FeedForward(nn.Module):
    """FlashSVD's FFN: both layers factored, GELU between."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Linear(sizes.width, sizes.rank, False), nn.Linear(sizes.rank, sizes.hidden))
        self.down = nn.Sequential(nn.Linear(sizes.hidden, sizes.rank, False), nn.Linear(sizes.rank, sizes.width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


class SwiGLU(nn.Module):
    """A gated FFN with low-rank gate, up and down."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        wide = LinearPair(sizes), LinearPair(sizes)
        self.gate, self.up = wide
        self.down = nn.Sequential(nn.Linear(sizes.hidden, sizes.rank, False), nn.Linear(sizes.rank, sizes.width, False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class LoRA(nn.Module):
    """A frozen nn.Linear with ``adapters``: each adds scale * x A^T B^T."""

    def __init__(self, sizes: Sizes, adapters: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = nn.Linear(sizes.width, sizes.hidden).requires_grad_(False)
        self.a = nn.ModuleList(nn.Linear(sizes.width, sizes.rank, False) for _ in range(adapters))
        self.b = nn.ModuleList(nn.Linear(sizes.rank, sizes.hidden, False) for _ in range(adapters))
        self.scale, self.dropout = 16 / sizes.rank, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        for a, b in zip(self.a, self.b, strict=True):
            y = y + b(a(self.dropout(x))) * self.scale
        return y


class LoRATwice(LoRA):
    """Two adapters on one layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, adapters=2)


class LoRADropout(LoRA):
    """Dropout before the adapter. In eval mode it is written as a copy."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, dropout=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.base(x) + self.b[0](self.a[0](x.clone())) * self.scale


class LoRALearnedScale(LoRA):
    """The scale is a parameter without dimensions: its gradient needs the unscaled product."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.learned = nn.Parameter(torch.tensor(self.scale))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.b[0](self.a[0](x)) * self.learned
        return y


class Attention(nn.Module):
    """Query, key and value projected by per-head factors, head by head of rank ``head_rank``."""

    causal = False

    def __init__(self, sizes: Sizes, bias: bool = True) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.u = nn.ModuleList(nn.Linear(sizes.width, sizes.heads * sizes.head_rank, False) for _ in range(3))
        self.v = nn.ParameterList(weight(sizes.heads, sizes.head_rank, sizes.head) for _ in range(3))
        self.b = nn.ParameterList(torch.randn(sizes.heads, 1, sizes.head) for _ in range(3)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._project(x, index) for index in range(3))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return mixed.transpose(1, 2).flatten(2)

    def _project(self, x: Tensor, index: int) -> Tensor:
        ranks = self.u[index](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        full = torch.matmul(ranks, self.v[index])
        return full if self.b is None else full + self.b[index]


class CausalAttention(Attention):
    """The same, each token sees those before it; no biases."""

    causal = True

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, bias=False)


class EinsumAttention(nn.Module):
    """Causal attention whose heads einsum makes: the factors are not repeated for each of the batch."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = nn.ModuleList(PerHead(sizes) for _ in range(3))
        self.b = nn.ParameterList(torch.randn(sizes.heads, 1, sizes.head) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(x) + b for heads, b in zip(self.heads, self.b, strict=True))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Monarch(nn.Module):
    """Two block-diagonal products with a permutation between them (Dao et al., 2022)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        b = sizes.blocks
        self.first = weight(b, sizes.width // b, sizes.rank)
        self.second = weight(b, sizes.rank, sizes.hidden // b)

    def forward(self, x: Tensor) -> Tensor:
        b, rank = self.first.shape[0], self.first.shape[2]
        rows = x.reshape(-1, x.shape[-1])
        blocks = rows.view(rows.shape[0], b, -1).transpose(0, 1)
        mixed = torch.bmm(blocks, self.first).transpose(0, 1).reshape(rows.shape[0], rank, b)
        mixed = mixed.transpose(1, 2).contiguous().transpose(0, 1)
        out = torch.bmm(mixed, self.second).permute(1, 2, 0)
        return out.reshape(*x.shape[:-1], -1)


class BLAST(nn.Module):
    """Blocks U_i diag(s_ij) V_j with factors shared by rows and columns of blocks (Lee et al., 2024)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        b = sizes.blocks
        self.v = weight(b, sizes.width // b, sizes.rank)
        self.s = nn.Parameter(torch.rand(b, b, 1, sizes.rank))
        self.u = weight(b, sizes.rank, sizes.hidden // b)

    def forward(self, x: Tensor) -> Tensor:
        b = self.v.shape[0]
        rows = x.reshape(-1, b, x.shape[-1] // b).transpose(0, 1)
        ranks = torch.bmm(rows, self.v)
        coupled = (ranks.unsqueeze(0) * self.s).sum(1)
        return torch.bmm(coupled, self.u).transpose(0, 1).reshape(*x.shape[:-1], -1)


class SLTrain(nn.Module):
    """A weight of scaled low-rank factors plus a few values at fixed places (Han et al., 2024)."""

    places: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.b, self.a = weight(sizes.hidden, sizes.rank), weight(sizes.rank, sizes.width)
        count = sizes.hidden * sizes.width // 20
        self.register_buffer("places", torch.randperm(sizes.hidden * sizes.width)[:count])
        self.values = nn.Parameter(torch.randn(count) / 10)

    def forward(self, x: Tensor) -> Tensor:
        dense = self.b @ self.a * 2.0
        sparse = torch.zeros_like(dense).flatten().scatter_add(0, self.places, self.values).view_as(dense)
        return F.linear(x, dense + sparse)


NETS: dict[str, Callable[[Sizes], nn.Module]] = {
    net.__name__: net
    for net in (
        *(LinearPair, LinearPairBias, Factors, SingularValues, Materialised, MaterialisedLinear, Einsum, BatchOfOne, PerHead),
        *(FeedForward, SwiGLU, LoRA, LoRATwice, LoRADropout, LoRALearnedScale, Attention, CausalAttention, EinsumAttention),
        *(Monarch, BLAST, SLTrain),
    )
}
