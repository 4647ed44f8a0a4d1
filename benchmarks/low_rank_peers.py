"""Kernels of other packages for a case's layer, where the user has them: a checkout on PYTHONPATH, torch with CUDA and Triton.

Each adapter passes the module's own factors in the layout that the package documents. Written against their published sources;
where a version differs, the row says how it failed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.low_rank_nets import Blast, FeedForward, Monarch

Call = Callable[[Tensor], Tensor]
MODULES: Mapping[str, str] = {"flashsvd": "src.kernels.flashsvdffnv1", "blr": "triton_funcs.monarch_kernels"}
"""A module of each package, by which it is known to be there."""
CHECKOUTS: Mapping[str, str] = {"flashsvd": "github.com/Zishan-Shao/FlashSVD", "blr": "github.com/pabillam/mem-efficient-blr"}


def missing(peer: str) -> str:
    """Why ``peer`` is left out; "" where it is there."""
    try:
        found = importlib.util.find_spec(MODULES[peer]) is not None
    except ModuleNotFoundError:
        found = False
    return "" if found else f"left out: no module {MODULES[peer]}, put {CHECKOUTS[peer]} on PYTHONPATH"


def adapted(peer: str, module: nn.Module) -> Call:
    """``module`` by the peer's kernels. Raises `ImportError` without the package, `ValueError` for a dtype it has none for."""
    if peer == "flashsvd" and isinstance(module, FeedForward):
        return _flashsvd(module)
    if peer == "blr" and isinstance(module, Monarch | Blast):
        return _block_low_rank(module)
    raise ValueError(f"{peer} has no kernel for {type(module).__name__}")


def _flashsvd(module: FeedForward) -> Call:
    kernel = importlib.import_module(MODULES["flashsvd"]).flashsvd_ffn_v1
    expand, contract = module.expand, module.contract
    factors = [t.detach().T.contiguous() for t in (expand.second, contract.first, contract.second)]
    biases = [layer.bias.detach() for layer in (expand, contract) if layer.bias is not None]

    def call(x: Tensor) -> Tensor:
        out: Tensor = kernel(x @ expand.first.T, *factors, *biases)
        return out

    return call


def _block_low_rank(module: Monarch | Blast) -> Call:
    suffix = {torch.float32: "fp32", torch.float16: "fp16"}.get(module.first.dtype)
    if suffix is None:
        raise ValueError(f"kernels for fp32 and fp16 only, not {module.first.dtype}")
    first, second = (t.detach().transpose(1, 2).contiguous() for t in (module.first, module.second))
    if isinstance(module, Blast):
        kernel = getattr(importlib.import_module("triton_funcs.blast_kernels"), f"triton_blast_partial_grouped_{suffix}")
        scales = module.scales.detach().transpose(0, 1).contiguous()
        return lambda x: _leading(kernel(x[None], second, first, scales))[0]
    kernel = getattr(importlib.import_module(MODULES["blr"]), f"triton_monarch_right_left_{suffix}")
    blocks = module.blocks
    grouped = first.unflatten(2, (-1, blocks)).transpose(2, 3).flatten(2).contiguous()
    return lambda x: _leading(kernel(x[None], grouped, second))[0]


def _leading(output: Any) -> Tensor:
    """The result, which comes first where there are several."""
    out: Tensor = output if isinstance(output, Tensor) else output[0]
    return out
