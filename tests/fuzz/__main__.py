"""``python -m tests.fuzz --seconds 600 --seed 1``: random programs against eager until the time is over.

Every program is made from its seed alone. Most run at the level "planned" (the plan by the model of the lowering, interpreted),
one in ``--lowered-every`` at "lowered" (lowered as it would be compiled, placed, interpreted), and one in ``--compiled-every`` at
"compiled" (kernels, and a measured peak). What fails is made small and written as a script. Exits with 1 where a fault was found.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="make fuzz FUZZ_ARGS=...", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="wall-clock time to spend")
    parser.add_argument("--seed", type=int, default=1, help="the first program's")
    parser.add_argument("--programs", type=int, default=10**9, help="at most so many")
    parser.add_argument("--lowered-every", type=int, default=4, help="lower one in so many programs; 0: none")
    parser.add_argument("--compiled-every", type=int, default=20, help="compile one in so many programs; 0: none")
    parser.add_argument("--shrink-seconds", type=float, default=60.0, help="for each new kind of fault")
    parser.add_argument("--log", type=Path, default=Path("fuzz-log"), help="folder of the log")
    parser.add_argument("--nnsmith", action="store_true", help="networks of NNSmith instead of our own programs (see smith.py)")
    parser.add_argument("--show", action="store_true", help="print the program of --seed, and end")
    args = parser.parse_args()
    cache = Path(tempfile.gettempdir()) / f"memcompile-fuzz-{os.getuid()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("MEMCOMPILE_CACHE_DIR", str(cache / "memcompile"))

    import torch

    from tests.fuzz import generate as ours
    from tests.fuzz import smith
    from tests.fuzz.campaign import Campaign

    generate = smith.generate if args.nnsmith else ours.generate

    if args.show:
        print(generate(args.seed))
        return 0
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    campaign = Campaign(args.log, args.shrink_seconds)
    end, seed = time.monotonic() + args.seconds, args.seed
    while time.monotonic() < end and seed < args.seed + args.programs:
        compiled = args.compiled_every and seed % args.compiled_every == 0
        lowered = args.lowered_every and seed % args.lowered_every == 0
        campaign.try_one(generate(seed), "compiled" if compiled else "lowered" if lowered else "planned")
        seed += 1
    print(campaign.summary())
    return 1 if campaign.faults else 0


if __name__ == "__main__":
    sys.exit(main())
