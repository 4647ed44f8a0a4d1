"""Classify and enlarge a photograph patch by patch: the same numbers, a fraction of the memory.

    make demo-vision                                  # or: python examples/patch_vision.py
    python examples/patch_vision.py --overhead 0.25   # more work for less memory
    python examples/patch_vision.py --quick           # a smaller picture

Two networks, each under plain torch.compile and under memcompile: MobileNetV2 on a large photograph, and ESRGAN's generator,
which makes one four times as wide. Their weights are random; ESRGAN's are then changed such that it interpolates, so that there
is a picture to look at. The photograph is scikit-learn's. The folder that `--save` names gets the plans (patch.svg shows which
layers run in patches) and the enlarged picture.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the networks are the benchmark's

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.patch_configs import ARCHITECTURES
from benchmarks.patch_nets import Classifier, SuperResolution, initialised
from examples.side_by_side import OURS, PLAIN, console, contend, tabulate
from memcompile.errors import MemcompileError

PLAIN_NAME = "torch.compile"
SEED = 0


def photograph(height: int, width: int) -> Tensor:
    """A Chinese temple and its trees, (1, 3, height, width), values from 0 to 1."""
    from sklearn.datasets import load_sample_image

    pixels = torch.from_numpy(load_sample_image("china.jpg").copy())
    image = pixels.permute(2, 0, 1)[None] / 255
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True)


def interpolating(network: SuperResolution) -> SuperResolution:
    """Let the first three channels carry the picture from layer to layer: each doubling smooths it, all else leaves it alone.

    The other channels keep their random weights, and cost what they cost in a trained network.
    """
    smooth = torch.tensor([1.0, 2.0, 1.0])
    kernels = {True: smooth.outer(smooth) / 16, False: F.pad(torch.ones(1, 1), (1, 1, 1, 1))}
    doublings = list(network.doublings)
    with torch.no_grad():
        for layer in (network.first, *doublings, *network.last):
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                layer.weight[:3] = 0
                layer.bias[:3] = 0
                for channel in range(3):
                    layer.weight[channel, channel] = kernels[layer in doublings]
        for tensor in network.trunk[-1].parameters():
            tensor[:3] = 0  # the trunk adds nothing to the picture
    return network


def classifier() -> nn.Module:
    """MobileNetV2 with random weights."""
    torch.manual_seed(SEED)
    return initialised(Classifier(ARCHITECTURES["mobilenetv2-1.0"]), 2, 3, 128, 192)


def enlarger(blocks: int) -> nn.Module:
    """ESRGAN's generator, made to interpolate."""
    torch.manual_seed(SEED)
    return interpolating(SuperResolution(blocks)).eval()


def compare(name: str, build: Callable[[], nn.Module], image: Tensor, overhead: float, folder: Path) -> Tensor:
    """Run both ways, print them beside each other, save the plan; what memcompile's way gives."""
    plain = contend(PLAIN_NAME, build, image, PLAIN)
    options = {"patch": {"max_overhead": overhead}}
    ours = contend(f"memcompile, at most {overhead:.0%} more work", build, image, OURS, options, folder)
    height, width = image.shape[2:]
    console.print(tabulate(f"{name} on {width} x {height} pixels", [plain, ours], PLAIN_NAME))
    console.print(f"the plan: {ours.saved}\n")
    return torch.from_numpy(ours.output)


def save_picture(pixels: Tensor, path: Path) -> None:
    """(1, 3, H, W), values from 0 to 1, as PNG."""
    from PIL import Image

    Image.fromarray((pixels[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy(force=True)).save(path)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overhead", type=float, default=0.1, help="extra multiply-adds, at most, as a share (default 0.1)")
    parser.add_argument("--height", type=int, default=1024, help="of the picture to classify; 32s (default 1024)")
    parser.add_argument("--blocks", type=int, default=1, help="of ESRGAN's trunk, the published one has 23 (default 1)")
    parser.add_argument("--quick", action="store_true", help="pictures a quarter as large")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--save", type=Path, default=Path("build/patch_vision"), metavar="FOLDER", help="default: build/patch_vision"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.height //= 2
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Both networks. Returns 0, or 1 when memcompile refuses (its message says why, and what to do)."""
    args = _arguments(argv)
    height, width = args.height // 32 * 32, args.height * 3 // 2 // 32 * 32
    try:
        image = photograph(height, width).to(args.device)
        compare("MobileNetV2", classifier, image, args.overhead, args.save / "mobilenetv2")

        small = photograph(height // 4, width // 4).to(args.device)
        pixels = compare("ESRGAN x4", functools.partial(enlarger, args.blocks), small, args.overhead, args.save / "esrgan")
        save_picture(pixels, args.save / "enlarged.png")
        save_picture(small, args.save / "photograph.png")
    except MemcompileError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    console.print(f"pictures: {args.save}/photograph.png, {args.save}/enlarged.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
