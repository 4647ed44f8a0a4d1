"""What a statement of a random program is made from: the variables so far, and the parts of the model that it adds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tests.fuzz.programs import COLUMNS

C = COLUMNS


@dataclass
class Scope:
    """The variables so far, by name, and where to draw from. ``setup``: lines that the statement being made needs."""

    draw: random.Random
    values: dict[str, torch.Tensor]
    inputs: tuple[str, ...]
    made: int = 0
    setup: list[str] = field(default_factory=list)
    attributes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def new(self) -> str:
        """A new variable."""
        self.made += 1
        return f"a{self.made}"

    def of(self, *choices: str) -> str:
        """One of them."""
        return self.draw.choice(choices)

    def make(self, *choices: str, **names: str) -> str:
        """A new variable that is one of them."""
        return f"{self.new()} = {self.of(*choices).format(**names)}"

    def number(self) -> str:
        """A small constant."""
        return self.of("0.5", "2.0", "-1.0", "0.25", "1.5")

    def pick(self, holds: Callable[[torch.Tensor], bool]) -> str | None:
        """A variable for which it holds; the newest most often."""
        fit = [name for name, value in self.values.items() if holds(value)]
        return None if not fit else fit[max(self.draw.randrange(len(fit)), self.draw.randrange(len(fit)))]

    def floating(self, dims: int | None = None) -> str | None:
        """In single precision, of so many dimensions."""
        return self.pick(lambda t: t.dtype == torch.float32 and t.dim() > 0 and dims in (None, t.dim()))

    def rows(self) -> str | None:
        """A matrix of ``COLUMNS`` columns."""
        return self.pick(lambda t: t.dtype == torch.float32 and t.dim() == 2 and t.shape[1] == C)

    def like(self, name: str) -> str | None:
        """A variable of the same shape and type."""
        one = self.values[name]
        return self.pick(lambda t: t.shape == one.shape and t.dtype == one.dtype)

    def attribute(self, prefix: str, expression: str) -> str:
        """A parameter, buffer or module of the model, made for this statement."""
        name = f"{prefix}{len(self.attributes)}"
        self.attributes[name] = ()
        self.setup.append(expression.format(name=name))
        return f"self.{name}"

    def weight(self, *shape: int) -> str:
        """A parameter."""
        size = ", ".join(map(str, shape))
        scale = f" / {shape[0] ** 0.5:.3g}" if len(shape) > 1 else ""
        return self.attribute("w", f"self.{{name}} = nn.Parameter(torch.randn({size}){scale})")

    def buffer(self, *shape: int) -> str:
        """A buffer of zeros."""
        return self.attribute("b", f'self.register_buffer("{{name}}", torch.zeros({", ".join(map(str, shape))}))')


Statement = Callable[[Scope], str | None]
PALETTE: list[tuple[str, int, Statement]] = []
"""Feature, weight, function."""


def statement(feature: str, weight: int = 2) -> Callable[[Statement], Statement]:
    """Enter a function into the palette."""

    def enter(function: Statement) -> Statement:
        PALETTE.append((feature, weight, function))
        return function

    return enter
