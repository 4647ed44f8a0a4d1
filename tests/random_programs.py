"""Random programs: operations drawn from a seed, as networks."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

N = 8

UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sin,
    torch.tanh,
    torch.sigmoid,
    lambda t: nn.functional.gelu(t) + t.relu(),
    lambda t: (t * 0.1).exp(),
    lambda t: t.softmax(1),
    lambda t: nn.functional.layer_norm(t, (N,)),
    lambda t: t - t.mean(0, keepdim=True),
    lambda t: t.amax(1, keepdim=True) * t,
    lambda t: t.cumsum(0) / N,
    lambda t: t.t().contiguous(),
    lambda t: t.reshape(2, N // 2, N).permute(2, 0, 1).reshape(N, N),
    lambda t: torch.cat([t[:, N // 2 :], t[:, : N // 2]], 1),
    lambda t: torch.where(t > 0.2, t, t * 0.5),
    lambda t: t.clone().mul_(0.5).add_(1),
    lambda t: t.unbind(0)[1].expand(N, N) + t,
    lambda t: torch.stack(t.chunk(2, 1), 0).flatten(1).view(N, N),
    lambda t: nn.functional.dropout(t, 0.3),
    lambda t: nn.functional.dropout(t.cos(), 0.5) * t,
    lambda t: t + torch.rand_like(t),
)
BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add,
    torch.mul,
    torch.sub,
    torch.matmul,
    lambda a, b: (a @ b).tanh(),
    lambda a, b: torch.maximum(a, b),
)
RANDOM = (17, 18, 19)
"""Places in ``UNARY`` of the operations that draw random numbers."""


class Program(nn.Module):
    """Operations drawn from ``seed``; the newest values are used most. Returns the loss and a hidden value."""

    def __init__(self, seed: int, length: int = 14, with_random: bool = True) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.weights = nn.ParameterList(torch.randn(N, N) / N**0.5 for _ in range(3))
        self.offsets = nn.ParameterList(torch.randn(N) for _ in range(2))
        unary = [i for i in range(len(UNARY)) if with_random or i not in RANDOM]
        self.steps: list[tuple[str, int, int, int]] = []
        for made in range(1, length + 1):
            recent = max(0, made - 4)
            source, other = draw.randrange(recent, made), draw.randrange(made)
            kind = draw.choice(("unary", "unary", "binary", "weight", "offset"))
            choice = {"unary": draw.choice(unary), "binary": draw.randrange(len(BINARY)), "weight": draw.randrange(3)}
            self.steps.append((kind, choice.get(kind, draw.randrange(2)), source, other))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = [x]
        for kind, choice, source, other in self.steps:
            value = values[source]
            if kind == "unary":
                values.append(UNARY[choice](value))
            elif kind == "binary":
                values.append(BINARY[choice](value, values[other]))
            elif kind == "weight":
                values.append(value @ self.weights[choice])
            else:
                values.append(value * self.offsets[choice] + value)
        return values[-1].pow(2).mean() + values[-2].sin().mean(), values[len(values) // 2] * 1.5


class Wide(Program):
    """The same programs on many rows: memory is in the activations."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the loss alone
        return super().forward(x.view(-1, N, N).mean(0) + x[:N])[0] + (x * 2).sin().tanh().exp().sum() / x.shape[0]
