"""``mm_add``: sums of a tensor and a product, written over the tensor where it dies, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import memcompile
from memcompile.codegen.inductor.accumulate import MM_ADD, mm_add
from memcompile.codegen.inductor.partition import default_partition
from memcompile.codegen.inductor.scheduled import Scheduling, own_peak
from memcompile.codegen.inductor.trial import lower, lower_graphs
from memcompile.compiling.dryrun import predict_graphs
from memcompile.compiling.session import Session
from memcompile.passes.rows.canonical import canonicalise
from memcompile.step.facts import StepGraphs
from memcompile.step.trace import GraphTrace
from tests.captured import captured
from tests.low_rank_nets import LoRA, LoRADropout, LoRATwice, Sizes, example
from tests.steps import QUICK, assert_promise, assert_same_step, own, relative_error, run_eager, run_memcompile

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

SIZES = Sizes(batch=2, tokens=64, width=32, hidden=128, rank=4)
FULL = SIZES.batch * SIZES.tokens * SIZES.hidden * 4
ROWS, WIDE, RANK = 96, 64, 4


class Loss(nn.Module):
    """The mean square of a net's output: the whole step is one graph."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x).square().mean()
        return out


class Stack(nn.Module):
    """Residual layers whose first half is adapted."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.up = nn.ModuleList(LoRA(SIZES) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(SIZES.hidden, SIZES.width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.gelu(up(x)))
        return x


@pytest.fixture
def canonical(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions rewrite their graphs first."""
    partition, rewrite = Session.partition, Session.inference

    def joint(self: Session, gm: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        canonicalise(gm)
        return partition(self, gm, *args, **kwargs)

    def inference(self: Session, gm: fx.GraphModule) -> Any:
        canonicalise(gm)
        return rewrite(self, gm)

    monkeypatch.setattr(Session, "partition", joint)
    monkeypatch.setattr(Session, "inference", inference)


def operands() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*shape) for shape in ((ROWS, WIDE), (WIDE, WIDE), (ROWS, RANK), (RANK, WIDE))]


def test_the_op_is_what_it_says() -> None:
    x, _, a, b = operands()
    torch.library.opcheck(MM_ADD, (x, a, b), test_utils=("test_schema", "test_faketensor"))
    assert torch.equal(MM_ADD(x, a, b), torch.addmm(x, a, b))
    with FlopCounterMode(display=False) as counter:
        MM_ADD(x, a, b)
    assert counter.get_total_flops() == 2 * ROWS * WIDE * RANK


@pytest.mark.parametrize("shape", [(ROWS, WIDE + 1), (1, WIDE), (WIDE,)])
def test_nothing_is_broadcast(shape: tuple[int, ...]) -> None:
    _, _, a, b = (t.to("meta") for t in operands())
    with pytest.raises(ValueError, match=r"mm_add: .* \+ \(96, 4\) @ \(4, 64\)"):
        MM_ADD(torch.empty(shape, device="meta"), a, b)


def dies(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Any:
    return MM_ADD(x @ w, a, b)


def dies_in_a_chain(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Any:
    return MM_ADD(MM_ADD(x @ w, a, b), a, b).tanh()


def dies_behind_a_view(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Any:
    return MM_ADD((x @ w).view(2, -1, WIDE).view(-1, WIDE), a, b).view(2, -1, WIDE)


def is_returned(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    acc = x @ w
    return MM_ADD(acc, a, b), acc


def is_returned_as_a_view(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    acc = x @ w
    return MM_ADD(acc, a, b), acc[:, 1:]


def is_read_later(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Any:
    acc = x @ w
    return MM_ADD(acc, a, b) @ w * acc


def is_an_input(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Any:
    return MM_ADD(x, a, b)


def lies_in_other_order(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Any:
    return MM_ADD((x @ w).view(WIDE, ROWS).t(), a, b)


def is_computed(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Any:
    return MM_ADD((x @ w).tanh(), a, b).exp()


def is_a_factor_too(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Any:
    acc = x @ w
    return MM_ADD(acc, acc, w)


@pytest.mark.parametrize("arena", ["step", "off"])
@pytest.mark.parametrize(
    ("function", "count"),
    [
        (dies, 1),
        (dies_in_a_chain, 1),
        (dies_behind_a_view, 1),
        (is_computed, 1),
        (is_returned, 2),
        (is_returned_as_a_view, 2),
        (is_read_later, 3),
        (is_an_input, 1),
        (lies_in_other_order, 2),
        (is_a_factor_too, 2),
    ],
)
def test_it_is_in_place_where_what_it_adds_to_dies(function: Callable[..., Any], count: int, arena: str) -> None:
    """``count``: full-size tensors that are alive at once."""
    mm_add()
    inputs = operands()
    options: dict[str, Any] = {"inductor": QUICK, "arena": arena}
    compiled = torch.compile(function, backend="memcompile", options=options)
    with torch.no_grad():
        found, expected = compiled(*own(inputs)), function(*inputs)
    for left, right in zip(*(out if isinstance(out, tuple) else (out,) for out in (found, expected)), strict=True):
        assert relative_error(left, right) < 1e-6
    report = memcompile.report(compiled)
    unread = {is_an_input: inputs[1:2], is_a_factor_too: inputs[2:]}.get(function, [])
    read = sum(t.nbytes for t in inputs) - sum(t.nbytes for t in unread)
    assert report.planned_peak_bytes == read + count * ROWS * WIDE * 4


@pytest.mark.parametrize("arena", ["step", "off"])
@pytest.mark.parametrize("net", [LoRA, LoRATwice, Stack])
def test_a_step_has_eager_numbers_and_the_planned_peak(net: Callable[..., nn.Module], arena: str, canonical: None) -> None:
    torch.manual_seed(0)
    model = Loss(net() if net is Stack else net(SIZES))
    inputs = [example(SIZES).requires_grad_()]
    run = run_memcompile(model, inputs, arena=arena)
    assert_same_step(run.step, run_eager(model, inputs))
    assert abs(run.measured.peak_bytes - run.planned.planned_peak_bytes) <= 64


@pytest.mark.parametrize("arena", ["step", "off"])
def test_inference_holds_one_full_size_tensor(arena: str, canonical: None) -> None:
    """Plain Inductor holds two: the base's output, and the adapter's."""
    torch.manual_seed(0)
    model, x = LoRATwice(SIZES), example(SIZES)
    options: dict[str, Any] = {"inductor": QUICK, "arena": arena}
    compiled = torch.compile(model, backend="memcompile", options=options)
    with torch.no_grad():
        assert relative_error(compiled(x), model(x)) < 1e-6
    parameters = sum(p.nbytes for p in model.parameters())
    ranks = SIZES.batch * SIZES.tokens * SIZES.rank * 4
    assert memcompile.report(compiled).planned_peak_bytes == parameters + x.nbytes + FULL + ranks


def test_a_budget_is_kept_with_sums_in_place(canonical: None) -> None:
    torch.manual_seed(0)
    model, inputs = Loss(Stack()), [example(SIZES).requires_grad_()]
    run = run_memcompile(model, inputs, "70%")
    assert_promise(run)
    assert_same_step(run.step, run_eager(model, inputs))


def halves(net: nn.Module, rewritten: bool) -> StepGraphs:
    torch.manual_seed(0)
    module = captured(Loss(net), example(SIZES).requires_grad_(), train=True)
    if rewritten:
        canonicalise(module)
    return default_partition(module, (), 1)


def full_size(trace: GraphTrace) -> int:
    return sum(event.kind == "alloc" and event.size_bytes == FULL for event in trace.events)


@pytest.mark.parametrize(
    ("net", "before", "after"), [(LoRA, (2, 2), (1, 0)), (LoRATwice, (3, 2), (1, 0)), (LoRADropout, (2, 2), (1, 0))]
)
def test_full_size_tensors_that_are_made(
    net: Callable[..., nn.Module], before: tuple[int, int], after: tuple[int, int]
) -> None:
    """In the forward and in the backward, each adapter makes one more of them where Inductor has fused what it can."""
    for rewritten, counts in ((False, before), (True, after)):
        traces = lower_graphs(halves(net(SIZES), rewritten)).traces
        assert tuple(map(full_size, traces)) == counts


@pytest.mark.parametrize("net", [LoRA, LoRATwice, LoRADropout])
def test_orders_and_predictions_know_what_is_in_place(net: Callable[..., nn.Module]) -> None:
    """The peak of the order's problem is exact, and so is that of the model without lowering."""
    graphs, scheduling = halves(net(SIZES), rewritten=True), Scheduling()
    trace = lower(graphs.forward, kind="forward", num_user_outputs=1, shares=(0.0,), scheduling=scheduling)
    assert own_peak(trace, scheduling.entry["forward"]) == scheduling.orderings["forward"].order.peak_bytes
    assert predict_graphs(graphs).peak.forward_peak_bytes == lower_graphs(graphs).peak.forward_peak_bytes
