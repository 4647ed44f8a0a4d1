"""Decode a latent with Stable Diffusion's VAE, patch by patch: the picture is the one of the whole decoder, without seams.

    make demo-vae                                   # or: python examples/vae_decode.py
    python examples/vae_decode.py --size 512
    python examples/vae_decode.py --budget 600MiB   # bytes of everything alive, in place of --overhead
    python examples/vae_decode.py --quick           # a smaller picture

diffusers' own answer to a decoder that does not fit is `vae.enable_tiling()`: it decodes overlapping tiles and blends them.
Each tile has group norms and attention of its own, so the picture is another one. memcompile cuts the layers, not the picture.
The decoder has the published configuration and random weights, on which tiling errs more than on trained ones.

In a pipeline: `pipe.vae.decoder = torch.compile(pipe.vae.decoder, backend="memcompile", options={"memory_budget": "6GiB"})`.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the decoder is the benchmark's

import torch
from torch import Tensor

from benchmarks.patch_nets import VaeDecoder
from examples.side_by_side import OURS, PLAIN, Contender, console, contend, tabulate
from memcompile.errors import MemcompileError

PLAIN_NAME = "torch.compile"


def decoder(tile: int = 0) -> VaeDecoder:
    """The same weights at every call. ``tile``: pixels of the side of diffusers' tiles, 0 for none."""
    torch.manual_seed(0)
    return VaeDecoder(tile=tile).eval()


def options_of(args: argparse.Namespace) -> dict[str, object]:
    """For `torch.compile(backend="memcompile")`: a budget, or the smallest peak for some extra work."""
    if args.budget:
        return {"memory_budget": int(args.budget) if args.budget.isdigit() else args.budget}
    return {"patch": {"max_overhead": args.overhead}}


def decode(args: argparse.Namespace, latent: Tensor) -> list[Contender]:
    """The latent decoded in every way, eager and whole first."""
    found = [
        contend("eager", decoder, latent),
        contend(PLAIN_NAME, decoder, latent, PLAIN),
        contend("memcompile", decoder, latent, OURS, options_of(args), args.save),
    ]
    print(found[-1].report)
    if args.save is not None:
        console.print(f"the plan: {found[-1].saved}")
    return [*found, contend("diffusers tiling", functools.partial(decoder, tile=args.size // 2), latent)]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="pixels of the picture's side, in 16s (default 256)")
    parser.add_argument("--overhead", type=float, default=0.1, help="extra multiply-adds, at most, as a share (default 0.1)")
    parser.add_argument("--budget", default="", help="bytes of everything alive, such as 600MiB, in place of --overhead")
    parser.add_argument("--quick", action="store_true", help="a picture of half the side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", type=Path, default=None, metavar="FOLDER", help="save the report there, with patch.svg")
    args = parser.parse_args(argv)
    if args.quick:
        args.size //= 2
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Decode and compare. Returns 0, or 1 when memcompile refuses (its message says why, and what to do)."""
    args = _arguments(argv)
    torch.manual_seed(1)
    latent = torch.randn(1, 4, args.size // 8, args.size // 8, device=args.device)
    try:
        found = decode(args, latent)
    except MemcompileError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    title = f"Stable Diffusion's VAE, {args.size} x {args.size} pixels; differences to the eager decoder, whole"
    console.print(tabulate(title, found, PLAIN_NAME))
    return 0


if __name__ == "__main__":
    sys.exit(main())
