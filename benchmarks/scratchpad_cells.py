"""Networks found by architecture search, at ImageNet's size: (1, 3, 224, 224) -> (1, 1000).

Each is a stem, cells that read the two cells before them, and a classifier. The stem has two cells that halve the size
(Zoph et al. 2018), of DARTS three convolutions (Liu et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.branching import GENOTYPES, Genotype

AMOEBANET_D = Genotype(
    (
        (("conv1", 1), ("max3", 1)),
        (("skip", 1), ("factored", 0)),
        (("conv1", 0), ("factored", 0)),
        (("max3", 2), ("skip", 2)),
        (("avg3", 1), ("conv1", 5)),
    ),
    (0, 3, 4, 6),
    (
        (("max2", 0), ("max3", 0)),
        (("skip", 2), ("conv3", 1)),
        (("factored", 2), ("max3", 2)),
        (("skip", 3), ("max2", 1)),
        (("avg3", 2), ("conv1", 3)),
    ),
    (4, 5, 6),
)
"""As trained with GPipe (Huang et al. 2019), whose normal cell returns other states than that of Real et al. 2019."""


@dataclass(frozen=True)
class Cells:
    """``repeats``: normal cells in each of three stages. ``width``: channels in the first of them. ``stem``: channels before
    the cells that halve the size, 0 for DARTS' stem of convolutions, which comes with fewer normal cells in the last stage."""

    genotype: Genotype
    repeats: tuple[int, int, int]
    width: int
    stem: int


CELLS = {
    "pnasnet5": Cells(GENOTYPES["pnasnet"], (4, 3, 3), 216, 96),
    "amoebanetd": Cells(AMOEBANET_D, (6, 6, 6), 190, 48),
    "nasneta": Cells(GENOTYPES["nasnet"], (6, 6, 6), 168, 96),
    "darts": Cells(GENOTYPES["darts"], (4, 4, 4), 48, 0),
}


def _convolution(channels: int, width: int, kernel: int | tuple[int, int] = 1, stride: int = 1) -> list[nn.Module]:
    padding = (kernel // 2, kernel // 2) if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    return [nn.ReLU(), nn.Conv2d(channels, width, kernel, stride, padding, bias=False), nn.BatchNorm2d(width)]


def _separable(width: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    spatial = nn.Conv2d(width, width, kernel, stride, padding, dilation, groups=width, bias=False)
    return [nn.ReLU(), spatial, nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)]


class Halved(nn.Module):
    """Two convolutions of one pixel in two, one of them shifted by a pixel: (B, C, H, W) -> (B, width, H / 2, W / 2)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(channels, width // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(channels, width - width // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        halved: Tensor = self.norm(torch.cat([self.even(x), self.odd(shifted)], 1))
        return halved


def operation(name: str, width: int, stride: int) -> nn.Module:
    """What a genotype calls by that name."""
    kind, kernel = name[:3], int(name[-1]) if name[-1].isdigit() else 1
    if name == "skip":
        return nn.Identity() if stride == 1 else Halved(width, width)
    if name == "factored":
        inner = width // 4
        layers = [*_convolution(width, inner), *_convolution(inner, inner, (1, 7)), *_convolution(inner, inner, (7, 1))]
        layers[4].stride = (1, stride)  # type: ignore[assignment]
        layers[7].stride = (stride, 1)  # type: ignore[assignment]
        return nn.Sequential(*layers, *_convolution(inner, width))
    if name == "conv3":
        inner = width // 4
        return nn.Sequential(*_convolution(width, inner), *_convolution(inner, inner, 3, stride), *_convolution(inner, width))
    match kind:
        case "con":
            return nn.Sequential(*_convolution(width, width, kernel, stride))
        case "sep":
            return nn.Sequential(*_separable(width, kernel, stride), *_separable(width, kernel, 1))
        case "dil":
            return nn.Sequential(*_separable(width, kernel, stride, dilation=2))
        case "max":
            return nn.MaxPool2d(kernel, stride, (kernel - 1) // 2)
    return nn.AvgPool2d(kernel, stride, kernel // 2)


class Cell(nn.Module):
    """One cell: both inputs are brought to ``width`` channels, the states it returns are concatenated."""

    def __init__(self, channels: tuple[int, int], width: int, genotype: Genotype, *, reduces: bool, halves: bool) -> None:
        super().__init__()
        self.pairs = genotype.reduction if reduces else genotype.normal
        self.returns = genotype.reduction_returns if reduces else genotype.normal_returns
        older = Halved(channels[0], width) if halves else nn.Sequential(*_convolution(channels[0], width))
        self.entries = nn.ModuleList((older, nn.Sequential(*_convolution(channels[1], width))))
        self.operations = nn.ModuleList(
            operation(name, width, 2 if reduces and source < 2 else 1) for pair in self.pairs for name, source in pair
        )

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        states = [self.entries[0](older), self.entries[1](newer)]
        operations = iter(self.operations)
        for (_, left), (_, right) in self.pairs:
            states.append(next(operations)(states[left]) + next(operations)(states[right]))
        return torch.cat([states[index] for index in self.returns], 1)


class CellClassifier(nn.Module):
    """Stem, stages of cells with a cell between two that halves the size, classifier."""

    def __init__(self, cells: Cells) -> None:
        super().__init__()
        genotype, width = cells.genotype, cells.width
        first, second = len(genotype.reduction_returns), len(genotype.normal_returns)
        if cells.stem:
            self.stem: nn.Module = nn.Sequential(nn.Conv2d(3, cells.stem, 3, 2, 1, bias=False), nn.BatchNorm2d(cells.stem))
            plan = [(width // 4, True), (width // 2, True)]
            channels, self.deep = (cells.stem, cells.stem), None
        else:
            half = [nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2)]
            self.stem = nn.Sequential(*half, *_convolution(width // 2, width, 3, 2))
            self.deep = nn.Sequential(*_convolution(width, width, 3, 2))
            plan, channels = [], (width, width)
        for stage, repeats in enumerate(cells.repeats):
            plan += [(width * 2**stage, True)] if stage else []
            plan += [(width * 2**stage, False)] * repeats
        halves = not cells.stem
        self.cells = nn.ModuleList()
        for wide, reduces in plan:
            self.cells.append(Cell(channels, wide, genotype, reduces=reduces, halves=halves))
            channels, halves = (channels[1], wide * (first if reduces else second)), reduces
        self.head = nn.Linear(channels[1], 1000)

    def forward(self, image: Tensor) -> Tensor:
        older = newer = self.stem(image)
        if self.deep is not None:
            newer = self.deep(older)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        logits: Tensor = self.head(F.relu(newer).mean((2, 3)))
        return logits
