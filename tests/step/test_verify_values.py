"""Value numbering: programs that compute the same have the same numbers, others have not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from memcompile.step.facts import StepGraphs
from memcompile.step.verify_values import VerificationError, check_values

aten = torch.ops.aten
Call = Callable[..., fx.Node]
Write = Callable[[Call, fx.Node, fx.Node], Any]


def step(write: Write) -> StepGraphs:
    """An inference graph of two inputs; ``write(call, a, b)`` returns what it returns."""
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")

    def call(op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return graph.call_function(op, args, kwargs)

    outputs = write(call, a, b)
    graph.output(outputs)
    return StepGraphs(fx.GraphModule({}, graph), None, len(outputs))


def updated(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    """b becomes b + sin(a); the product is of what it was."""
    new = call(aten.add.Tensor, b, call(aten.sin.default, a))
    product = call(aten.mm.default, a, call(aten.permute.default, b, [1, 0]))
    call(aten.copy_.default, b, new)
    return (product, new)


def recomputed(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    product = call(aten.mm.default, a, call(aten.permute.default, b, [1, 0]))
    call(aten.copy_.default, b, call(aten.add.Tensor, b, call(aten.sin.default, a)))
    return (product, b)  # its content is the sum


def read_too_late(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    new = call(aten.add.Tensor, b, call(aten.sin.default, a))
    call(aten.copy_.default, b, new)
    return (call(aten.mm.default, a, call(aten.permute.default, b, [1, 0])), new)


def view_read_too_late(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    view, new = call(aten.permute.default, b, [1, 0]), call(aten.add.Tensor, b, call(aten.sin.default, a))
    call(aten.copy_.default, b, new)
    return (call(aten.mm.default, a, view), new)


def written_through_a_view(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The same memory, in another shape: not the same as a whole, but it is written."""
    new = call(aten.add.Tensor, b, call(aten.sin.default, a))
    product = call(aten.mm.default, a, call(aten.permute.default, b, [1, 0]))
    call(aten.copy_.default, call(aten.view.default, b, [-1]), call(aten.view.default, new, [-1]))
    return (product, b)


def not_written(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    new = call(aten.add.Tensor, b, call(aten.sin.default, a))
    return (call(aten.mm.default, a, call(aten.permute.default, b, [1, 0])), new)


def written_twice(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    outputs = updated(call, a, b)
    call(aten.copy_.default, b, outputs[1])
    return outputs


def another_constant(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    new = call(aten.add.Tensor, b, call(aten.sin.default, a), alpha=1.0)
    product = call(aten.mm.default, a, call(aten.permute.default, b, [1, 0]))
    call(aten.copy_.default, b, new)
    return (product, new)


def test_what_computes_the_same_passes() -> None:
    check_values(step(updated), step(updated))
    check_values(step(recomputed), step(recomputed))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (read_too_late, "output 0 .* another value"),
        (view_read_too_late, "output 0 .* another value"),
        (not_written, "leaves other values in b"),
        (written_twice, "leaves other values in b"),
        (written_through_a_view, "leaves other values in b"),
        (another_constant, "leaves other values in b"),
    ],
)
def test_what_does_not_is_found(other: Write, words: str) -> None:
    with pytest.raises(VerificationError, match=words):
        check_values(step(updated), step(other))


def drawn(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    first, second = call(aten.rand_like.default, a), call(aten.rand_like.default, b)
    return (call(aten.mul.Tensor, a, first), call(aten.mul.Tensor, b, second))


def drawn_in_another_order(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    second, first = call(aten.rand_like.default, b), call(aten.rand_like.default, a)
    return (call(aten.mul.Tensor, a, first), call(aten.mul.Tensor, b, second))


def drawn_once_more(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    call(aten.rand_like.default, a)
    return drawn(call, a, b)


def asserted(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    call(aten._assert_async.default, a)
    return drawn(call, a, b)


def drawn_once(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
    first = call(aten.rand_like.default, a)
    return (call(aten.mul.Tensor, a, first), call(aten.mul.Tensor, b, first))


@pytest.mark.parametrize("other", [drawn_in_another_order, drawn_once_more, drawn_once, asserted])
def test_effects_happen_once_and_in_their_order(other: Write) -> None:
    check_values(step(drawn), step(drawn))
    with pytest.raises(VerificationError, match=r"effects of the forward changed|gets other values"):
        check_values(step(drawn), step(other))


def test_attention_that_drops_nothing_is_no_effect() -> None:
    def once(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
        x = call(aten._scaled_dot_product_flash_attention_for_cpu.default, a, a, b)
        return (x, call(aten.sin.default, x))

    def twice(call: Call, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
        x = call(aten._scaled_dot_product_flash_attention_for_cpu.default, a, a, b)
        again = call(aten._scaled_dot_product_flash_attention_for_cpu.default, a, a, b)
        return (x, call(aten.sin.default, again))

    check_values(step(once), step(twice))
