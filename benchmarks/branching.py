"""Networks whose operations can run in many orders: cells found by architecture search, dense blocks, mixtures of experts.

Each takes its labels and returns its loss. Sizes are small: order matters by structure, not by scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[tuple[str, int], tuple[str, int]]
"""Two operations, each with the state that it reads; their sum is the next state. States 0 and 1 are the cell's inputs."""


@dataclass(frozen=True)
class Genotype:
    """A cell that keeps its size, one that halves it, and which states each of them returns."""

    normal: tuple[Pair, ...]
    normal_returns: tuple[int, ...]
    reduction: tuple[Pair, ...]
    reduction_returns: tuple[int, ...]


_PNAS: tuple[Pair, ...] = (
    (("sep5", 0), ("max3", 0)),
    (("sep7", 1), ("max3", 1)),
    (("sep5", 1), ("sep3", 1)),
    (("sep3", 4), ("max3", 1)),
    (("sep3", 0), ("skip", 1)),
)
GENOTYPES = {
    # Zoph et al. 2018, figure 4
    "nasnet": Genotype(
        (
            (("sep5", 1), ("sep3", 0)),
            (("sep5", 0), ("sep3", 0)),
            (("avg3", 1), ("skip", 0)),
            (("avg3", 0), ("avg3", 0)),
            (("sep3", 1), ("skip", 1)),
        ),
        (0, 2, 3, 4, 5, 6),
        (
            (("sep5", 1), ("sep7", 0)),
            (("max3", 1), ("sep7", 0)),
            (("avg3", 1), ("sep5", 0)),
            (("skip", 3), ("avg3", 2)),
            (("sep3", 2), ("max3", 1)),
        ),
        (3, 4, 5, 6),
    ),
    # Real et al. 2019, figure 5
    "amoebanet": Genotype(
        (
            (("avg3", 0), ("max3", 0)),
            (("skip", 0), ("avg3", 1)),
            (("sep5", 2), ("sep3", 1)),
            (("sep3", 2), ("skip", 1)),
            (("avg3", 4), ("sep3", 0)),
        ),
        (3, 5, 6),
        (
            (("avg3", 0), ("sep3", 1)),
            (("max3", 1), ("max3", 0)),
            (("max3", 0), ("sep7", 2)),
            (("sep7", 0), ("avg3", 1)),
            (("sep3", 3), ("sep7", 0)),
        ),
        (4, 5, 6),
    ),
    # Liu et al. 2019 (DARTS), second order
    "darts": Genotype(
        (
            (("sep3", 0), ("sep3", 1)),
            (("sep3", 0), ("sep3", 1)),
            (("sep3", 1), ("skip", 0)),
            (("skip", 0), ("dil3", 2)),
        ),
        (2, 3, 4, 5),
        (
            (("max3", 0), ("max3", 1)),
            (("skip", 2), ("max3", 1)),
            (("max3", 0), ("skip", 2)),
            (("skip", 2), ("max3", 1)),
        ),
        (2, 3, 4, 5),
    ),
    # Liu et al. 2018 (PNASNet-5): one cell for both
    "pnasnet": Genotype(_PNAS, (2, 3, 4, 5, 6), _PNAS, (2, 3, 4, 5, 6)),
}


def _conv(channels: int, width: int, kernel: int = 1, stride: int = 1, *, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, width, kernel, stride, padding, dilation, groups, bias=False)


def _depthwise(width: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    spatial = _conv(width, width, kernel, stride, dilation=dilation, groups=width)
    return [nn.ReLU(), spatial, _conv(width, width), nn.BatchNorm2d(width)]


def _operation(name: str, width: int, stride: int) -> nn.Module:
    kind, kernel = name[:3], int(name[3:]) if name[3:].isdigit() else 1
    match kind:
        case "sep":
            return nn.Sequential(*_depthwise(width, kernel, stride), *_depthwise(width, kernel, 1))
        case "dil":
            return nn.Sequential(*_depthwise(width, kernel, stride, dilation=2))
        case "max":
            return nn.MaxPool2d(kernel, stride, kernel // 2)
        case "avg":
            return nn.AvgPool2d(kernel, stride, kernel // 2)
    return nn.Identity() if stride == 1 else nn.Sequential(nn.ReLU(), _conv(width, width, 1, stride), nn.BatchNorm2d(width))


class Cell(nn.Module):
    """One cell: both inputs are brought to `width` channels, the states it returns are concatenated."""

    def __init__(
        self, channels: tuple[int, int], width: int, genotype: Genotype, *, reduces: bool, older_is_larger: bool
    ) -> None:
        super().__init__()
        self.pairs = genotype.reduction if reduces else genotype.normal
        self.returns = genotype.reduction_returns if reduces else genotype.normal_returns
        strides = (2 if older_is_larger else 1, 1)
        self.entries = nn.ModuleList(
            nn.Sequential(nn.ReLU(), _conv(count, width, 1, stride), nn.BatchNorm2d(width))
            for count, stride in zip(channels, strides, strict=True)
        )
        self.operations = nn.ModuleList(
            _operation(name, width, 2 if reduces and source < 2 else 1) for pair in self.pairs for name, source in pair
        )

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        states = [self.entries[0](older), self.entries[1](newer)]
        operations = iter(self.operations)
        for (_, left), (_, right) in self.pairs:
            states.append(next(operations)(states[left]) + next(operations)(states[right]))
        return torch.cat([states[index] for index in self.returns], 1)


class CellNet(nn.Module):
    """`repeats` normal cells before, between and after the reduction cells; each cell reads the two before it."""

    def __init__(self, name: str, repeats: int = 1, width: int = 16, classes: int = 10, reductions: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, width, 3), nn.BatchNorm2d(width))
        channels, after_reduction = (width, width), False
        self.cells = nn.ModuleList()
        for reduces in [*([False] * repeats + [True]) * reductions, *[False] * repeats]:
            width *= 2 if reduces else 1
            cell = Cell(channels, width, GENOTYPES[name], reduces=reduces, older_is_larger=after_reduction)
            self.cells.append(cell)
            channels, after_reduction = (channels[1], width * len(cell.returns)), reduces
        self.head = nn.Linear(channels[1], classes)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of (B, 3, H, W) images against (B,) classes."""
        older = newer = self.stem(pixels)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return F.cross_entropy(self.head(F.relu(newer).mean((2, 3))), labels)


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al. 2017): each layer reads the concatenation of all before it in its block."""

    def __init__(self, blocks: tuple[int, ...] = (6, 12, 8), growth: int = 12, classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = _conv(3, channels, 3)
        self.blocks: Any = nn.ModuleList()  # of lists of layers
        self.transitions = nn.ModuleList()
        for index, depth in enumerate(blocks):
            self.blocks.append(nn.ModuleList(self._layer(channels + i * growth, growth) for i in range(depth)))
            channels += depth * growth
            last = index == len(blocks) - 1
            shrink = [nn.ReLU()] if last else [nn.ReLU(), _conv(channels, channels // 2), nn.AvgPool2d(2)]
            self.transitions.append(nn.Sequential(nn.BatchNorm2d(channels), *shrink))
            channels = channels if last else channels // 2
        self.head = nn.Linear(channels, classes)

    @staticmethod
    def _layer(channels: int, growth: int) -> nn.Sequential:
        squeeze = [nn.BatchNorm2d(channels), nn.ReLU(), _conv(channels, 4 * growth)]
        return nn.Sequential(*squeeze, nn.BatchNorm2d(4 * growth), nn.ReLU(), _conv(4 * growth, growth, 3))

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of (B, 3, H, W) images against (B,) classes."""
        x = self.stem(pixels)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            parts = [x]
            for layer in block:
                parts.append(layer(torch.cat(parts, 1)))
            x = transition(torch.cat(parts, 1))
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)


class MixtureOfExperts(nn.Module):
    """Layers of `experts` gated MLPs of different widths, all run and weighted by a router (a dense mixture)."""

    def __init__(self, width: int = 64, experts: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.routers = nn.ModuleList(nn.Linear(width, experts) for _ in range(depth))
        self.experts: Any = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList((nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)))
                for inner in (2 * width * (1 + index % 3) for index in range(experts))
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mean square of what (B, T, width) inputs become."""
        for router, experts in zip(self.routers, self.experts, strict=True):
            weights = router(x).softmax(-1)
            parts = [down(F.silu(gate(x)) * up(x)) for gate, up, down in experts]
            x = x + sum(weights[..., index, None] * part for index, part in enumerate(parts))
        return x.square().mean()
