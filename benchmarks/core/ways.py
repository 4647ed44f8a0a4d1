"""The ways to run a step: eager, plain torch.compile, what people do today to save memory, and memcompile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

Compiler = Literal["eager", "compile", "memcompile"]


@dataclass(frozen=True)
class Way:
    """``compiler``: that its module goes through, with ``options``. ``variant``: what is run in the module's place, by a name
    that its benchmark knows. ``share``: memcompile's budget, as a share of bytes that the benchmark has to measure first."""

    name: str
    compiler: Compiler
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    share: float | None = None

    @property
    def ours(self) -> bool:
        """Whether memcompile takes part."""
        return self.compiler == "memcompile"

    @property
    def budget_bytes(self) -> int | None:
        """memcompile's budget, of everything alive."""
        found: int | None = self.options.get("memory_budget")
        return found

    def within(self, budget_bytes: int) -> Way:
        """The same under a budget."""
        return replace(self, options={**self.options, "memory_budget": budget_bytes})

    def compiled(self, module: nn.Module) -> Callable[..., Any]:
        """What is called in the module's place."""
        if self.compiler == "eager":
            return module
        options = dict(self.options)
        if self.ours:
            return torch.compile(module, backend="memcompile", options=options)
        return torch.compile(module, options=options or None)


EAGER, PLAIN = Way("eager", "eager"), Way("compile", "compile")
