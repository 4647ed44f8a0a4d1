"""The networks of the benchmark that come from no library: a ResNet, a U-Net, and recurrent nets unrolled over time.

Each takes its labels and returns its loss, so that the loss is part of the compiled graph, and each has a `checkpoint` switch:
True runs every block (or chunk of time steps) under `torch.utils.checkpoint`, the way people save memory by hand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Bottleneck(nn.Module):
    """1x1 -> 3x3 (stride) -> 1x1 with a residual: (B, C, H, W) -> (B, 4 width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False),
                nn.BatchNorm2d(4 * width),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50 (He et al. 2016), bottleneck stages of 3, 4, 6 and 3 blocks; `width` 64 is the published one."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.checkpoint = False
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate((3, 4, 6, 3)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Bottleneck(channels, width * 2**stage, stride))
                channels = 4 * width * 2**stage
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of (B, 3, H, W) images against (B,) classes."""
        x = self.stem(pixels)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpoint else block(x)
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)


def _double_conv(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): `depth` halvings with skips; dropout at the bottom, as in the paper."""

    def __init__(self, width: int = 16, depth: int = 4, classes: int = 8) -> None:
        super().__init__()
        self.checkpoint = False
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double_conv(c, w) for c, w in zip([3, *widths], widths, strict=False))
        self.drop = nn.Dropout2d(0.2)
        self.lift = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(_double_conv(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(block, x, use_reentrant=False) if self.checkpoint else block(x)
        return y

    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, classes, H, W)."""
        x, skips = pixels, []
        for block in self.down[:-1]:
            x = self._block(block, x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.drop(self._block(self.down[-1], x))
        for lift, block in zip(self.lift, self.up, strict=True):
            x = self._block(block, torch.cat((skips.pop(), lift(x)), 1))
        found: Tensor = self.head(x)
        return found

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of (B, 3, H, W) images against (B, H, W) classes, one for each pixel."""
        return F.cross_entropy(self.logits(pixels), labels)


class UnrolledLSTM(nn.Module):
    """A character LSTM whose time steps are unrolled into the graph: no fused kernel, every gate an op of its own."""

    def __init__(self, width: int = 256, vocabulary: int = 256, chunk: int = 10) -> None:
        super().__init__()
        self.checkpoint = False
        self.chunk = chunk  # time steps in one checkpointed region
        self.embedding = nn.Embedding(vocabulary, width)
        self.input_gates = nn.Linear(width, 4 * width)
        self.state_gates = nn.Linear(width, 4 * width, bias=False)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, vocabulary)

    def _steps(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, width) inputs and the state -> (B, T, width) outputs and the next state."""
        outputs = []
        for x_t in x.unbind(1):
            i, f, g, o = (self.input_gates(x_t) + self.state_gates(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1), h, c

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of the next byte: (B, T) tokens against (B, T) labels."""
        x = self.drop(self.embedding(tokens))
        h = c = x.new_zeros(x.shape[0], x.shape[2])
        outputs = []
        for part in x.split(self.chunk, 1):
            if self.checkpoint:
                y, h, c = checkpoint(self._steps, part, h, c, use_reentrant=False)
            else:
                y, h, c = self._steps(part, h, c)
            outputs.append(y)
        logits = self.head(self.drop(torch.cat(outputs, 1)))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class RecurrentChain(nn.Module):
    """h <- tanh(x_t + h U), `x` (T, B, width), loss at the end: the chain of Gruslys et al. 2016 (memory-efficient BPTT).

    One product a step forward, two backward. With `project`, h <- tanh(x_t W + h U): two forward, three backward.
    """

    def __init__(self, width: int = 64, *, project: bool = False) -> None:
        super().__init__()
        self.input = nn.Linear(width, width) if project else nn.Identity()
        self.state = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[0])
        for x_t in x.unbind(0):
            h = torch.tanh(self.input(x_t) + self.state(h))
        return h.square().mean()
