"""Effects of graphs that were rewritten by expressions that value numbering cannot compare."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from memcompile.step.verify_effects import check_effects, effects_of
from memcompile.step.verify_values import VerificationError
from tests.step import test_verify_values as programs
from tests.step.test_verify_values import Call, Write, step

aten = torch.ops.aten


def rewritten(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Other expressions for the same product; what is written is written as before."""
    new = call(aten.add.Tensor, call(aten.sin.default, a), b)
    product = call(aten.addmm.default, a, a, call(aten.permute.default, b, [1, 0]))
    call(aten.copy_.default, b, new)
    return (product, new)


def check(before: Write, after: Write) -> None:
    check_effects(effects_of(step(before).forward.graph), step(after).forward.graph)


def test_other_expressions_pass() -> None:
    check(programs.updated, rewritten)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (programs.updated, programs.not_written, "b is written by None, was by"),
        (programs.updated, programs.written_twice, r"b is written by .*copy_.*copy_.*, was by"),
        (programs.updated, programs.read_too_late, "b is read after it was written"),
        (programs.updated, programs.view_read_too_late, "b is read after it was written"),
        (programs.drawn, programs.drawn_once, "effects changed"),
        (programs.drawn, programs.drawn_once_more, "effects changed"),
        (programs.drawn, programs.asserted, "effects changed"),
    ],
)
def test_what_changed_is_named(before: Write, after: Write, words: str) -> None:
    with pytest.raises(VerificationError, match=words):
        check(before, after)
