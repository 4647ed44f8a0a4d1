#!/bin/sh
# The CUDA tests and the benchmarks on a machine with a GPU, torch >= 2.11 and Python >= 3.11. Needs no network and installs
# nothing: the checkout goes on PYTHONPATH, beside a folder of metadata that registers the backend's entry point.
#
#   OUT=results sh benchmarks/gpu.sh                    everything
#   MODELS="gpt2 unet" BUDGETS="60 35" sh benchmarks/gpu.sh
#   ONLY=tests sh benchmarks/gpu.sh                     or ONLY=benchmarks, ONLY=demo, ONLY=low_rank, ONLY=patch,
#                                                       ONLY=swap
#
# OUT: where the rows and logs go (default benchmarks/results). BATCH_SCALE: multiplies every batch (default 8). CASES, DTYPES,
# LAYERS (default 12): of the low-rank benchmark. With checkouts of FlashSVD and mem-efficient-blr on PYTHONPATH it measures their
# kernels too. PATCH_CASES (default: all), PATCH_DTYPES: of the patch benchmark.
set -eu

cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
MODELS=${MODELS:-gpt2 bert llama vit resnet50 unet lstm}
BUDGETS=${BUDGETS:-80 60 45 35 25}
BATCH_SCALE=${BATCH_SCALE:-8}
ROUNDS=${ROUNDS:-30}
CASES=${CASES:-}
DTYPES=${DTYPES:-float32 float16 bfloat16}
LAYERS=${LAYERS:-12}
PATCH_CASES=${PATCH_CASES:-all}
PATCH_DTYPES=${PATCH_DTYPES:-float32 float16}
ONLY=${ONLY:-}
mkdir -p "$OUT"

metadata=$(mktemp -d)
trap 'rm -rf "$metadata"' EXIT
"$PYTHON" - "$metadata" <<'PY'
import pathlib, sys, tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
folder = pathlib.Path(sys.argv[1], f"{project['name']}-{project['version']}.dist-info")
folder.mkdir()
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
groups = {**project["entry-points"], "console_scripts": project["scripts"]}
text = "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items())
(folder / "entry_points.txt").write_text(text)
PY
export PYTHONPATH="$PWD:$metadata${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false

"$PYTHON" - <<'PY'
import torch
from torch._dynamo.backends.registry import lookup_backend

name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device: the CPU is measured instead"
print(f"torch {torch.__version__}, {name}; backend: {lookup_backend('memcompile')}")
PY

wanted() { [ -z "$ONLY" ] || [ "$ONLY" = "$1" ]; }

if wanted tests && "$PYTHON" -c 'import pytest, expecttest' 2>/dev/null; then
    "$PYTHON" -m pytest -q -m cuda -p no:cacheprovider 2>&1 | tee "$OUT/gpu-tests.log" || true
fi
if wanted benchmarks; then
    # shellcheck disable=SC2086  # lists of words
    "$PYTHON" benchmarks/rematerialize.py --resume --models $MODELS --budgets $BUDGETS --batch-scale "$BATCH_SCALE" \
        --rounds "$ROUNDS" --results "$OUT/rematerialize-gpu.csv" 2>&1 | tee "$OUT/gpu-benchmark.log"
    # shellcheck disable=SC2086
    "$PYTHON" benchmarks/arena.py --models $MODELS --batch-scale "$BATCH_SCALE" --rounds "$ROUNDS" \
        --results "$OUT/arena-gpu.csv" 2>&1 | tee "$OUT/gpu-arena.log"
fi
if wanted benchmarks || wanted low_rank; then
    for dtype in $DTYPES; do
        # shellcheck disable=SC2086
        "$PYTHON" benchmarks/low_rank.py ${CASES:+--cases $CASES} --dtype "$dtype" --rounds "$ROUNDS" --layers "$LAYERS" \
            --results "$OUT/low_rank-gpu.csv" 2>&1 | tee "$OUT/gpu-low_rank-$dtype.log"
    done
fi
if wanted benchmarks || wanted patch; then
    for dtype in $PATCH_DTYPES; do
        # shellcheck disable=SC2086
        "$PYTHON" benchmarks/patch.py --cases $PATCH_CASES --dtype "$dtype" --rounds "$ROUNDS" \
            --results "$OUT/patch-gpu.csv" 2>&1 | tee "$OUT/gpu-patch-$dtype.log"
    done
fi
if wanted benchmarks || wanted swap; then
    "$PYTHON" benchmarks/swap.py --models gpt2 resnet50 --batch-scale "$BATCH_SCALE" --rounds "$ROUNDS" \
        --results "$OUT/swap-gpu.csv" 2>&1 | tee "$OUT/gpu-swap.log"
fi
if wanted demo; then
    "$PYTHON" examples/train_gpt2.py 2>&1 | tee "$OUT/gpu-demo.log"
fi
