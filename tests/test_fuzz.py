"""The random programs and their judge: what would be no use if it were wrong itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.core.table import write_table
from tests.fuzz.campaign import lines_of, logs, table
from tests.fuzz.check import Level, Setting, check, setting_of
from tests.fuzz.generate import generate
from tests.fuzz.judge import differences
from tests.fuzz.programs import Line, Program, Way
from tests.fuzz.regressions import REGRESSIONS
from tests.fuzz.run import eager, run
from tests.fuzz.scope import PALETTE
from tests.fuzz.shrink import shrink

SIMPLE = Program(
    0,
    ("self.w0 = nn.Parameter(torch.randn(32, 32) / 6)", 'self.register_buffer("b1", torch.zeros(32))'),
    (("x", "torch.randn(n, 32, requires_grad=True)"), ("y", "torch.randn(n, 32)")),
    (
        Line("a1 = x @ self.w0", "product"),
        Line("y.add_(1)", "input written"),
        Line("self.b1.add_(a1.detach().sum(0))", "buffer written"),
        Line("a2 = a1.sin() * y", "pointwise"),
    ),
    ("a2", "y[1:]"),
    Way(rows=(16, 24)),
)


def test_a_seed_is_one_program() -> None:
    assert [str(generate(seed)) for seed in range(6)] == [str(generate(seed)) for seed in range(6)]
    assert len({generate(seed).code for seed in range(6)}) == 6


def test_a_program_is_a_script() -> None:
    script = str(generate(3))
    compile(script, "a program", "exec")
    assert "class Model" in script and "torch.compile" in script


def test_every_kind_of_statement_is_drawn() -> None:
    features = {feature for seed in range(80) for feature in generate(seed).features}
    assert {feature for feature, _, _ in PALETTE} - features <= {"data-dependent size", "effectful", "attention", "convolution"}


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (lambda model, args: model(*args), ""),
        (lambda model, args: model(args[0], args[1].clone()), "input 1"),
        (lambda model, args: (model(*args)[0] * 1.001, args[1][1:]), "output 0"),
        (lambda model, args: (model(*args)[0].detach().requires_grad_(), args[1][1:]), "gradient"),
        (lambda model, args: (model(*args)[0], args[1][1:].clone()), "output 1"),
        (lambda model, args: [model(*args), model.b1.zero_()][0], "buffer"),
        (lambda model, args: tuple(out.clone().t().contiguous().t() for out in model(*args)), "strides"),
    ],
)
def test_what_is_wrong_is_seen(fault: Callable[[Any, tuple[Any, ...]], Any], found: str) -> None:
    expected, exact = eager(SIMPLE), eager(SIMPLE, double=True)
    ours = run(SIMPLE, lambda model: lambda *args: fault(model, args))
    wrong = [d.what for d in differences(ours.values, expected.values, exact.values, 2**-23)]
    wrong += [name for name, fact in expected.facts.items() if ours.facts.get(name) != fact]
    assert any(found in what for what in wrong) if found else not wrong


def test_rounding_is_no_difference() -> None:
    """Double precision rounded at the end is as good as eager."""
    expected, exact = eager(SIMPLE), eager(SIMPLE, double=True)
    ours = {k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in exact.values.items()}
    assert not differences(ours, expected.values, exact.values, 2**-23)


def test_shrinking_leaves_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that loses what is written to an input: one line remains."""
    from tests.fuzz import check as checking

    def losing(_options: object, _lowered: bool) -> Callable[..., Any]:
        def backend(gm: Callable[..., Any], inputs: object) -> Callable[..., Any]:
            return lambda *args: gm(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args))

        return backend

    monkeypatch.setattr(checking, "planned_backend", losing)
    program = dataclasses.replace(SIMPLE, way=Way("no_grad", rows=(16,)), returns=("a2",))
    fault = check(program, Setting())
    assert fault.status == "different", fault
    small, _, outcome = shrink(program, Setting(), fault, 5.0)
    assert outcome.status == "different"
    assert len(small.body) <= 3 and any("written" in line.feature for line in small.body)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_once_failed(name: str) -> None:
    outcome = check(*REGRESSIONS[name])
    assert not outcome.is_fault and outcome.status != "torch", outcome.detail


FIXED = [
    ("planned", 0, 12),
    ("planned", 100, 12),
    ("planned", 200, 12),
    ("lowered", 300, 5),
    ("lowered", 400, 5),
    ("compiled", 503, 2),
]
"""Level, first seed, number of programs."""


@pytest.mark.parametrize(("level", "first", "count"), FIXED)
def test_programs_nobody_chose(level: Level, first: int, count: int) -> None:
    """A fixed part of ``make fuzz``."""
    outcomes = {seed: check(program := generate(seed), setting_of(program, level)) for seed in range(first, first + count)}
    faults = {seed: (outcome.signature, outcome.detail) for seed, outcome in outcomes.items() if outcome.is_fault}
    assert not faults, faults
    assert sum(outcome.status == "same" for outcome in outcomes.values()) >= count // 2


def test_several_logs_make_one_table(tmp_path: Path) -> None:
    """A program that ran twice counts as it ran last; what stands around the table stays."""
    lines = [("a", 1, "crash"), ("a", 2, "refused"), ("b", 1, "same")]
    for folder, seed, status in lines:
        (tmp_path / folder).mkdir(exist_ok=True)
        with (tmp_path / folder / "programs.jsonl").open("a") as log:
            log.write(json.dumps({"source": "ours", "level": "planned", "seed": seed, "status": status}) + "\n")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: written by fuzz.py -->\nold\n<!-- end of fuzz results -->\nafter\n")
    write_table("fuzz", table(lines_of(logs(tmp_path))), page)
    text = """before
<!-- results: written by fuzz.py -->

| programs | level | run | same | refused |
| --- | --- | --- | --- | --- |
| ours | planned | 2 | 1 | 1 |
<!-- end of fuzz results -->
after
"""
    assert page.read_text() == text
    with pytest.raises(ValueError, match=r"written by operators\.py.* missing"):
        write_table("operators", "", page)
