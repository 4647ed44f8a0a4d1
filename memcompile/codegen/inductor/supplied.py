"""Compiled code with inputs that its caller does not know of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Supply = Callable[[], Sequence[torch.Tensor]]


class Supplied:
    """Inductor's code behind its own calling convention; ``supply()`` gives the last inputs at each call."""

    _boxed_call = True

    def __init__(self, code: Callable[..., Any], supply: Supply) -> None:
        self.code, self.supply = code, supply

    def __call__(self, args: list[Any]) -> Any:
        args.extend(self.supply())
        return self.code(args)
