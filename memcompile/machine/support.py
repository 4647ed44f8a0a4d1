"""What memcompile runs on: checked before any compile time is spent."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from memcompile.errors import UnsupportedDeviceError, UnsupportedTorchError

OLDEST_TORCH = "2.11"
BEYOND_TORCH = "2.16"
SUPPORTED_DEVICES = ("cpu", "cuda")


def check_torch(version: str | None = None) -> None:
    """Raise `UnsupportedTorchError` unless ``version`` (default: the installed one) has the seams that memcompile uses."""
    found = version if version is not None else str(torch.__version__)
    if not _release(OLDEST_TORCH) <= _release(found) < _release(BEYOND_TORCH):
        raise UnsupportedTorchError(found, OLDEST_TORCH, BEYOND_TORCH)


def _release(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_devices(devices: Iterable[torch.device]) -> torch.device:
    """The one device to plan for. CPU scalars beside CUDA tensors are fine; two accelerators are not.

    Raises `UnsupportedDeviceError` for a device that is not supported and for a model spread over several of them.
    """
    found = dict.fromkeys(devices)
    for device in found:
        if device.type not in SUPPORTED_DEVICES:
            raise UnsupportedDeviceError(str(device), SUPPORTED_DEVICES)
    accelerators = [device for device in found if device.type != "cpu"]
    if len(accelerators) > 1:
        names = ", ".join(map(str, accelerators))
        raise UnsupportedDeviceError(names, SUPPORTED_DEVICES, detail="One graph spreads over several accelerators")
    return accelerators[0] if accelerators else torch.device("cpu")
