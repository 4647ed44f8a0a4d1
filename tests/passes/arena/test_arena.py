"""Steps in an arena: the same numbers, the planned bytes, and never two uses of one place at a time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import memcompile
from memcompile.runtime.arena import BLOCKS
from memcompile.runtime.measure import measure_peak
from tests.random_programs import N, Program
from tests.steps import QUICK

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_arenas(fresh_dynamo: None) -> None:
    BLOCKS.made = 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(self.up(x))
        y: torch.Tensor = (x + self.down(F.dropout(hidden, 0.1, self.training))).tanh()
        return y


def compiled(model: Callable[..., Any], arena: str = "step", **more: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="memcompile", options={"arena": arena, "inductor": QUICK, **more})


def gradients(function: Callable[..., Any], model: nn.Module, x: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    out = function(x)
    (out[0] if isinstance(out, tuple) else out).pow(2).mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def same(left: Sequence[torch.Tensor | None], right: Sequence[torch.Tensor]) -> bool:
    return all(a is not None and torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("arena", ["step", "graph"])
def test_the_numbers_are_those_without_an_arena(arena: str) -> None:
    model, x = Net(), torch.randn(512, 64)
    expected = gradients(compiled(model, "off"), model, x)
    torch._dynamo.reset()
    function = compiled(model, arena, schedule=False)
    for _ in range(3):
        assert same(gradients(function, model, x), expected)
    assert BLOCKS.made == (arena == "step"), "one block, step after step; without saved tensors none is worth it here"


class Loss(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).pow(2).mean()


@pytest.mark.parametrize("budget", [None, "97%"])
def test_the_measured_peak_is_the_planned_one(budget: str | None) -> None:
    model, x = Loss(), torch.randn(512, 64)
    function = compiled(model, memory_budget=budget)

    def step() -> None:
        function(x).backward()
        model.zero_grad(set_to_none=True)

    measured = measure_peak(step, model=model, inputs=x)
    report = memcompile.report(function)
    assert abs(measured.peak_bytes - report.planned_peak_bytes) <= 64
    arena = report.graphs[0]["arena"]
    assert arena is not None
    assert arena.height_bytes == arena.lower_bound_bytes > 0
    assert arena.calls_after < arena.calls_before
    assert report.planned_peak_bytes <= (report.budget_bytes or report.unplanned_peak_bytes + 64 * arena.calls_before)
    assert "allocations a step" in str(report)


def test_what_the_user_holds_is_not_written_over() -> None:
    model, x = Net(), torch.randn(512, 64)
    function = compiled(model)
    out = function(x)
    copy = out.detach().clone()
    first = gradients(function, model, x)
    kept = [p.grad for p in model.parameters()]
    gradients(function, model, 2 * x, seed=1)
    assert torch.equal(out, copy)
    assert same(kept, first)


@pytest.mark.parametrize("newest_first", [False, True])
def test_two_forwards_before_a_backward(newest_first: bool) -> None:
    model, inputs = Net().eval(), [torch.randn(512, 64), torch.randn(512, 64)]
    function = compiled(model)
    expected = [gradients(function, model, x) for x in inputs]
    losses = [function(x).pow(2).mean() for x in inputs]
    assert BLOCKS.made == 2, "the first one's saved tensors lie in the first block"
    for index in (1, 0) if newest_first else (0, 1):
        model.zero_grad(set_to_none=True)
        losses[index].backward()
        assert same([p.grad for p in model.parameters()], expected[index])
    gradients(function, model, inputs[0])
    assert BLOCKS.made == 2


def test_a_forward_without_a_backward_gives_its_block_back() -> None:
    model, x = Net(), torch.randn(512, 64)
    function = compiled(model)
    held = function(x)
    assert BLOCKS.blocks[0].taken
    del held
    assert not BLOCKS.blocks[0].taken


def test_a_graph_that_is_kept_for_another_backward() -> None:
    model, x = Net().eval(), torch.randn(512, 64)
    with torch._functorch.config.patch(donated_buffer=False):  # else PyTorch itself refuses
        function = compiled(model)
        expected = gradients(function, model, x)
        model.zero_grad(set_to_none=True)
        loss = function(x).pow(2).mean()
        loss.backward(retain_graph=True)
        loss.backward()
    for p, g in zip(model.parameters(), expected, strict=True):
        assert p.grad is not None and torch.allclose(p.grad, 2 * g)


@torch.library.custom_op("memcompile_tests::may_fail", mutates_args=())
def may_fail(x: torch.Tensor, fails: torch.Tensor) -> torch.Tensor:
    if fails.item():
        raise ValueError("half-way")
    return x.clone()


@may_fail.register_fake
def _(x: torch.Tensor, fails: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_an_exception_half_way() -> None:
    weight = torch.randn(64, 64)

    def function(x: torch.Tensor, fails: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = (may_fail((x @ weight).sin(), fails) @ weight).cos()
        return y

    fast, x = compiled(function), torch.randn(512, 64)
    no, yes = torch.tensor(False), torch.tensor(True)
    expected = fast(x, no)
    with pytest.raises(ValueError, match="half-way"):
        fast(x, yes)
    assert torch.equal(fast(x, no), expected)
    gc.collect()
    assert not any(block.taken for block in BLOCKS.blocks)


def test_threads_do_not_share_a_block() -> None:
    model = Net().eval()
    function, inputs = compiled(model), [torch.randn(512, 64) for _ in range(4)]
    with torch.no_grad():
        expected = [function(x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(50):
                if not torch.equal(function(inputs[index]), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert BLOCKS.made <= 5


def test_models_share_what_is_idle() -> None:
    one, two, x = Net(), Net(), torch.randn(512, 64)
    gradients(compiled(one), one, x)
    gradients(compiled(two), two, x)
    assert BLOCKS.made == 1


def test_a_step_that_needs_more_takes_the_place_of_a_smaller_block() -> None:
    model = Net()
    function = compiled(model)
    for rows in (256, 1024, 256):
        torch._dynamo.mark_static(x := torch.randn(rows, 64))
        gradients(function, model, x)
    assert BLOCKS.made == 2
    assert len(BLOCKS.blocks) == 1


def test_what_lies_idle_counts_within_a_budget() -> None:
    """The block of a larger model is no memory to spare for a smaller one that has a budget."""

    class Loss(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).pow(2).mean()

    large, small = Net(), Loss()
    wide, narrow = torch.randn(4096, 64), torch.randn(512, 64)
    for x in (wide, narrow):
        torch._dynamo.mark_static(x)
    gradients(compiled(large), large, wide)
    function = compiled(small, memory_budget="97%")

    def step() -> None:
        small.zero_grad()
        function(narrow).backward()

    step()
    report = memcompile.report(function)
    assert report.graphs[0]["arena"].height_bytes > 0
    assert report.budget_bytes is not None
    assert measure_peak(step, model=small, inputs=(narrow,)).peak_bytes <= report.budget_bytes


def test_memory_is_given_back() -> None:
    model, x = Net(), torch.randn(512, 64)
    function = compiled(model)
    expected = gradients(function, model, x)
    size = BLOCKS.reserved_bytes(CPU)
    assert memcompile.release() == size > 0
    assert BLOCKS.reserved_bytes(CPU) == 0
    assert same(gradients(function, model, x), expected)
    held = function(x)
    assert memcompile.release() == 0, "it is in use"
    del held, function
    torch._dynamo.reset()
    gc.collect()
    assert BLOCKS.reserved_bytes(CPU) == 0, "its model is gone"


def test_dynamic_shapes_have_none_and_say_so() -> None:
    model = Net()
    function = torch.compile(model, backend="memcompile", options={"arena": "step", "inductor": QUICK}, dynamic=True)
    gradients(function, model, torch.randn(512, 64))
    report = memcompile.report(function)
    assert "arena" in str(report)
    assert "dynamic shapes" in str(report)
    assert not BLOCKS.blocks


def test_graphs_of_one_step_have_one_arena() -> None:
    """The second graph of a step runs while the first one's saved tensors are alive: it has none of its own."""

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        hidden = (x @ weight).sin()
        torch._dynamo.graph_break()
        return (hidden @ weight).cos().sum()

    weight, x = torch.randn(64, 64, requires_grad=True), torch.randn(512, 64)
    expected = torch.autograd.grad(function(x, weight), weight)
    fast = compiled(function)
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(fast(x, weight), weight), expected, rtol=1e-3, atol=1e-2)
    report = memcompile.report(fast)
    refused = [graph["arena"].refused for graph in report.graphs if graph["arena"] is not None]
    assert len(refused) == 2
    assert refused[0] == ""
    assert "another graph" in refused[1]


@settings(max_examples=4)
@given(seed=st.integers(0, 2**32))
def test_random_programs_bit_for_bit(seed: int) -> None:
    model, x = Program(seed), torch.randn(N, N)
    found = []
    for arena in ("off", "step"):
        torch._dynamo.reset()
        function = compiled(model, arena)
        found.append([*gradients(function, model, x), *gradients(function, model, x)])
    assert same(*found)
