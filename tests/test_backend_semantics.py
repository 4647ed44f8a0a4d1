"""What a plan must not change: everything that PyTorch programs do besides pure arithmetic, under a budget that bites.

Each case is trained one step in eager mode and one step compiled at its budget; outputs, gradients, buffers and inputs agree.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import memcompile
from memcompile.runtime.measure import measure_peak
from tests.steps import (
    QUICK,
    assert_promise,
    assert_same_step,
    compiled,
    measured,
    own,
    recomputed,
    relative_error,
    run_eager,
    run_inductor,
    run_memcompile,
    train,
)

WIDTH, ROWS = 32, 256


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Chain(nn.Module):
    """A deep chain of wide layers: there is always something worth dropping. Subclasses put something in its middle."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.last = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def run(self, layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            x = torch.tanh(F.gelu(layer(x)).exp())
        return x

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.last, self.middle(self.run(self.first, x))).pow(2).mean()


class Tied(Chain):
    """Every weight is read by two layers, the first one by all."""

    def __init__(self) -> None:
        super().__init__()
        self.last = self.first

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        first: Any = self.first[0]
        y: torch.Tensor = x @ first.weight.t()
        return y


class InPlace(Chain):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, ::2] += 1
        y.mul_(x).relu_()
        z = torch.zeros_like(y)
        z[3:] = y[3:]
        return z.add_(x[0])


class Views(Chain):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.view(ROWS, 4, 8).transpose(1, 2).chunk(2, dim=1)
        y = torch.cat([b, a], dim=1).permute(2, 0, 1).reshape(ROWS, -1)
        y = y + x.as_strided((ROWS, WIDTH), (WIDTH, 1)) + x[:1].expand(ROWS, WIDTH) + x.unbind(0)[2]
        return torch.stack([y, x.flip(0)], dim=1).select(1, 0)


class Counting(Chain):
    """Reads a buffer, writes it, reads it again; and writes to an input. Plain Inductor's gradients are wrong here."""

    seen: torch.Tensor
    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(WIDTH))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = torch.tanh(self.run(self.first, x) + self.seen)
        self.seen.add_(x.detach().mean(0))
        self.steps += 1
        scratch.mul_(2).add_(x.detach())
        return self.run(self.last, torch.tanh(x + self.seen)).pow(2).mean()


class Several(Chain):
    """Loss, a view of a hidden tensor, its class per row, a mask, and a tensor without gradient."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        hidden = self.run(self.first, x)
        out = self.run(self.last, hidden)
        return out.pow(2).mean(), hidden.t()[:3], out.argmax(1), out > 0.5, (hidden * 2).detach()


class Integers(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)

    def forward(self, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        hidden = self.run(self.first, self.table(index) * weight[:, None])
        out = self.run(self.last, hidden.index_select(0, index.flip(0)))
        return F.cross_entropy(out, index)


class Cube(torch.autograd.Function):
    """A gradient that no autograd formula would give: it shows that the user's backward is the one that runs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        y: torch.Tensor = gradient * 5 * x * x
        return y


class OwnFunction(Chain):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = Cube.apply(x)  # type: ignore[no-untyped-call]
        return y


class Frozen(Chain):
    """Half of the parameters want no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)


def rows(*extra: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)), *extra)


CASES: dict[str, tuple[type[nn.Module], tuple[torch.Tensor, ...]]] = {
    "tied weights": (Tied, rows()),
    "in place": (InPlace, rows()),
    "views": (Views, rows()),
    "buffers and inputs written": (Counting, rows(torch.ones(ROWS, WIDTH))),
    "several outputs": (Several, rows()),
    "integer inputs": (Integers, (torch.arange(ROWS) % 11, rows()[0][:, 0])),
    "own autograd function": (OwnFunction, rows()),
    "frozen parameters": (Frozen, rows()),
    "gradient of an input": (Chain, tuple(t.requires_grad_() for t in rows())),
}


@pytest.mark.parametrize("name", CASES)
def test_step_is_unchanged(name: str) -> None:
    build, inputs = CASES[name]
    model = build()
    run = run_memcompile(model, inputs, "90%")
    assert_same_step(run.step, run_eager(model, inputs), tolerance=1e-5)
    assert recomputed(run.planned)
    peak, planned = run.measured.peak_bytes, run.planned.planned_peak_bytes
    # The gradient of a strided view is counted with its gaps, although the engine hands over a dense one: too much, never too little.
    tolerance = 0.04 if name == "several outputs" else 0.01
    assert peak <= planned + 8 and planned - peak <= tolerance * peak, f"planned {planned}, measured {peak}"


class Checkpointed(Chain):
    """The user's own checkpoint around the first half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = checkpoint(lambda y: self.run(self.first, y), x, use_reentrant=False)
        return self.run(self.last, hidden).pow(2).mean()


def test_checkpoint_regions_keep_their_meaning() -> None:
    """They are recomputed with and without a budget; a budget saves nothing of them."""
    model, inputs = Checkpointed(depth=4), rows()
    free = run_memcompile(model, inputs)
    assert_same_step(free.step, run_eager(model, inputs), tolerance=2e-5)
    plain = run_memcompile(Chain(depth=4), inputs)
    assert free.planned.graphs[0].saved_bytes <= 0.7 * plain.planned.graphs[0].saved_bytes
    run = run_memcompile(model, inputs, "85%")
    assert_same_step(run.step, free.step)
    assert_promise(run)
    assert run.planned.graphs[0].saved_bytes <= free.planned.graphs[0].saved_bytes


class Dropping(Chain):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(torch.tanh(F.dropout(x, 0.3)).exp(), 0.5)


def test_random_ops_that_cannot_be_replayed_run_once() -> None:
    """With Inductor's ``fallback_random`` the masks are eager's: a second draw would show in every gradient."""
    model, inputs = Dropping(), rows()
    run = run_memcompile(model, inputs, "75%", inductor={**QUICK, "fallback_random": True})
    assert_same_step(run.step, run_eager(model, inputs))
    decisions = run.planned.graphs[0].decisions
    refused = [row for row in decisions if row.kind == "refused" and "random" in row.why]
    assert refused and recomputed(run.planned)
    assert not {row.storage for row in refused} & {row.storage for row in decisions if row.kind == "recompute"}


class Autocast(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


def test_autocast() -> None:
    """bf16 rounds where kernels end, and a plan changes that: against plain Inductor within bf16's rounding."""
    model, inputs = Autocast(), rows()
    plain = run_inductor(model, inputs)
    run = run_memcompile(model, inputs, "75%")
    assert run.planned.fits
    assert recomputed(run.planned)
    assert_same_step(run.step, plain.step, tolerance=2e-2)
    assert all(gradient.dtype == torch.float32 for gradient in run.step.gradients.values())


def test_dynamic_shapes() -> None:
    """The plan is made for the first batch; later batches of other sizes give eager's numbers from the same code."""
    model = Chain()
    mine, function = compiled(model, "70%")
    for size in (96, 40, 120):
        batch = rows()[0][:size].clone()
        torch._dynamo.mark_dynamic(batch, 0)
        mine.zero_grad(set_to_none=True)
        loss = function(batch)
        loss.backward()
        expected = train(model, model, [batch])
        for name, parameter in mine.named_parameters():
            assert parameter.grad is not None
            assert relative_error(parameter.grad, expected.gradients[name]) < 3e-6, (size, name)
    report = memcompile.report(function)
    assert len(report.graphs) == 1
    assert recomputed(report)


class Broken(Chain):
    """Two graphs."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x


def test_budget_covers_all_graphs_of_a_step() -> None:
    model, inputs = Broken(), rows()
    plain = run_inductor(model, inputs)
    budget = int(0.9 * plain.measured.peak_bytes)
    run = run_memcompile(model, inputs, budget)
    assert len(run.planned.graphs) == 2
    assert_same_step(run.step, run_eager(model, inputs))
    assert run.measured.peak_bytes <= budget
    assert recomputed(run.planned)


def test_two_forwards_before_their_backwards() -> None:
    model = Chain()
    mine, function = compiled(model, "75%")
    first, second = rows()[0], rows()[0] + 1
    (function(first) + 2 * function(second)).backward()
    loss = model(first) + 2 * model(second)
    loss.backward()
    for a, b in zip(mine.parameters(), model.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert relative_error(a.grad, b.grad) < 3e-6


def test_backward_twice_through_one_graph() -> None:
    """As with plain Inductor, ``retain_graph`` needs buffers that are not donated."""
    model = Chain()
    with torch._functorch.config.patch(donated_buffer=False):
        mine, function = compiled(model, "80%")
        loss = function(*rows())
        loss.backward(retain_graph=True)
        once = [p.grad.clone() for p in mine.parameters() if p.grad is not None]
        loss.backward()
    for gradient, parameter in zip(once, mine.parameters(), strict=True):
        assert parameter.grad is not None
        assert relative_error(parameter.grad, 2 * gradient) < 1e-6


def test_accumulation_keeps_the_budget() -> None:
    """The second microbatch starts with gradients in place: they are inside the budget, and the numbers add up."""
    model, inputs = Chain(depth=4), rows()
    plain = run_inductor(model, inputs)
    gradients = sum(p.nbytes for p in model.parameters())
    budget = int(0.75 * plain.measured.peak_bytes) + gradients
    mine, function = compiled(model, budget)

    def microbatch() -> object:
        loss = function(*inputs)
        loss.backward()
        return loss

    for _ in range(3):
        microbatch()
    expected = run_eager(model, inputs)
    for name, parameter in mine.named_parameters():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, 3 * expected.gradients[name]) < 3e-6
    peak = measure_peak(microbatch, model=mine, inputs=inputs)
    assert peak.entry_bytes >= 2 * gradients
    assert peak.peak_bytes <= budget


def test_accumulation_with_sizes_that_vary() -> None:
    """Each is planned again for the gradients that are alive, with its sizes."""
    model = Chain()
    mine, function = compiled(model, "90%")
    batches = [rows()[0][:size].clone() for size in (96, 40, 96)]
    for batch in batches:
        torch._dynamo.mark_dynamic(batch, 0)
        function(batch).backward()
    for batch in batches:
        model(batch).backward()
    for a, b in zip(mine.parameters(), model.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert relative_error(a.grad, b.grad) < 3e-6


def test_two_models_in_one_process() -> None:
    small, large = Chain(depth=2), Chain(depth=4)
    first, second = run_memcompile(small, rows(), "85%"), run_memcompile(large, rows(), "60%")
    assert [len(run.planned.graphs) for run in (first, second)] == [1, 1]
    assert_promise(first)
    assert_promise(second)


class Skips(nn.Module):
    """Early results wait for the end of a deep chain, in the opposite order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = []
        for layer in self.layers:
            x = layer(x).sin()
            values.append(x)
        for layer, value in zip(self.layers, reversed(values), strict=True):
            x = layer(self.drop(x) + value).tanh()
        return x.pow(2).mean()


def test_inference_keeps_a_budget() -> None:
    model, inputs = Skips().eval(), rows()
    mine, function = compiled(model, 1, on_infeasible="best_effort")

    with torch.no_grad():
        assert relative_error(function(*own(inputs)), model(*inputs)) < 1e-6
        peak = measure_peak(lambda: function(*inputs), model=mine, inputs=inputs)
    report = memcompile.report(function)
    assert [graph.kind for graph in report.graphs] == ["inference"]
    assert report.graphs[0].planned_peak_bytes < report.graphs[0].unplanned_peak_bytes
    assert abs(peak.peak_bytes - report.planned_peak_bytes) <= 0.01 * peak.peak_bytes


def test_evaluation_after_training() -> None:
    """Training and evaluation of one model are two graphs of one report; dropout is off in the second."""
    model, inputs = Skips(), rows()
    mine, function = compiled(model, "95%", on_infeasible="best_effort")
    train(function, mine, inputs)
    mine.eval()
    model.eval()
    with torch.no_grad():
        assert relative_error(function(*inputs), model(*inputs)) < 1e-6
    assert [graph.kind for graph in memcompile.report(function).graphs] == ["train", "inference"]
    assert measured(function, mine.train(), inputs).peak_bytes > 0


class Block(nn.Module):
    """Four times as wide inside."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.narrow(torch.tanh(self.wide(x)).sin())
        return y


class Sum(nn.Module):
    """A loss that takes no memory of its own: it is in no graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


def test_blocks_that_are_compiled_by_themselves() -> None:
    """They share one graph, and what each has saved is alive together: so says the report."""
    model, inputs = nn.Sequential(*(Block() for _ in range(4)), Sum()), [rows()[0].requires_grad_()]
    for block in list(model)[:-1]:
        block.compile(backend="memcompile", options={"inductor": QUICK})
    peak = measured(model, model, inputs).peak_bytes
    report = memcompile.report(model)
    assert len(report.graphs) == 1 and len(report.steps) == 1
    assert peak - 8 <= report.planned_peak_bytes <= 1.03 * peak  # the sum and its gradient are in no graph
