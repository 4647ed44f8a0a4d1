"""Kernels of other packages for a case's layer, where the user has them: a checkout on PYTHONPATH, torch with CUDA and Triton.

Each adapter passes the module's own factors in the layout that the package documents. Written against their published sources;
where a version differs, the row says how it failed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.low_rank_nets import Blast, FeedForward, Monarch

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


def adapted(peer: str, module: nn.Module) -> nn.Module:
    """``module`` by the peer's kernels, with copies of its factors. Raises `ImportError` without the package, and `ValueError`
    for what it has no kernel for."""
    if peer == "flashsvd" and isinstance(module, FeedForward):
        return FlashSvd(module)
    if peer == "blr" and isinstance(module, Monarch | Blast):
        return BlockLowRank(module)
    raise ValueError(f"{peer} has no kernel for {type(module).__name__}")


class FlashSvd(nn.Module):
    """FlashSVD's first feed-forward kernel: the hidden stays on chip."""

    def __init__(self, module: FeedForward) -> None:
        super().__init__()
        self.kernel = importlib.import_module(MODULES["flashsvd"]).flashsvd_ffn_v1
        expand, contract = module.expand, module.contract
        factors = (expand.first, expand.second, contract.first, contract.second)
        self.factors = nn.ParameterList(_frozen(factor.T) for factor in factors)
        self.biases = nn.ParameterList(_frozen(layer.bias) for layer in (expand, contract) if layer.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        first, *factors = self.factors
        out: Tensor = self.kernel(x @ first, *factors, *self.biases)
        return out


class BlockLowRank(nn.Module):
    """mem-efficient-blr's kernels of Monarch and BLAST, in fp32 or fp16."""

    def __init__(self, module: Monarch | Blast) -> None:
        super().__init__()
        suffix = {torch.float32: "fp32", torch.float16: "fp16"}.get(module.first.dtype)
        if suffix is None:
            raise ValueError(f"blr has no kernel for {module.first.dtype}, only for fp32 and fp16")
        first, second = (factor.detach().transpose(1, 2) for factor in (module.first, module.second))
        if isinstance(module, Blast):
            name, kernel = "triton_funcs.blast_kernels", f"triton_blast_partial_grouped_{suffix}"
            factors = [second, first, module.scales.detach().transpose(0, 1)]
        else:
            name, kernel = MODULES["blr"], f"triton_monarch_right_left_{suffix}"
            factors = [first.view(*first.shape[:2], -1, module.blocks).transpose(2, 3).flatten(2), second]
        self.kernel = getattr(importlib.import_module(name), kernel)
        self.factors = nn.ParameterList(map(_frozen, factors))

    def forward(self, x: Tensor) -> Tensor:
        found = self.kernel(x[None], *self.factors)
        out: Tensor = found if isinstance(found, Tensor) else found[0]
        return out[0]


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous().clone(), requires_grad=False)
