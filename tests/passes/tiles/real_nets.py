"""Random networks of images in double precision: what rounds, what makes no tensor, and what moves pixels around the edge."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = (
    "conv",
    "conv",
    "circular",
    "wrapped",
    "scattered",
    "instance_norm",
    "group_norm",
    "layer_norm",
    "softmax",
    "area",
    "adaptive",
    "bare_average",
    "bicubic",
    "bilinear",
    "checked",
    "branch",
    "add",
    "gate",
    "roll",
    "silu",
)


class Real(nn.Module):
    """A DAG of ``count`` operators drawn by ``seed`` on images [2, 4, height, width]; returns the last, one from the middle, and
    the classes of the last."""

    def __init__(self, seed: int, count: int, size: tuple[int, int]) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.steps: list[tuple[str, int, int]] = []
        self.layers = nn.ModuleList()
        shapes: list[tuple[int, int, int]] = [(4, *size)]
        for _ in range(count):
            kind = draw.choice(KINDS) if self.steps else "conv"
            source, other = draw.randrange(max(0, len(shapes) - 3), len(shapes)), draw.randrange(len(shapes))
            layer = _layer(kind, shapes[source][0], draw)
            with torch.no_grad():
                made = _step(
                    kind, layer.double(), torch.zeros(2, *shapes[source]).double(), torch.zeros(2, *shapes[other]).double()
                )
            if min(made.shape[2:]) < 5:
                continue
            self.steps.append((kind, source, other))
            self.layers.append(layer)
            shapes.append((made.shape[1], made.shape[2], made.shape[3]))
        self.hot = draw.random() < 0.5

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for (kind, source, other), layer in zip(self.steps, self.layers, strict=True):
            values.append(_step(kind, layer, values[source], values[other]))
        last = values[-1]
        classes = F.one_hot(last.argmax(1), last.shape[1]) if self.hot else last.argmax(1)
        return last, values[len(values) // 2], classes


def _step(kind: str, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    height, width = x.shape[2:]
    match kind:
        case "wrapped":
            return F.pad(x, (3, 1, 2, 4), mode="circular")[:, :, 1:, 2:]
        case "scattered":
            z = x.clone()
            z[:, :, 1:4, 2:] = x[:, :, 2:5, :-2] * 2
            return z
        case "softmax":
            return x * x.softmax(1)
        case "area":
            return F.interpolate(x, size=(max(5, height * 2 // 3), max(5, width - 2)), mode="area")
        case "adaptive":
            return F.adaptive_avg_pool2d(x, (max(5, height - 3), max(5, width * 3 // 5)))
        case "bare_average":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        case "bicubic" | "bilinear":
            return F.interpolate(x, size=(height + 3, max(5, width - 1)), mode=kind)
        case "checked":
            torch._assert_async(x.isfinite().all(), "not finite")
            return x
        case "branch":
            return torch.where(x.mean() > 0.01, x, -x)
        case "add":
            return x + y if x.shape == y.shape else x * 0.5
        case "gate":
            return x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        case "roll":
            return torch.roll(x, (1, 2), (2, 3))
        case "silu":
            return F.silu(x)
    made: Tensor = layer(x)
    return made


def _layer(kind: str, channels: int, draw: random.Random) -> nn.Module:
    wide = draw.choice((2, 4, 6))
    match kind:
        case "conv":
            return nn.Conv2d(channels, wide, draw.choice((1, 3)), draw.choice((1, 1, 2)), 1)
        case "circular":
            return nn.Conv2d(channels, wide, 3, 1, draw.choice((1, 2)), padding_mode="circular")
        case "instance_norm":
            return nn.Sequential(
                nn.Conv2d(channels, channels, 3, 1, 1), nn.InstanceNorm2d(channels, affine=draw.random() < 0.5)
            )
        case "group_norm":
            return nn.GroupNorm(2, channels)
        case "layer_norm":
            return Channels(channels)
    return nn.Identity()


class Channels(nn.Module):
    """Layer normalisation over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return made
