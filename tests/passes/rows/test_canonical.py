"""Low-rank products in one spelling: the same numbers, what is refused, and what is left alone. Graphs: see the golden ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from memcompile.passes.rows.canonical import canonicalise
from memcompile.step.rewriting import Outcome, RefusedPattern, Rewrite
from tests.captured import captured, random_inputs, run
from tests.low_rank_nets import NETS, Sizes, example
from tests.passes.schedule.test_golden import lines_of
from tests.steps import relative_error

SIZES = Sizes()


def graph_of(name: str, train: bool = False, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    torch.manual_seed(0)
    net = NETS[name](SIZES).to(dtype).train(train)
    return captured(net, example(SIZES, dtype).requires_grad_(train), train=train)


def line_of(outcome: Outcome) -> str:
    if isinstance(outcome, Rewrite):
        return f"# {outcome.kind} {outcome.node}, {outcome.saves_bytes} bytes: {outcome.what}"
    return f"# {outcome.kind} {outcome.node} refused: {outcome.why}"


def assert_same_numbers(module: fx.GraphModule, tolerance: float = 1e-12) -> tuple[Outcome, ...]:
    """By PyTorch's own kernels, before and after; fake tensors are those of the real ones."""
    before = copy.deepcopy(module)
    outcomes = canonicalise(module)
    inputs = random_inputs(before)
    expected, found = run(before, inputs), run(module, inputs)
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert relative_error(left, right) < tolerance
        assert left.stride() == right.stride()
    return outcomes


@pytest.mark.parametrize("train", [False, True], ids=["inference", "joint"])
@pytest.mark.parametrize("name", NETS)
def test_the_numbers_stay(name: str, train: bool) -> None:
    assert_same_numbers(graph_of(name, train, torch.float64))


@pytest.mark.parametrize("name", ["LoRATwice", "Einsum", "PerHead", "Monarch"])
def test_a_second_time_nothing_is_left_to_do(name: str) -> None:
    module = graph_of(name, train=True)
    canonicalise(module)
    before = lines_of(module.graph)
    assert not [outcome for outcome in canonicalise(module) if isinstance(outcome, Rewrite)]
    assert lines_of(module.graph) == before


def test_sources_are_kept() -> None:
    module = graph_of("LoRA")
    outcomes = canonicalise(module)
    assert {outcome.source.split(":")[0] for outcome in outcomes} == {"low_rank_nets.py"}
    assert all(node.meta.get("stack_trace") for node in module.graph.nodes if node.op == "call_function")


ROWS, WIDE, RANK = 24, 32, 4


def operands(train: bool = False) -> list[Tensor]:
    """x [rows, wide], W [wide, wide], A [wide, rank], B [rank, wide], a number s."""
    torch.manual_seed(0)
    shapes = ((ROWS, WIDE), (WIDE, WIDE), (WIDE, RANK), (RANK, WIDE), ())
    return [torch.randn(shape, dtype=torch.float64).requires_grad_(train) for shape in shapes]


def outcomes_of(function: Callable[..., object], train: bool = False) -> list[str]:
    module = captured(function, *operands(train), train=train)
    return [line_of(outcome) for outcome in assert_same_numbers(module)]


def scaled_by_a_tensor(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return x @ w + x @ a @ b * s


def divided(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return x @ w + (x @ a @ b) / 3.0


def with_alpha(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return torch.add(x @ w, x @ a @ b, alpha=3)


def subtracted(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return x @ w - x @ a @ b


def product_first(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return x @ a @ b + x @ w


def in_three_dimensions(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    y = x.view(2, -1, WIDE)
    return y @ w + (y @ a @ b).transpose(0, 1).transpose(0, 1) * 0.5


def both_transposed(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return (x @ w).t() + (x @ a @ b).t()


def in_another_order(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return (x @ w).view(WIDE, ROWS).t() + x @ a @ b


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (scaled_by_a_tensor, ["scale", "accumulate"]),
        (divided, ["scale", "accumulate"]),
        (with_alpha, ["accumulate"]),
        (subtracted, ["accumulate"]),
        (product_first, ["accumulate"]),
        (in_three_dimensions, ["scale", "accumulate"]),
        (both_transposed, ["accumulate"]),
        (in_another_order, []),
    ],
)
def test_what_is_rewritten(function: Callable[..., object], kinds: list[str]) -> None:
    assert [line.split()[1] for line in outcomes_of(function)] == kinds
    assert not any("refused" in line for line in outcomes_of(function))
    outcomes_of(function, train=True)


def base_is_returned(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ w
    return y + x @ a @ b, y


def base_is_read(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    y = x @ w
    return (y + x @ a @ b) * y.exp()


def product_is_read(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    y = x @ a @ b
    return (x @ w + y) * y.exp()


def unscaled_is_returned(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ a @ b
    return y * 2.0, y


def factors_are_returned(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    product = a @ b
    return x @ product, product


def gradient_is_read_by_pointwise_code(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """The backward of y = xA @ B * 2 reads 2 dy for the products and for the bias-like input."""
    return (x @ a @ b + w[:ROWS]) * 2.0 + x @ w


@pytest.mark.parametrize(
    ("function", "train", "refusal"),
    [
        (base_is_returned, False, "# accumulate add refused: mm is used elsewhere"),
        (base_is_read, False, "# accumulate add refused: mm is used elsewhere"),
        (product_is_read, False, "# accumulate add refused: mm_1 is used elsewhere"),
        (unscaled_is_returned, False, "# scale mul refused: mm_1 is read unscaled, too"),
        (factors_are_returned, False, "# reassociate mm_1 refused: mm, the product of the factors, is used elsewhere"),
        (gradient_is_read_by_pointwise_code, True, "# scale mul_1 refused: slice_scatter reads it, too"),
    ],
)
def test_refusals_say_why(function: Callable[..., object], train: bool, refusal: str) -> None:
    lines = outcomes_of(function, train)
    assert refusal in lines
    assert not any("refused" not in line for line in lines if line.split()[1] == refusal.split()[1])


def test_dynamic_shapes_are_left_alone() -> None:
    x, *rest = operands()
    torch._dynamo.mark_dynamic(x, 0)
    module = captured(scaled_by_a_tensor, x, *rest, train=False)
    before = lines_of(module.graph)
    (outcome,) = canonicalise(module)
    assert isinstance(outcome, RefusedPattern)
    assert "dynamic shapes" in outcome.why
    assert lines_of(module.graph) == before


def traced(function: Callable[..., object], *inputs: Tensor) -> fx.GraphModule:
    """A graph with all of the function's copies: nothing was simplified."""
    module = make_fx(function, tracing_mode="fake")(*inputs)
    output = module.graph.output_node()
    if not isinstance(output.args[0], (tuple, list)):
        output.args = ((output.args[0],),)
    return module


def copies(x: Tensor) -> Tensor:
    return x.clone() @ x.clone().t()


def copies_to_another_order(x: Tensor) -> Tensor:
    return x.t().clone(memory_format=torch.contiguous_format) @ x


def returns_a_copy(x: Tensor) -> Tensor:
    return x.clone().view(-1)


def writes_what_was_copied(x: Tensor) -> Tensor:
    before = x.clone()
    torch.ops.aten.copy_(x, before + 1)
    return before.sum()


@pytest.mark.parametrize(
    ("function", "left"), [(copies, 0), (copies_to_another_order, 1), (returns_a_copy, 1), (writes_what_was_copied, 1)]
)
def test_only_copies_that_change_nothing_are_dropped(function: Callable[..., Tensor], left: int) -> None:
    module = traced(function, torch.randn(4, 3))
    outcomes = canonicalise(module)
    found = [node for node in module.graph.nodes if node.target is torch.ops.aten.clone.default]
    assert len(found) == left
    assert all(outcome.kind == "copy" for outcome in outcomes)
    x = torch.randn(4, 3)
    assert torch.equal(torch.as_tensor(module(x.clone())[0]), function(x.clone()))


def test_results_stay_tensors_of_their_own() -> None:
    """A view of everything that the graph returns is not replaced by what it views, nor two equal views by one."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x @ x.t()
        return y, y.view(2, 2, 4).view(4, 4), y.view(16), y.view(-1), x.view(12).view(4, 3)

    module = traced(function, torch.randn(4, 3))
    canonicalise(module)
    outputs: Any = module.graph.output_node().args[0]
    assert len(set(outputs)) == 5
    assert all(node.op == "call_function" for node in outputs)


terms = st.tuples(
    st.sampled_from(["plain", "number", "tensor", "alpha"]), st.booleans(), st.sampled_from([(), (2, -1, WIDE), (ROWS, 2, -1)])
)


@settings(max_examples=15)
@given(st.lists(terms, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_random_sums(found: list[tuple[str, bool, tuple[int, ...]]], train: bool, keeps_base: bool) -> None:
    """Terms with scales of every kind, in other shapes, on the left or on the right of a base that may be needed again."""

    def function(x: Tensor, w: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = base = x @ w
        for kind, left, shape in found:
            term, y = ((x @ a @ b).view(shape or x.shape), y.reshape(shape or x.shape))
            term = {"number": term * 1.5, "tensor": term * s, "plain": term, "alpha": term}[kind]
            y = torch.add(y, term, alpha=2 if kind == "alpha" else 1) if not left or kind == "alpha" else term + y
        return (y.tanh(), base) if keeps_base else y.tanh()

    assert_same_numbers(captured(function, *operands(train), train=train))
