"""Small programs of every kind that a budget may meet: each makes a model, its inputs, and a step that trains or infers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Net:
    """``make()``: the module and its inputs. ``training``: whether the step has a backward. ``accumulates``: gradients of a
    step before it are alive. ``breaks``: the step is several graphs."""

    name: str
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
    training: bool = True
    accumulates: bool = False
    breaks: bool = False


class MLP(nn.Module):
    def __init__(self, width: int = 32, layers: int = 5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x)) * x.sigmoid()
        return x.pow(2).mean()


class Attention(nn.Module):
    """A block with dropout where it usually is."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = F.dropout((q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(-1), 0.1, self.training)
        x = x + F.dropout(self.out((scores @ v).transpose(1, 2).reshape(batch, length, width)), 0.1, self.training)
        x = x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), 0.1, self.training)
        return x.pow(2).mean()


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 16, 16]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        loss: Tensor = self.head(x.mean((2, 3))).logsumexp(1).mean()
        return loss


class Recurrent(nn.Module):
    """An unrolled LSTM."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.gates, self.again = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = torch.zeros_like(x[0])
        for step in x:
            i, f, g, o = (self.gates(step) + self.again(hidden)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return hidden.pow(2).sum()


class Checkpointed(MLP):
    """Its layers in ``torch.utils.checkpoint``."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(lambda y, layer=layer: F.gelu(layer(y)) * y.sigmoid(), x, use_reentrant=False)
        return x.pow(2).mean()


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self, words: int = 128, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(words, width), nn.Linear(width, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for _ in range(3):
            hidden = hidden + torch.tanh(self.inner(hidden))
        return F.cross_entropy(self.head(hidden).flatten(0, 1), targets.flatten())


class Broken(MLP):
    """Two graphs: layers, a graph break, layers and the loss."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:3]:
            x = F.gelu(layer(x)) * x.sigmoid()
        torch._dynamo.graph_break()
        for layer in self.layers[3:]:
            x = F.gelu(layer(x)) * x.sigmoid()
        return x.pow(2).mean()


class BrokenLoss(nn.Module):
    """Two graphs: a language model, and its loss."""

    def __init__(self, words: int = 256, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.layers = nn.Embedding(words, width), MLP(width, 4).layers
        self.head = nn.Linear(width, words)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = F.gelu(layer(x)) * x.sigmoid()
        logits = self.head(x)
        torch._dynamo.graph_break()
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Mutating(nn.Module):
    """Inference that writes a buffer."""

    cache: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inner = MLP(width, 4).layers
        self.register_buffer("cache", torch.zeros(512, width))

    def forward(self, x: Tensor) -> Tensor:
        total = x
        for layer in self.inner:
            x = F.gelu(layer(x))
            total = total + x.sin() * x
        self.cache.add_(total)
        return total.mean(0)


def _seeded(make: Callable[[], nn.Module], *inputs: Callable[[], Tensor]) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    def made() -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(0)
        return make(), tuple(one() for one in inputs)

    return made


def rows() -> Tensor:
    return torch.randn(512, 32)


def tokens(words: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, words, (8, 32))


NETS: tuple[Net, ...] = (
    Net("mlp", _seeded(MLP, rows)),
    Net("attention", _seeded(Attention, lambda: torch.randn(4, 64, 32))),
    Net("convolutions", _seeded(Convolutions, lambda: torch.randn(4, 3, 32, 32))),
    Net("recurrent", _seeded(Recurrent, lambda: torch.randn(8, 64, 16))),
    Net("checkpointed", _seeded(Checkpointed, rows)),
    Net("tied", _seeded(Tied, tokens(128), tokens(128))),
    Net("broken", _seeded(Broken, rows), breaks=True),
    Net("broken loss", _seeded(BrokenLoss, tokens(256), tokens(256)), breaks=True),
    Net("mutating", _seeded(Mutating, rows), training=False),
    Net("accumulated", _seeded(MLP, rows), accumulates=True),
)


def random_net(seed: int) -> Net:
    """A program that nobody chose: operations drawn from a seed, on many rows."""
    from tests.random_programs import N, Wide

    def made() -> tuple[nn.Module, tuple[Tensor, ...]]:
        batch = torch.randn(512, N, generator=torch.Generator().manual_seed(seed))
        drawn = (Wide(seed + 1000 * attempt, length=12) for attempt in itertools.count())
        model = next(model for model in drawn if model(batch).requires_grad)
        model(batch).backward()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.grad is not None)  # where not, no graph reads it
            parameter.grad = None
        return model, (batch,)

    return Net(f"random {seed}", made)
