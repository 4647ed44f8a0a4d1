"""What a program does beside returning values: once, in its place, whatever a plan makes again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import nn
from torch._C._distributed_c10d import FileStore

from memcompile.solvers.schedule.decode import decode
from memcompile.solvers.schedule.index import RematIndex
from memcompile.solvers.schedule.problem import RematSchedule
from memcompile.step.facts import Facts
from tests.planned_eagerly import Planner, unplanned, with_lowering
from tests.steps import QUICK, SEARCH_S


def keep_nothing(facts: Facts) -> RematSchedule:
    if facts.graphs.backward is not None:
        return decode(RematIndex.of(facts.problem), {facts.problem.boundary: set()})
    return decode(RematIndex.of(facts.problem), {at: set() for at in range(len(facts.problem.ops))})


@torch.library.custom_op("memcompile_tests::add_into", mutates_args=("total",))
def add_into(total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    total.add_(x)
    return x * 2


@add_into.register_fake
def _(total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def chain(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = a.sin()
    y = (x @ x).cos()
    return x, (y @ y).sin()


def adds(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    b.add_(z + x)
    return z.sum()


def reads_before_and_after(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    before = b @ x
    b.mul_(z)
    return before.sum() + (b @ x).cos().sum()


def writes_a_row(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    b[1].copy_(z.sum(0))
    return (b * x).sum()


def writes_transposed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    b.t().copy_(z + x)
    return z.sum()


def writes_by_index(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    b.index_put_((torch.tensor([0, 2]),), z[:2], accumulate=True)
    b.clamp_(max=0.5)
    return (x + z).sum()


def writes_two(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    a.mul_(0.5)
    b.add_(a @ z)
    return (x * z).sum()


def calls_an_operator_that_writes(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    y: torch.Tensor = torch.ops.memcompile_tests.add_into(b, (x + z).detach())
    return (y @ z).sum()


def returns_what_it_wrote(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, z = chain(a)
    b.add_(x @ z)
    return b, b.sum()


def solves(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    s = torch.linalg.solve(x @ x.T + 8 * torch.eye(8), z)
    b.add_(s)
    return torch.tanh(s @ x).sum()


def asserts(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    torch._assert_async((z.abs() < 2).all(), "out of range")
    b.add_(z)
    return (x @ z).sum()


def communicates(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, z = chain(a)
    group: Any = "0"
    b.add_(collectives.all_reduce(x + z, "sum", group).detach())
    return torch.tanh(collectives.all_gather_tensor(z, 0, group) @ x).sum()


PROGRAMS: list[Callable[..., Any]] = [
    adds,
    reads_before_and_after,
    writes_a_row,
    writes_transposed,
    writes_by_index,
    writes_two,
    calls_an_operator_that_writes,
    returns_what_it_wrote,
    solves,
    asserts,
    communicates,
]


OVERWRITES_WHAT_IS_SAVED: tuple[Callable[..., Any], ...] = (reads_before_and_after, writes_two)
"""Eager's autograd refuses them, too."""


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one."""
    store = FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 8, generator=generator), torch.randn(8, 8, generator=generator)


def same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_inference(program: Callable[..., Any], fresh_dynamo: None) -> None:
    planner = Planner(keep_nothing, with_lowering)
    mine, theirs = inputs(), inputs()
    with torch.no_grad():
        same(torch.compile(program, backend=planner)(*mine), program(*theirs))
    same(mine, theirs)
    assert planner.planned[0].joint.recomputed


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p not in OVERWRITES_WHAT_IS_SAVED], ids=lambda p: p.__name__)
@pytest.mark.parametrize("choose", [keep_nothing, unplanned])
def test_training(program: Callable[..., Any], choose: Callable[[Facts], RematSchedule], fresh_dynamo: None) -> None:
    """The scale requires a gradient, what is written does not."""
    planner = Planner(choose, with_lowering)

    def program_with_scale(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> Any:
        return program(a * scale, b)

    results = []
    for function in (torch.compile(program_with_scale, backend=planner), program_with_scale):
        a, b = inputs()
        scale = torch.full((8,), 0.9, requires_grad=True)
        result = function(a, b, scale)
        loss = result[-1] if isinstance(result, tuple) else result
        loss.backward()
        results.append((loss.detach(), b.detach(), scale.grad))
    same(*results)


class Counted(nn.Module):
    """Batch normalisation, and a buffer that is read and written."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.norm(self.first(x))) - self.mean
        self.mean.lerp_(h.detach().mean(0), 0.1)
        return torch.tanh(self.second(h) + self.mean).square().sum()


@pytest.mark.parametrize("training", [True, False])
def test_buffers(training: bool, fresh_dynamo: None) -> None:
    torch.manual_seed(0)
    theirs = Counted()
    mine = copy.deepcopy(theirs)
    compiled = torch.compile(mine, backend=Planner(keep_nothing, with_lowering))
    for _ in range(2):
        x = torch.randn(4, 8)
        with torch.set_grad_enabled(training):
            ours, expected = compiled(x), theirs(x)
        same(ours, expected)
        if training:
            ours.backward()
            expected.backward()
    same(dict(mine.named_buffers()), dict(theirs.named_buffers()))
    same([p.grad for p in mine.parameters()], [p.grad for p in theirs.parameters()])


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("foreach", [True, False])
def test_optimizer_steps(name: str, foreach: bool, fresh_dynamo: None) -> None:
    """A compiled step of an optimizer is an inference graph that does nothing but write."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))]
    models.append(copy.deepcopy(models[0]))
    options = {"lr": 0.1, "foreach": foreach, **({} if name == "Adam" else {"momentum": 0.9})}
    optimizers = [getattr(torch.optim, name)(model.parameters(), **options) for model in models]
    planner = Planner(keep_nothing, with_lowering)
    steps = [torch.compile(optimizers[0].step, backend=planner), optimizers[1].step]
    for index in range(3):
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, 0.1 + index)
        for step in steps:
            step()
        same(*(list(model.parameters()) for model in models))
    assert planner.planned


def test_a_compiled_graph_with_a_budget_writes_its_input(fresh_dynamo: None) -> None:
    options: dict[str, Any] = {"memory_budget": "60%", "on_infeasible": "best_effort"}
    mine, theirs = inputs(), inputs()
    with torch.no_grad():
        same(torch.compile(adds, backend="memcompile", options=options)(*mine), adds(*theirs))
    same(mine, theirs)


def test_saved_tensors_of_a_graph_with_effect_tokens_keep_their_places(fresh_dynamo: None) -> None:
    """The lowered forward has fewer outputs than were partitioned: a slot was taken for the user's, another one given away."""

    def solving(a: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = torch.tanh(a @ w)
            s = torch.linalg.solve(x @ x.T + 10 * torch.eye(64), b)
            a = torch.tanh(s @ w) + nn.functional.gelu(x @ a)
        return torch.softmax(a, -1).mul(b).sum()

    torch.manual_seed(0)
    given = [torch.randn(64, 64, requires_grad=True) for _ in range(3)]
    expected = torch.autograd.grad(solving(*(x.double() for x in given)), given)
    options: dict[str, Any] = {
        "memory_budget": "80%",
        "on_infeasible": "best_effort",
        "inductor": QUICK,
        "solver_time_limit_s": SEARCH_S,
    }
    compiled = torch.compile(solving, backend="memcompile", options=options)
    for gradient, right in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=0, atol=1e-2 * float(right.abs().max()))
