"""From a seed to a program that eager runs: statements drawn from the palette, kept where they make finite numbers."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch
from torch import nn

from tests.fuzz import palette, unusual  # noqa: F401 - their statements enter the palette
from tests.fuzz.programs import COLUMNS, HEADER, Line, Mode, Program, Way, _operators
from tests.fuzz.run import Invalid, eager
from tests.fuzz.scope import PALETTE, Scope, Statement

INPUTS = (
    ("x", f"torch.randn(n, {COLUMNS}, requires_grad=True)"),
    ("y", f"torch.randn(n, {COLUMNS})"),
    ("i", "torch.randint(0, 16, (n,))"),
)
MORE_INPUTS = (
    ("v", f"torch.randn({COLUMNS}, requires_grad=True)"),
    ("z", f"torch.randn(n, {COLUMNS}, dtype=torch.complex64)"),
    ("h", f"torch.randn(n, {COLUMNS}).to(torch.bfloat16)"),
    ("m", f"torch.rand(n, {COLUMNS}) > 0.5"),
    ("u", f"torch.randn({COLUMNS}, n).t()"),
    ("q", f"torch.randn(n, {2 * COLUMNS})[:, ::2]"),
    ("e", f"torch.randn(1, {COLUMNS}).expand(n, {COLUMNS})"),
)
LARGEST = 1e3
"""Values above it are not kept: products of such soon overflow."""


def generate(seed: int) -> Program:
    """The program of a seed. The same in every process."""
    for attempt in range(1000):
        draw = random.Random(f"{seed} {attempt}")
        program = _drawn(seed, draw)
        if program is not None and (valid := _valid(program)) is not None:
            return valid
    raise AssertionError(f"nothing valid for seed {seed}")


def _way(draw: random.Random) -> Way:
    modes: tuple[Mode, ...] = ("train", "no_grad", "inference_mode")
    mode = draw.choices(modes, (7, 3, 1))[0]
    calls = draw.choices((1, 2, 3), (5, 4, 1))[0]
    rows = (48,) * calls
    if calls > 1 and draw.random() < 0.4:
        rows = tuple(draw.sample((48, 24, 40), calls))
    train = mode == "train"
    return Way(
        mode=mode,
        training=draw.random() < (0.8 if train else 0.3),
        rows=rows,
        dynamic=len(set(rows)) > 1 and draw.random() < 0.7,
        accumulate=train and calls > 1 and draw.random() < 0.4,
        optimizer=draw.choice(("SGD", "AdamW")) if train and calls > 1 and draw.random() < 0.15 else "",
        same_inputs=len(set(rows)) == 1 and calls > 1 and draw.random() < 0.4,
    )


def _drawn(seed: int, draw: random.Random) -> Program | None:
    way = _way(draw)
    inputs = INPUTS[: draw.choice((2, 2, 3))] + tuple(draw.sample(MORE_INPUTS, draw.choices((0, 1, 2), (5, 3, 1))[0]))
    if way.mode != "train":
        inputs = tuple((name, text.replace(", requires_grad=True", "")) for name, text in inputs)
    making = _Making(draw, Program(seed, (), inputs, (), (), way))
    favourites = draw.sample(PALETTE, 3)  # of each program: else all of them are equally mixed
    drawn = [(feature, weight * (6 if (feature, weight, f) in favourites else 1), f) for feature, weight, f in PALETTE]
    wanted = draw.randrange(3, 10)
    for _ in range(5 * wanted):
        if len(making.body) >= wanted:
            break
        feature, _, function = draw.choices(drawn, [weight for _, weight, _ in drawn])[0]
        making.propose(feature, function)
    return making.finished()


class _Making:
    """A program being made, executed as far as it is."""

    def __init__(self, draw: random.Random, program: Program) -> None:
        self.draw, self.program = draw, program
        self.setup: list[str] = []
        self.body: list[Line] = []
        self.attributes: dict[str, tuple[int, ...]] = {}
        self.made = 0
        self._start()

    def _start(self) -> None:
        """Execute all that was kept."""
        self.space: dict[str, Any] = dict(_operators())
        exec(HEADER, self.space)
        torch.manual_seed(0)
        self.space["self"] = nn.Module()
        self.space["self"].train(self.program.way.training)
        self._exec("\n".join(self.setup))
        torch.manual_seed(100)
        self.space["n"] = self.program.way.rows[0]
        for name, text in self.program.inputs:
            self._exec(f"{name} = {text}")
        with self._mode():
            for line in self.body:
                self._exec(line.text)

    def _mode(self) -> Any:
        return torch.set_grad_enabled(self.program.way.mode == "train")

    def _exec(self, text: str) -> None:
        exec(text, self.space)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The variables."""
        return {name: value for name, value in self.space.items() if isinstance(value, torch.Tensor)}

    def propose(self, feature: str, function: Statement) -> None:
        """Keep a statement that eager runs."""
        names = tuple(name for name, _ in self.program.inputs)
        scope = Scope(self.draw, self.tensors(), names, self.made, [], dict(self.attributes))
        text = function(scope)
        if text is None:
            return
        try:
            torch.manual_seed(1)
            self._exec("\n".join(scope.setup))
            with self._mode():
                self._exec(text)
        except (RuntimeError, IndexError, ValueError, TypeError):
            self._start()
            return
        if not all(_moderate(value) for value in self.tensors().values()):
            self._start()
            return
        self.setup += scope.setup
        self.body.append(Line(text, feature))
        self.made, self.attributes = scope.made, scope.attributes

    def finished(self) -> Program | None:
        """With what it returns; None where nothing in it is worth a gradient."""
        inputs = {name for name, _ in self.program.inputs}
        made = [name for name in self.tensors() if name not in inputs and name != "w"]
        train = self.program.way.mode == "train"
        useful = [name for name in made if not train or self.space[name].requires_grad]
        if not useful:
            return None
        returns = [useful[-1]]
        more = [
            *made[-4:],
            *made[-3:],
            *inputs,
            f"{useful[-1]}.shape[0]",
            "None",
            f"{useful[-1]}.detach()",
            "3",
            f"{useful[-1]}[:1]",
            returns[0],
        ]
        returns += self.draw.sample(sorted(more), self.draw.choices((0, 1, 2, 3), (4, 3, 2, 1))[0])
        if train and self.draw.random() < 0.4 and self.space[useful[-1]].dtype == torch.float32:
            loss = " + ".join(f"{name}.square().mean()" for name in useful[-2:] if self.space[name].dtype == torch.float32)
            self.body.append(Line(f"loss = {loss}", "loss inside"))
            returns[0] = "loss"
        body, setup = tuple(self.body), tuple(self.setup)
        return dataclasses.replace(self.program, setup=setup, body=body, returns=tuple(returns))


def _moderate(value: torch.Tensor) -> bool:
    if value.numel() == 0 or value.layout != torch.strided:
        return value.layout == torch.strided
    largest = (
        value.detach().abs().max()
        if value.dtype.is_floating_point or value.dtype.is_complex
        else value.detach().float().abs().max()
    )
    return bool(largest < LARGEST)


def _valid(program: Program) -> Program | None:
    """What eager runs in both precisions, backward too; lines are dropped from the end until it does."""
    while program.body:
        try:
            for double in (False, True):
                eager(program, double)
            return program
        except Invalid:
            program = program.without(len(program.body) - 1)
    return None
