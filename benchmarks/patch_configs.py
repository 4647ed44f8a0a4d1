"""Facts about the networks of the patch benchmark: the architectures of MCUNet's model zoo, and what other tools publish.

Architectures: the JSON configs of github.com/mit-han-lab/mcunet, folder assets/configs of its first commit (8326da6); of
mcunet-vww1, which is not among them, the file mcunet-5fps_vww.json that the project serves for download, by a second-hand copy
of its block table, whose counts agree with the published ones. Parameters and multiply-adds: the tables of its README;
those of MobileNetV2 1.0 are torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

BLOCK = re.compile(r"k(\d)e(\d)c(\d+)s(\d)")


@dataclass(frozen=True)
class Block:
    """An inverted residual block: 1x1 to ``expansion`` times the channels, depthwise ``kernel``, 1x1 to ``channels``."""

    kernel: int
    expansion: int
    channels: int
    stride: int


@dataclass(frozen=True)
class Architecture:
    """A 3x3 stem of stride 2, inverted residual blocks, a 1x1 convolution to ``head`` channels (0: none), a mean, a classifier.

    ``text``: the blocks in order, "k5e3c16s2" for kernel 5, expansion 3, 16 channels, stride 2. ``parameters`` and ``macs``
    (multiply-adds of one image of ``resolution``): as published, in millions.
    """

    name: str
    resolution: int
    stem: int
    text: str
    parameters: float
    macs: float
    head: int = 0
    classes: int = 1000

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks that ``text`` tells."""
        return tuple(Block(*map(int, match.groups())) for match in BLOCK.finditer(self.text))


def mobilenet_v2(width: float, resolution: int, parameters: float, macs: float, scaled_head: bool) -> Architecture:
    """MobileNetV2 (Sandler et al. 2018, table 2). ``scaled_head``: a width below 1 narrows the last convolution too, as in
    MCUNet's zoo; in the paper it does not."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    blocks = [
        f"k3e{expansion}c{rounded(channels * width)}s{stride if index == 0 else 1}"
        for expansion, channels, count, stride in stages
        for index in range(count)
    ]
    head = rounded(1280 * (width if scaled_head else max(width, 1.0)))
    name = f"mobilenetv2-{width:.3g}" if width != 1 else "mobilenetv2-1.0"
    return Architecture(name, resolution, rounded(32 * width), " ".join(blocks), parameters, macs, head)


def rounded(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, but at least 90 % of ``channels`` (MobileNetV2's rule)."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * channels else nearest + divisor


PROXYLESS = Architecture(
    "proxyless-0.3",
    176,
    16,
    "k3e1c8s1 k5e3c16s2 k3e3c16s1 k7e3c16s2 k3e3c16s1 k5e3c16s1 k5e3c16s1 k7e6c24s2 k5e3c24s1 k5e3c24s1 k5e3c24s1 "
    "k5e6c32s1 k5e3c32s1 k5e3c32s1 k5e3c32s1 k7e6c64s2 k7e6c64s1 k7e3c64s1 k7e3c64s1 k7e6c96s1",
    0.75,
    38.3,
    head=384,
)
"""ProxylessNAS-Mobile (Cai et al. 2019) of width 0.3."""

MCUNET_IN2 = Architecture(
    "mcunet-in2",
    160,
    16,
    "k3e1c8s1 k5e3c16s2 k7e6c16s1 k3e5c16s1 k5e5c16s1 k3e5c24s2 k7e6c24s1 k5e6c24s1 k7e4c40s2 k5e5c40s1 k3e5c48s1 "
    "k5e5c48s1 k3e4c48s1 k5e6c96s2 k5e4c96s1 k5e3c96s1 k3e4c96s1 k5e5c160s1",
    0.73,
    67.3,
)

MCUNET_IN3 = Architecture(
    "mcunet-in3",
    176,
    16,
    "k3e1c8s1 k7e3c16s2 k3e5c16s1 k7e5c16s1 k5e4c16s1 k5e5c24s2 k5e5c24s1 k5e5c24s1 k3e5c40s2 k7e6c40s1 k5e4c40s1 "
    "k5e5c48s1 k7e5c48s1 k3e5c48s1 k3e6c96s2 k7e5c96s1 k3e4c96s1 k7e5c160s1",
    0.74,
    81.8,
)
"""The "320KB" network of the papers."""

MCUNET_VWW1 = Architecture(
    "mcunet-vww1",
    80,
    16,
    "k3e1c8s1 k3e6c16s2 k3e3c16s1 k3e3c16s1 k7e3c24s2 k3e6c24s1 k5e5c24s1 k7e6c40s2 k7e6c40s1 k3e6c48s1 k3e4c48s1 "
    "k5e5c96s2 k3e5c96s1 k3e4c96s1 k7e3c160s1",
    0.43,
    11.6,
    classes=2,
)

ARCHITECTURES: Mapping[str, Architecture] = {
    each.name: each
    for each in (
        mobilenet_v2(1.0, 224, 3.504872, 300.8, scaled_head=False),
        mobilenet_v2(0.35, 144, 0.75, 23.5, scaled_head=True),
        PROXYLESS,
        MCUNET_IN2,
        MCUNET_IN3,
        MCUNET_VWW1,
    )
}
