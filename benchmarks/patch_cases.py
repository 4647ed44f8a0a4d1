"""The cases of the patch benchmark: a network for images and one batch for it, from fixed seeds.

Those that run have sizes that two cores bear, ESRGAN at 512 aside; those that are planned only, on fake tensors, count what a
microcontroller's int8 or a GPU's fp16 would take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.patch_configs import ARCHITECTURES
from benchmarks.patch_nets import Classifier, Segmenter, SuperResolution, VaeDecoder, initialised

Batch = dict[str, Tensor]
CALIBRATED = 128
"""Pixels of the side of the images that batch norms see beforehand: larger ones would only take time."""


@dataclass(frozen=True)
class Case:
    """``build`` makes the network; its input is one batch of ``channels`` x ``side`` x ``side``, ``side`` in ``multiple``s.

    ``tiled``: the same network under its own library's tiling, of tiles that many pixels of the input wide.
    ``bytes_per_element``: 0 for a case that runs; else it is only planned, and what each number of an activation counts.
    ``package``: what it needs beside memcompile.
    """

    name: str
    what: str
    build: Callable[[], nn.Module]
    side: int
    channels: int = 3
    multiple: int = 32
    tiled: Callable[[int], nn.Module] | None = None
    bytes_per_element: int = 0
    package: str = ""

    @property
    def planned(self) -> bool:
        """Whether nothing runs."""
        return self.bytes_per_element > 0

    def shape(self, scale: int) -> tuple[int, int, int, int]:
        """Of the batch, its sides divided by ``scale``."""
        side = max(self.multiple, self.side // scale // self.multiple * self.multiple) if scale > 1 else self.side
        return 1, self.channels, side, side

    def make(
        self, scale: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32, *, tiled: bool = False
    ) -> tuple[nn.Module, Batch]:
        """The same network and batch at every call. A planned network has no memory: it is on the meta device."""
        batch, channels, *sides = self.shape(scale)
        torch.manual_seed(0)
        if self.planned:
            with torch.device("meta"):
                return self.build().eval(), {"x": torch.empty(batch, channels, *sides)}
        x = torch.randn(batch, channels, *sides)
        small = (2, channels, *(min(side, CALIBRATED) for side in sides))
        module = initialised(self._network(sides[0], tiled), *small)
        return module.to(device, dtype), {"x": x.to(device, dtype)}

    def _network(self, side: int, tiled: bool) -> nn.Module:
        if not tiled:
            return self.build()
        assert self.tiled is not None
        return self.tiled(side // 2)


def _classifier(name: str) -> nn.Module:
    return Classifier(ARCHITECTURES[name])


def _vae(tile: int = 0) -> nn.Module:
    return VaeDecoder(tile=8 * tile)


def _all() -> Iterator[Case]:
    mobilenet = partial(_classifier, "mobilenetv2-1.0")
    yield Case("mobilenetv2-224", "MobileNetV2 1.0, 224 x 224", mobilenet, 224)
    yield Case("mobilenetv2-1024", "MobileNetV2 1.0, 1024 x 1024", mobilenet, 1024)
    for side in (128, 256, 512):
        what = f"ESRGAN x4 with 2 of its 23 blocks, {side} -> {4 * side}"
        yield Case(f"esrgan-{side}", what, partial(SuperResolution, 2), side)
    yield Case("unet16-512", "U-Net of width 16 and depth 4, 512 x 512", partial(Segmenter, 16, 4), 512)
    yield Case("unet64-1024", "U-Net of width 64 and depth 4, 1024 x 1024", partial(Segmenter, 64, 4), 1024)
    for side in (256, 512):
        what = f"decoder of Stable Diffusion's VAE, {side // 8} -> {side}; its tiling in tiles of {side // 2}"
        yield Case(f"vae-{side}", what, _vae, side // 8, channels=4, multiple=8, tiled=_vae, package="diffusers")
    for name, each in ARCHITECTURES.items():
        what = f"{name}, {each.resolution} x {each.resolution}, int8: planned, nothing runs"
        yield Case(f"int8-{name}", what, partial(_classifier, name), each.resolution, bytes_per_element=1)
    yield Case("fp16-esrgan-512", "as esrgan-512, fp16: planned", partial(SuperResolution, 2), 512, bytes_per_element=2)
    yield Case("fp16-unet64-2048", "as unet64, 2048, fp16: planned", partial(Segmenter, 64, 4), 2048, bytes_per_element=2)
    what = "as vae, 1024, fp16: planned"
    yield Case("fp16-vae-1024", what, _vae, 128, channels=4, multiple=8, bytes_per_element=2, package="diffusers")


CASES: Mapping[str, Case] = {case.name: case for case in _all()}
