"""Random networks of small whole numbers: every operator that runs on pixels, bit for bit the same however it is tiled."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = [
    "conv",
    "conv",
    "conv",
    "depthwise",
    "grouped",
    "transposed",
    "even",
    "wide",
    "dilated",
    "max_pool",
    "ceil_pool",
    "average",
    "average_bare",
    "relu",
    "leaky",
    "add",
    "multiply",
    "cat",
    "crop",
    "pad",
    "reflect",
    "nearest",
    "resize",
    "bilinear",
    "shuffle",
    "unshuffle",
    "channels",
    "gate",
    "largest",
    "adaptive",
    "adaptive_max",
    "last_norm",
]


class Random(nn.Module):
    """A DAG of ``count`` operators drawn by ``seed`` on images [2, 4, height, width]."""

    def __init__(self, seed: int, count: int, size: tuple[int, int]) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.steps: list[tuple[str, int, int]] = []
        self.convs = nn.ModuleList()
        shapes: list[tuple[int, int, int]] = [(4, *size)]
        for _ in range(count):
            kind = draw.choice(KINDS) if self.steps else "conv"
            source = draw.randrange(max(0, len(shapes) - 3), len(shapes))
            other = draw.randrange(len(shapes))
            module = _module(kind, shapes[source][0], draw)
            self.steps.append((kind, source, other))
            self.convs.append(module)
            made = self._tried(kind, module, shapes[source], shapes[other])
            if made is None:
                self.steps[-1], self.convs[-1] = ("conv", source, other), _whole(nn.Conv2d(shapes[source][0], 4, 3, 1, 1))
                made = (4, *shapes[source][1:])
            shapes.append(made)

    def _tried(
        self, kind: str, module: nn.Module, given: tuple[int, int, int], other: tuple[int, int, int]
    ) -> tuple[int, int, int] | None:
        """The shape that a step makes; None when the image gets too small, or too large to be quick."""
        try:
            with torch.no_grad():
                shape = self._step(kind, module, torch.zeros(1, *given), torch.zeros(1, *other)).shape
        except RuntimeError:
            return None
        return (shape[1], shape[2], shape[3]) if min(shape[2:]) >= 3 and max(shape[1:]) <= 64 else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for (kind, source, other), module in zip(self.steps, self.convs, strict=True):
            made = self._step(kind, module, values[source], values[other])
            values.append(torch.remainder(made, 31.0))  # stays exact
        return values[-1], values[len(values) // 2]

    @staticmethod
    def _step(kind: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        match kind:
            case "relu":
                return F.relu(x - 3)
            case "leaky":
                return F.leaky_relu(x - 5, 0.5)
            case "add":
                return x + y if x.shape == y.shape else x + 1
            case "multiply":
                return x * y if x.shape == y.shape else x * 2
            case "cat":
                return torch.cat([x, y], 1) if x.shape[2:] == y.shape[2:] else torch.cat([x, x], 1)
            case "crop":
                return x[:, :, 1:, :-1]
            case "pad":
                return F.pad(x, (1, 2, 0, 3), value=2.0)
            case "reflect":
                return F.pad(x, (1, 1, 2, 1), mode="reflect")
            case "nearest":
                return F.interpolate(x, scale_factor=2)
            case "resize":
                return F.interpolate(x, size=(x.shape[2] * 3 // 2, x.shape[3] - 1))
            case "bilinear":
                return 16 * F.interpolate(x, scale_factor=2, mode="bilinear")
            case "shuffle":
                return F.pixel_shuffle(torch.cat([x, x, x, x], 1), 2)
            case "unshuffle":
                even = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
                return F.pixel_unshuffle(even, 2)
            case "channels":
                batch, channels, *pixels = x.shape
                return x.view(batch, 2, channels // 2, *pixels).transpose(1, 2).reshape(x.shape) if channels % 2 == 0 else x
            case "gate":
                return x * torch.remainder(x.sum((2, 3), keepdim=True), 5.0)
            case "largest":
                return x + x.amax((2, 3), keepdim=True)
            case "adaptive":
                return (
                    F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2)) if x.shape[2] % 2 == x.shape[3] % 2 == 0 else x
                )
            case "adaptive_max":
                return F.adaptive_max_pool2d(x, (max(3, x.shape[2] * 2 // 3), x.shape[3] // 2))
            case "average" | "average_bare":
                return F.avg_pool2d(x, 2, 2, 0 if kind == "average" else 1, count_include_pad=False) * 4
            case "last_norm":
                return x - x.amax(1, keepdim=True)
        made: Tensor = module(x)
        return made


def _module(kind: str, channels: int, draw: random.Random) -> nn.Module:
    wide = draw.choice((2, 4, 6))
    match kind:
        case "conv":
            return _whole(nn.Conv2d(channels, wide, draw.choice((1, 3, 5)), draw.choice((1, 1, 2)), draw.choice((0, 1, 2))))
        case "depthwise":
            return _whole(nn.Conv2d(channels, channels, 3, draw.choice((1, 2)), 1, groups=channels))
        case "grouped":
            return _whole(nn.Conv2d(channels, 2 * channels, 3, 1, 1, groups=2 if channels % 2 == 0 else 1))
        case "transposed":
            size, stride = draw.choice(((4, 2), (3, 2), (2, 2), (3, 1)))
            return _whole(
                nn.ConvTranspose2d(channels, wide, size, stride, draw.choice((0, 1)), draw.choice((0, 1)) if stride > 1 else 0)
            )
        case "even":
            return _whole(nn.Conv2d(channels, wide, 4, 2, 1))
        case "wide":
            return _whole(nn.Conv2d(channels, wide, (1, 5), (1, 2), (0, 2)))
        case "dilated":
            return _whole(nn.Conv2d(channels, wide, 3, 1, 2, dilation=2))
        case "max_pool":
            return nn.MaxPool2d(3, 2, 1)
        case "ceil_pool":
            return nn.MaxPool2d(2, 2, ceil_mode=True)
    return nn.Identity()


def _whole(conv: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
    return conv
