"""The networks of the scratchpad benchmark that look at videos: (1, 3, 16, 224, 224) -> (1, 400)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _convolution(
    channels: int, width: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(nn.Conv3d(channels, width, kernel, stride, padding, bias=False), nn.BatchNorm3d(width))


def _factored(channels: int, middle: int, width: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3x3 convolution as one over space and one over time."""
    space = _convolution(channels, middle, (1, 3, 3), (1, stride, stride))
    return [space, nn.ReLU(), _convolution(middle, width, (3, 1, 1), (stride, 1, 1))]


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        middle = channels * width * 27 // (channels * 9 + 3 * width)  # as many parameters as the whole convolution has
        first, second = _factored(channels, middle, width, stride), _factored(width, middle, width)
        self.inside = nn.Sequential(*first, nn.ReLU(), *second)
        reshapes = stride > 1 or channels != width
        self.beside = _convolution(channels, width, (1, 1, 1), (stride,) * 3) if reshapes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inside(x) + self.beside(x))


class R2Plus1D(nn.Module):
    """R(2+1)D-18 (Tran et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            _convolution(3, 45, (1, 7, 7), (1, 2, 2)),
            nn.ReLU(),
            _convolution(45, 64, (3, 1, 1)),
            nn.ReLU(),
        ]
        channels = 64
        for stage in range(4):
            for index in range(2):
                width = 64 * 2**stage
                layers.append(_Block(channels, width, 2 if stage and index == 0 else 1))
                channels = width
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(512, 400)

    def forward(self, video: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(video).mean((2, 3, 4)))
        return logits


def _separable(channels: int, width: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    space = _convolution(channels, width, (1, kernel, kernel), (1, stride, stride))
    return nn.Sequential(space, nn.ReLU(), _convolution(width, width, (kernel, 1, 1), (stride, 1, 1)), nn.ReLU())


def _point(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(_convolution(channels, width, (1, 1, 1)), nn.ReLU())


class _Inception(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        a, b, c, d, e, f = widths
        self.branches = nn.ModuleList(
            (
                _point(channels, a),
                nn.Sequential(_point(channels, b), _separable(b, c)),
                nn.Sequential(_point(channels, d), _separable(d, e)),
                nn.Sequential(nn.MaxPool3d(3, 1, 1), _point(channels, f)),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class S3D(nn.Module):
    """Xie et al. 2018."""

    STAGES = (
        ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
        (
            (192, 96, 208, 16, 48, 64),
            (160, 112, 224, 24, 64, 64),
            (128, 128, 256, 24, 64, 64),
            (112, 144, 288, 32, 64, 64),
            (256, 160, 320, 32, 128, 128),
        ),
        ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
    )

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_separable(3, 64, 7, 2), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), _point(64, 64)]
        layers += [_separable(64, 192), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))]
        channels = 192
        for pool, stage in zip((nn.MaxPool3d(3, 2, 1), nn.MaxPool3d(2, 2), None), self.STAGES, strict=True):
            for widths in stage:
                layers.append(_Inception(channels, widths))
                channels = widths[0] + widths[2] + widths[4] + widths[5]
            layers += [pool] if pool is not None else []
        self.layers, self.head = nn.Sequential(*layers, nn.AvgPool3d((2, 7, 7), 1)), nn.Conv3d(1024, 400, 1)

    def forward(self, video: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(video)).mean((2, 3, 4))
        return logits
