"""``memcompile::linear(x, weight, bias) -> x @ weight.T + bias`` by oneDNN, in single precision on the CPU.

    x [M, K],  weight [N, K],  bias [N] or None  ->  [M, N]

``torch.nn.functional.linear`` takes MKL there, which uses a slower path on AMD's processors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _like(x: Tensor, weight: Tensor, _bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_LIBRARY: Any = torch.library.Library("memcompile", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.impl("linear", _linear, "CPU")
torch.library.register_fake("memcompile::linear", _like, lib=_LIBRARY)
LINEAR = torch.ops.memcompile.linear.default
