"""The networks of the patch benchmark, with random weights: classifiers for microcontrollers, super-resolution, U-Nets, a VAE.

All map one batch of images (B, C, H, W), floats, to one tensor. Those with batch norm are meant in eval mode.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.nets import UNet
from benchmarks.patch_configs import Architecture, Block


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al. 2018), with a residual where the shape stays: (B, C, H, W) ->
    (B, channels, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, channels: int, block: Block) -> None:
        super().__init__()
        hidden = channels * block.expansion
        expand = [] if block.expansion == 1 else _convolution(channels, hidden, 1)
        depthwise = _convolution(hidden, hidden, block.kernel, block.stride, groups=hidden)
        project = _convolution(hidden, block.channels, 1)[:-1]
        self.layers = nn.Sequential(*expand, *depthwise, *project)
        self.residual = block.stride == 1 and channels == block.channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Classifier(nn.Module):
    """A network of MCUNet's kind: (B, 3, H, W) images -> (B, classes) logits."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, architecture.stem, 3, 2))
        channels = architecture.stem
        blocks = []
        for block in architecture.blocks:
            blocks.append(InvertedResidual(channels, block))
            channels = block.channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*(_convolution(channels, architecture.head, 1) if architecture.head else ()))
        self.classifier = nn.Linear(architecture.head or channels, architecture.classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.head(self.blocks(self.stem(images))).mean((2, 3)))
        return logits


def _convolution(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU6()]


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each of all before it, and a scaled residual (ESRGAN, Wang et al. 2018): keeps the shape."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width + index * growth, growth if index < 4 else width, 3, padding=1) for index in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for convolution in self.convolutions[:-1]:
            found.append(F.leaky_relu(convolution(torch.cat(found, 1)), 0.2))
        y: Tensor = self.convolutions[-1](torch.cat(found, 1))
        return x + 0.2 * y


class ResidualInResidual(nn.Module):
    """Three dense blocks with a scaled residual around them: keeps the shape."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(width, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return x + 0.2 * y


class SuperResolution(nn.Module):
    """ESRGAN's generator for x4: (B, 3, H, W) -> (B, 3, 4 H, 4 W). 23 ``blocks`` are the published network."""

    def __init__(self, blocks: int = 23, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.trunk = nn.Sequential(
            *(ResidualInResidual(width, growth) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1)
        )
        self.doublings = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.last = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        x = x + self.trunk(x)
        for convolution in self.doublings:
            x = F.leaky_relu(convolution(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        pixels: Tensor = self.last(x)
        return pixels


class Segmenter(UNet):
    """The U-Net of `nets` in inference: (B, 3, H, W) -> (B, classes, H, W); H and W are multiples of 2 ** depth."""

    def forward(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        return self.logits(pixels)


class VaeDecoder(nn.Module):
    """The decoder of diffusers' AutoencoderKL: (B, 4, H, W) latents -> (B, 3, 8 H, 8 W) images.

    ``tile``: pixels of the side of one tile of diffusers' own tiling; latents that are smaller than a tile are decoded whole.
    0: no tiling. The sizes are Stable Diffusion's.
    """

    def __init__(self, widths: tuple[int, ...] = (128, 256, 512, 512), groups: int = 32, tile: int = 0) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        self.vae: Any = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=2,
            norm_num_groups=groups,
            latent_channels=4,
            sample_size=tile or 512,
        )
        del self.vae.encoder, self.vae.quant_conv
        if tile:
            self.vae.enable_tiling()

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images


def initialised(module: nn.Module, *shape: int) -> nn.Module:
    """``module`` in eval mode, with weights that keep the size of what passes through, and batch norms that have seen inputs of
    ``shape``. Biases are not zero: what a padded pixel becomes after an activation is part of the answer.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -0.1, 0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            layer.momentum = None  # statistics are those of all that was seen
    if any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()):
        with torch.no_grad():
            module.train()(torch.randn(shape))
    return module.eval()


def parameters(module: nn.Module) -> int:
    """How many numbers the module has learnt."""
    return sum(p.numel() for p in module.parameters())


def macs(module: nn.Module, *shape: int) -> int:
    """Multiply-adds of convolutions and products for one input of ``shape``; ``module`` is on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(shape, device="meta"))
    return int(counter.get_total_flops()) // 2
